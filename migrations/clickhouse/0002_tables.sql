-- What is known of each replicated table. The row with the highest revision counts.
CREATE TABLE IF NOT EXISTS _tables
(
    slot         String  COMMENT 'replication slot',
    oid          UInt32  COMMENT 'pg_class.oid of the source table',
    schema_name  String,
    table_name   String,
    target       String  COMMENT 'table in this database',
    uuid         String  COMMENT 'UUID of the target, so that a replaced one is noticed',
    status       LowCardinality(String) COMMENT 'copying, streaming or stopped',
    reason       String  COMMENT 'why it is stopped, and what to do',
    fed_from     UInt64  COMMENT 'commits that end at or before this position are not in its feed',
    read_until   UInt64  COMMENT 'WAL position after the last read of rows from PostgreSQL itself',
    floor        UInt128 COMMENT 'version of the last TRUNCATE: rows below it are gone',
    membership   String  COMMENT 'identity of its membership in the publication',
    shape        String  COMMENT 'columns of the source when it was created, as JSON',
    revision     UInt64  COMMENT 'rises with every write',
    updated_at   DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(revision)
ORDER BY (slot, oid)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1,
         min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1
