-- Somebody logs in, or does not: what the audit log has to know is written with it, or not at all.
\set merchant random(1, 8)
\set who random(1, 2000)
\set luck random(1, 10)
BEGIN;
UPDATE users SET last_seen_at = now() WHERE id = :who AND :luck > 1;
INSERT INTO outbox_event (aggregate_type, aggregate_id, event_type, payload)
VALUES ('user', :who, 'SecurityEventOccurred', jsonb_build_object(
    'eventType', 'login', 'actingUserId', ((:who)::integer)::text, 'merchantAccountId', ((:merchant)::integer)::text,
    'outcome', CASE WHEN :luck > 1 THEN 'success' ELSE 'failure' END,
    'details', jsonb_build_object('address', '192.0.2.' || (:luck)::integer)));
COMMIT;
