-- What operators ask the daemon for. A request that was taken up is not taken up again.
CREATE TABLE IF NOT EXISTS _requests
(
    slot         String  COMMENT 'replication slot',
    id           UUID    COMMENT 'of this request',
    action       LowCardinality(String) COMMENT 'resync, pause, resume or replay',
    schema_name  String,
    table_name   String,
    state        LowCardinality(String) COMMENT 'asked, begun, done or refused',
    message      String  COMMENT 'why it was refused',
    revision     UInt64  COMMENT 'rises with every write',
    updated_at   DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(revision)
ORDER BY (slot, id)
