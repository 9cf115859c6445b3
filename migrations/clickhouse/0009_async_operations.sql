-- Reports and exports that were asked for, one row for each event: read it with FINAL, since each step of one is a row of its
-- own until a merge.
CREATE TABLE IF NOT EXISTS async_operations (
    event_id UUID,
    correlation_id String,
    -- reportGeneration or dataExport.
    operation_type LowCardinality(String),
    report LowCardinality(String),
    format LowCardinality(String),
    merchant_account_id String,
    user_id String,
    -- requested also while another try is to come; then error says what became of the last one.
    status Enum8('requested' = 1, 'running' = 2, 'succeeded' = 3, 'failed' = 4),
    -- Of the result, as far as it is there. The rows of a Parquet file are known at its end.
    rows UInt64,
    bytes UInt64,
    -- Where the result is, once it is whole.
    location String,
    error String,
    attempt UInt32,
    requested_at DateTime64(6, 'UTC'),
    started_at Nullable(DateTime64(3, 'UTC')),
    finished_at Nullable(DateTime64(3, 'UTC')),
    updated_at DateTime64(3, 'UTC') DEFAULT now64(3),
    version UInt64
) ENGINE = ReplacingMergeTree(version)
ORDER BY event_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1,
    min_compressed_bytes_to_fsync_after_merge = 1;
