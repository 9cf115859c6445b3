-- Where applications write events, in the transaction of what they tell of: an event is published if that commits, and only
-- then. walhouse reads it in the WAL, so a row may be deleted in the very transaction that inserted it, or at any time after.
--
-- To install, as whoever owns the application's tables, in the database that is replicated:
--     psql -v ON_ERROR_STOP=1 -f 0002_outbox_event.sql shop
-- walhouse adds the table to its publication, or says what it lacks for it. It is not copied to ClickHouse.
--
-- Without the table: SELECT pg_logical_emit_message(true, 'walhouse.outbox', '{"eventType": …, "payload": {…}}').
--
-- Nothing here refuses a malformed event, so that it can not fail the application's transaction: it becomes a dead letter, and
-- that says what is wrong with it. The shapes of the three events are in config/events/.
--
-- PostgreSQL 14 to 18.

CREATE TABLE IF NOT EXISTS outbox_event (
    id             uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    aggregate_type text,
    aggregate_id   text,
    event_type     text        NOT NULL,
    event_version  text        NOT NULL DEFAULT '1.0',
    correlation_id text,
    payload        jsonb       NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE outbox_event IS 'Events for walhouse, which reads them in the WAL. Rows may be deleted at any time.';
COMMENT ON COLUMN outbox_event.id IS 'The event''s id, by which every effect of it is idempotent.';
COMMENT ON COLUMN outbox_event.aggregate_id IS 'Events with the same one keep their order.';
COMMENT ON COLUMN outbox_event.event_type IS 'SecurityEventOccurred or AsynchronousOperationRequested.';
COMMENT ON COLUMN outbox_event.correlation_id IS
    'What belongs together, such as a request. Without one the events of a transaction share one.';
COMMENT ON COLUMN outbox_event.payload IS 'In the shape of its type, see config/events/.';
