-- How a table follows its source through changes of shape, and how it is copied anew.
ALTER TABLE _tables
    ADD COLUMN IF NOT EXISTS shaped_from UInt128 COMMENT 'changes below this version have landed already, in an older shape' AFTER floor,
    ADD COLUMN IF NOT EXISTS heaps       String  COMMENT 'heaps of the source with their filenodes, as JSON' AFTER shape,
    ADD COLUMN IF NOT EXISTS altering    String  COMMENT 'change of shape that the target is undergoing, as JSON' AFTER heaps,
    ADD COLUMN IF NOT EXISTS fresh       String  COMMENT 'table beside it that is filled to take its place, as JSON' AFTER altering
