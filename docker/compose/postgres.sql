-- Runs once, when PostgreSQL's volume is empty. Roles without a password can come through the socket only.
CREATE ROLE shop_owner;
CREATE ROLE walhouse LOGIN REPLICATION;
GRANT CREATE ON DATABASE shop TO walhouse;
GRANT shop_owner TO walhouse;
GRANT CREATE ON SCHEMA public TO shop_owner;

SET ROLE shop_owner;
CREATE TABLE product (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, price numeric(12, 2) NOT NULL);
INSERT INTO product (name, price) VALUES ('Teapot', 24.90), ('Kettle', 39.00);
