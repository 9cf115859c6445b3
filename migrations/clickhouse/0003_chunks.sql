-- Chunks of the initial copy that are done, so that a restart goes on with the next one.
CREATE TABLE IF NOT EXISTS _chunks
(
    uuid        String COMMENT 'UUID of the target',
    leaf        UInt32 COMMENT 'pg_class.oid of the heap that was read: the table, or one of its partitions',
    filenode    UInt32 COMMENT 'pg_relation_filenode of that heap: a rewrite makes its chunks void',
    first_block UInt32 COMMENT 'first heap block',
    last_block  UInt32 COMMENT 'heap block after the last',
    row_count   UInt64,
    copied_at   DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY (uuid, leaf, filenode, first_block)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1,
         min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1
