-- Where a slot stands. The row with the highest revision counts; only the process that holds the
-- slot's lock writes. Positions are plain numbers of bytes; `position` shows PostgreSQL's form.
CREATE TABLE IF NOT EXISTS _checkpoint
(
    slot              String   COMMENT 'replication slot',
    epoch             UInt8    COMMENT 'history of the source that the positions belong to',
    lsn               UInt64   COMMENT 'everything up to here is durable',
    ceiling           UInt64   COMMENT 'no row of a commit beyond this was ever sent',
    system_identifier UInt64   COMMENT 'PostgreSQL cluster',
    timeline          UInt32   COMMENT 'timeline of the cluster',
    publication       String   COMMENT 'identity of the publication: oid, xmin and what it publishes',
    revision          UInt64   COMMENT 'rises with every write',
    updated_at        DateTime64(3, 'UTC') DEFAULT now64(3),
    position          String   ALIAS
        concat(if(lsn < 4294967296, '0', trim(LEADING '0' FROM hex(intDiv(lsn, 4294967296)))), '/',
               if(lsn % 4294967296 = 0, '0', trim(LEADING '0' FROM hex(lsn % 4294967296))))
)
ENGINE = ReplacingMergeTree(revision)
ORDER BY slot
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1,
         min_rows_to_fsync_after_merge = 1, min_compressed_bytes_to_fsync_after_merge = 1
