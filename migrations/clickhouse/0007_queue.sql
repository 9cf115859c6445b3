-- The queue lane's own position: every event of commits before it was sent. A lane that needs a replay then costs the other
-- nothing. 0 is none, as before there was a queue.
ALTER TABLE _checkpoint ADD COLUMN IF NOT EXISTS queue_lsn UInt64 DEFAULT 0 COMMENT 'every event up to here was sent' AFTER lsn
