INSERT INTO sales_order (customer_id, status, total_amount, currency, placed_at, updated_at, note, metadata)
VALUES (:client_id, 'paid', 12.34, 'EUR', now(), clock_timestamp(), 'to the neighbours', '{"source": "web", "items": 3}');
