-- Which processes have taken up a pause, or its end.
CREATE TABLE IF NOT EXISTS _pauses_taken_up
(
    slot         String  COMMENT 'replication slot',
    id           UUID    COMMENT 'of the row in _pauses',
    process      String  COMMENT 'host and process',
    updated_at   DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (slot, id, process)
