-- A new price. The description stays where it is, so the stream does not carry it.
\set product random(1, 5000)
UPDATE product SET price = (price * (0.9 + random()::numeric / 5) + 0.01)::numeric(12, 2), updated_at = now() WHERE id = :product;
