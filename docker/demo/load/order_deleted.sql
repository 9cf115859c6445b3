-- An order goes, and its items with it.
\set order_id random(1, 100000)
DELETE FROM sales_order WHERE id = :order_id;
