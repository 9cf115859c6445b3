-- An order and its items, in one transaction; the total follows once the items are known.
\set merchant random(1, 8)
\set customer 8 * random(1, 2499) + :merchant - 1
\set lines random(1, 6)
BEGIN;
INSERT INTO sales_order (merchant_account_id, customer_id, channel, note)
VALUES (:merchant, md5('customer ' || :customer)::uuid, (ARRAY['web', 'app', 'store'])[1 + :lines % 3], CASE WHEN :lines = 1 THEN 'Just one, please' END)
RETURNING id AS order_id \gset
INSERT INTO order_item
SELECT :order_id, line, :merchant, 'P-' || 8 * (1 + floor(random() * 624)::integer) + :merchant - 1, line, (random() * 500)::numeric(12, 2), NULL
FROM generate_series(1, :lines) line;
UPDATE sales_order SET total_amount = (SELECT sum(quantity * unit_price) FROM order_item WHERE sales_order_id = :order_id)
WHERE id = :order_id;
COMMIT;
