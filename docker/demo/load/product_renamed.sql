-- The key itself changes: the old row must go, and the new one must bring its description along.
\set product random(1, 5000)
UPDATE product SET sku = 'P-' || id || '-' || substr(md5(random()::text), 1, 6) WHERE id = :product;
