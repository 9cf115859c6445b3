-- What is sold: over product_current. A product's key is what its merchant calls it by.
CREATE OR REPLACE VIEW dim_products AS
SELECT
    sipHash64(product.merchant_account_id, product.sku) AS product_key,
    toString(product.merchant_account_id) AS merchant_account_id,
    product.sku AS sku,
    product.name AS name,
    product.price AS price,
    product.discontinued AS discontinued
FROM product_current AS product
