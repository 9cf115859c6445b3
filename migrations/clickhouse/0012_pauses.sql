-- What operators have paused: the pipeline, or a worker. The row with the highest revision counts.
CREATE TABLE IF NOT EXISTS _pauses
(
    slot         String  COMMENT 'replication slot',
    subject      LowCardinality(String) COMMENT 'pipeline, audit, operation or data-sync',
    id           UUID    COMMENT 'of this pause, or of its end',
    paused       UInt8   COMMENT '1 from here on, or 0',
    reason       String  COMMENT 'what the operator said',
    asked_by     String  COMMENT 'user and host',
    revision     UInt64  COMMENT 'rises with every write',
    updated_at   DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(revision)
ORDER BY (slot, subject)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1,
         min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1
