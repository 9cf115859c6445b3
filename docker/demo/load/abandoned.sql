-- Part of a transaction is taken back, and at times the whole.
\set user_id random(1, 2000)
\set order_id random(1, 100000)
\set whole random(0, 1)
BEGIN;
UPDATE users SET last_seen_at = clock_timestamp() WHERE id = :user_id;
SAVEPOINT before;
UPDATE sales_order SET note = 'never seen' WHERE id = :order_id;
ROLLBACK TO before;
\if :whole
ROLLBACK;
\else
COMMIT;
\endif
