-- People come, and change their minds.
\set merchant random(1, 8)
\set customer random(1, 20000)
INSERT INTO customer (merchant_account_id, email, name) VALUES (:merchant, 'new@mail.example', 'New Customer');
UPDATE customer SET phone = NULL, newsletter = NOT newsletter WHERE id = md5('customer ' || :customer)::uuid;
