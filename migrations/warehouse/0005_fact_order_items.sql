-- One row for each line of an order: over order_item_current. A line goes with its order, also where the deletion of one has
-- landed before that of the other.
CREATE OR REPLACE VIEW fact_order_items AS
SELECT
    item.sales_order_id AS order_key,
    item.line_number AS line_number,
    sipHash64(item.merchant_account_id, item.product_sku) AS product_key,
    item.product_sku AS sku,
    toString(item.merchant_account_id) AS merchant_account_id,
    item.quantity AS quantity,
    item.unit_price AS unit_price,
    item.quantity * item.unit_price AS amount
FROM order_item_current AS item
WHERE item.sales_order_id IN (SELECT id FROM sales_order_current)
