-- Who buys: over customer_current. A view, so that an update, a deletion and a key that changes are right at once.
CREATE OR REPLACE VIEW dim_users AS
SELECT
    sipHash64(customer.id) AS user_key,
    customer.id AS user_id,
    toString(customer.merchant_account_id) AS merchant_account_id,
    toDate32(customer.created_at) AS signup_date,
    ifNull(customer.region, '') AS region
FROM customer_current AS customer
