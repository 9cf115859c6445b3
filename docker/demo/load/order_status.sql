-- Orders go their way.
\set order_id random(1, 100000)
UPDATE sales_order
SET status = CASE status WHEN 'draft' THEN 'paid' WHEN 'paid' THEN 'packed' WHEN 'packed' THEN 'shipped'
                         WHEN 'shipped' THEN 'delivered' ELSE 'returned' END::order_status,
    shipped_on = CASE WHEN status = 'packed' THEN current_date ELSE shipped_on END
WHERE id = :order_id;
