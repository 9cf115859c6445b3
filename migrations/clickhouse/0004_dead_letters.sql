-- Rows that their table could not take. A replay writes a row again, and the key makes them one.
CREATE TABLE IF NOT EXISTS _dead_letters
(
    slot         String  COMMENT 'replication slot',
    oid          UInt32  COMMENT 'pg_class.oid of the source table',
    schema_name  String,
    table_name   String,
    target       String  COMMENT 'table in this database that the row was for',
    version      UInt128 COMMENT 'version that the row would have; 0 for the initial copy',
    operation    LowCardinality(String) COMMENT 'insert, update, delete, copy, or upsert where ClickHouse refused the row',
    key          String  COMMENT 'columns of the key in PostgreSQL''s text form, as a JSON object; _ordinal in a changelog',
    key_values   Array(String) COMMENT 'the same without the names, in the order of the key',
    column_name  String  COMMENT 'column that can not hold its value; empty where ClickHouse did not say',
    reason       String,
    envelope     String  COMMENT 'JSON: new and old, values in PostgreSQL''s text form by column; unchanged, columns that the stream left out',
    commit_lsn   UInt64  COMMENT 'commit record of the transaction; 0 for the initial copy',
    xid          Nullable(UInt32) COMMENT 'transaction, where it is known',
    committed_at Nullable(DateTime64(6, 'UTC')),
    created_at   DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (slot, oid, key_values, version)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1,
         min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1
