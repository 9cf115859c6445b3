-- Which of _dead_letters are in the queue of dead letters too.
CREATE TABLE IF NOT EXISTS _dead_letters_sent
(
    slot       String  COMMENT 'replication slot',
    oid        UInt32  COMMENT 'pg_class.oid of the source table',
    key_values Array(String),
    version    UInt128 COMMENT 'these four are the letter''s own',
    event_id   UUID    COMMENT 'the event in the queue',
    sent_at    DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (slot, oid, key_values, version)
