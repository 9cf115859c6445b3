-- A new large description.
\set product random(1, 5000)
\set words random(80, 160)
UPDATE product SET description = some_description(:words), updated_at = now() WHERE id = :product;
