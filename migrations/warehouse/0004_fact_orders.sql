-- One row for each order: over sales_order_current.
CREATE OR REPLACE VIEW fact_orders AS
SELECT
    o.id AS order_key,
    sipHash64(o.customer_id) AS user_key,
    o.customer_id AS user_id,
    toYYYYMMDD(o.placed_at) AS date_key,
    toString(o.merchant_account_id) AS merchant_account_id,
    toString(o.status) AS status,
    o.channel AS channel,
    o.currency AS currency,
    ifNull(o.total_amount, toDecimal64(0, 2)) AS total_amount,
    o.placed_at AS placed_at,
    o.shipped_on AS shipped_on
FROM sales_order_current AS o
