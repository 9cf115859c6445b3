-- An order and its items, in one transaction; the total follows once the items are known.
\set merchant random(1, 8)
\set customer random(1, 20000)
\set lines random(1, 6)
BEGIN;
INSERT INTO sales_order (merchant_account_id, customer_id, note)
VALUES (:merchant, md5('customer ' || :customer)::uuid, CASE WHEN :lines = 1 THEN 'Just one, please' END)
RETURNING id AS order_id \gset
INSERT INTO order_item
SELECT :order_id, line, :merchant, 'P-' || 1 + (random() * 4999)::integer, line, (random() * 500)::numeric(12, 2), NULL
FROM generate_series(1, :lines) line;
UPDATE sales_order SET total_amount = (SELECT sum(quantity * unit_price) FROM order_item WHERE sales_order_id = :order_id)
WHERE id = :order_id;
COMMIT;
