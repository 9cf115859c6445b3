-- What auditors ask about, one row for each event: read it with FINAL, since an event that comes twice is two rows until a
-- merge. Ordered by what they ask for: an account, in it a person, of that a time.
CREATE TABLE IF NOT EXISTS audit_log (
    event_id UUID,
    correlation_id String,
    -- What was done, such as login.
    event_type String,
    acting_user_id String,
    -- Empty where there is none.
    merchant_account_id String,
    target_resource Nullable(String),
    outcome LowCardinality(String),
    -- JSON, as it was written.
    details String,
    -- When it was committed.
    event_timestamp DateTime64(6, 'UTC'),
    source_service LowCardinality(String),
    recorded_at DateTime64(3, 'UTC') DEFAULT now64(3)
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(event_timestamp)
ORDER BY (merchant_account_id, acting_user_id, event_timestamp, event_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1,
    min_compressed_bytes_to_fsync_after_merge = 1;
