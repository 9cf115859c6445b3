-- The outbox table that was published, so that one that left and came back while nobody looked is noticed.
ALTER TABLE _checkpoint ADD COLUMN IF NOT EXISTS outbox String DEFAULT '' COMMENT 'identity of the outbox table''s membership in the publication'
