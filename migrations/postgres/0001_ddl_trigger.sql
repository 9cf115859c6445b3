-- What a change of a table's shape was, told in the WAL itself, in order with the table's rows.
--
-- Optional. Event triggers write, after each command that changes a published table, a logical
-- message with the prefix 'walhouse.ddl' that has the table's description in the catalog as it is
-- at that point of the transaction. walhouse can then follow in place what the catalog, read later,
-- leaves in doubt. Tables in no publication cost a look at the catalog, and write nothing.
--
-- A command never fails because of this: an error in here is a WARNING, and walhouse reads the
-- catalog instead.
--
-- To install or to renew, as a superuser, in the database that is replicated:
--     psql -1 -v ON_ERROR_STOP=1 -f 0001_ddl_trigger.sql shop
--     GRANT USAGE ON SCHEMA walhouse TO <the role of source.url>;
--     GRANT SELECT ON walhouse.ddl_key TO <the role of source.url>;
-- To remove, at any time:
--     DROP EVENT TRIGGER IF EXISTS walhouse_ddl, then walhouse_drop, each with a statement of its own;
--     DROP SCHEMA walhouse CASCADE;
--
-- Anybody who may connect can write a message with any prefix. So each of ours is authenticated:
-- HMAC-SHA-256 with a key that only its owner and those who were granted it can read, over a text
-- that names the transaction. It is kept in a materialized view because that is neither published
-- nor dumped with its contents: REFRESH MATERIALIZED VIEW walhouse.ddl_key makes another key.
--
-- PostgreSQL 14 to 18.

CREATE SCHEMA IF NOT EXISTS walhouse;
REVOKE ALL ON SCHEMA walhouse FROM PUBLIC;

-- The key, and the key as HMAC pads it for its inner and its outer hash (RFC 2104).
CREATE MATERIALIZED VIEW IF NOT EXISTS walhouse.ddl_key AS
WITH random AS MATERIALIZED (
    SELECT pg_catalog.sha256(pg_catalog.uuid_send(pg_catalog.gen_random_uuid()) || pg_catalog.uuid_send(pg_catalog.gen_random_uuid())
                             || pg_catalog.uuid_send(pg_catalog.gen_random_uuid())) AS key
), padded AS (
    SELECT key, key || pg_catalog.decode(pg_catalog.repeat('00', 32), 'hex') AS block FROM random
)
SELECT key,
       (SELECT pg_catalog.decode(pg_catalog.string_agg(pg_catalog.lpad(pg_catalog.to_hex(pg_catalog.get_byte(block, i) # 54), 2, '0'), '' ORDER BY i), 'hex')
        FROM pg_catalog.generate_series(0, 63) AS i) AS inner_pad,
       (SELECT pg_catalog.decode(pg_catalog.string_agg(pg_catalog.lpad(pg_catalog.to_hex(pg_catalog.get_byte(block, i) # 92), 2, '0'), '' ORDER BY i), 'hex')
        FROM pg_catalog.generate_series(0, 63) AS i) AS outer_pad
FROM padded;
REVOKE ALL ON walhouse.ddl_key FROM PUBLIC;

-- Writes one message: the authentication in hexadecimal, a space, and the body, in UTF-8 whatever the
-- database's encoding is.
--
-- And then an empty record. PostgreSQL gives a message the position at which its record *ends*, a row
-- that at which its record begins, and orders what is in different subtransactions by position alone.
-- So a row that follows at once would have the same position, and might come first.
CREATE OR REPLACE FUNCTION walhouse.ddl_emit(body json) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    content bytea := convert_to(body::text, 'UTF8');
    mac bytea;
BEGIN
    SELECT sha256(outer_pad || sha256(inner_pad || content)) INTO STRICT mac FROM walhouse.ddl_key;
    PERFORM pg_logical_emit_message(true, 'walhouse.ddl', convert_to(encode(mac, 'hex') || ' ', 'UTF8') || content);
    PERFORM pg_logical_emit_message(true, 'walhouse.ddl.end', '');
END $$;

-- The publications that carry a table, with what of it each of them does.
CREATE OR REPLACE FUNCTION walhouse.ddl_publications(relation oid) RETURNS json
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found json;
BEGIN
    -- Lists of columns, filters and schemas came with PostgreSQL 15; a branch that is not taken is not planned.
    IF current_setting('server_version_num')::int < 150000 THEN
        SELECT json_agg(json_build_object('name', p.pubname::text)) INTO found FROM pg_publication p
        WHERE p.puballtables OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = relation);
    ELSE
        -- With its schema, or with all tables, all rows of a table are published, whatever its own filter says.
        SELECT json_agg(json_strip_nulls(json_build_object(
            'name', p.pubname::text,
            'columns', CASE WHEN NOT p.puballtables THEN to_json(r.prattrs::int2[]) END,
            'filter', CASE WHEN NOT p.puballtables AND s.oid IS NULL THEN pg_get_expr(r.prqual, r.prrelid) END,
            'generated', nullif(coalesce(to_jsonb(p) ->> 'pubgencols', 'n') = 's', false)))) INTO found
        FROM pg_class c CROSS JOIN pg_publication p
        LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
        LEFT JOIN pg_publication_namespace s ON s.pnpubid = p.oid AND s.pnnspid = c.relnamespace
        WHERE c.oid = relation AND (p.puballtables OR r.oid IS NOT NULL OR s.oid IS NOT NULL);
    END IF;
    RETURN found;
END $$;

-- A table and its partitions on every level, each with what changes when it, or one above it, is
-- attached anew. pg_partition_tree would lock all of them, and wait for whoever has locked one.
CREATE OR REPLACE FUNCTION walhouse.ddl_tree(root oid) RETURNS TABLE (oid oid, kind "char", attachment bigint)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE tree AS (
        SELECT c.oid, c.relkind, 0::bigint AS attachment FROM pg_class c WHERE c.oid = root
      UNION ALL
        SELECT c.oid, c.relkind, tree.attachment + i.xmin::text::bigint
        FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid JOIN pg_class c ON c.oid = i.inhrelid
        WHERE tree.relkind = 'p' AND c.relispartition
    )
    SELECT tree.oid, tree.relkind, tree.attachment % 4294967296 FROM tree
$$;

-- The columns of a table, as walhouse's own reading of the catalog has them.
CREATE OR REPLACE FUNCTION walhouse.ddl_columns(relation oid) RETURNS json
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE attribute AS (
        SELECT attnum, attname, atttypid AS declared, atttypmod AS declared_modifier, atttypid AS type, atttypmod AS modifier,
               attnotnull, attgenerated <> '' AS generated, attstorage <> 'p' AS extended, attndims::int AS dimensions,
               array_to_string(attmissingval, '') AS missing, xmin AS stamp
        FROM pg_attribute WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped AND attgenerated <> 'v'
      UNION ALL
        SELECT attnum, attname, declared, declared_modifier, t.typbasetype, t.typtypmod, attnotnull, generated, extended,
               greatest(dimensions, t.typndims), missing, stamp
        FROM attribute JOIN pg_type t ON t.oid = attribute.type WHERE t.typtype = 'd'
    ), element AS (
        SELECT attnum, t.typelem AS type, modifier FROM attribute JOIN pg_type t ON t.oid = attribute.type
        WHERE t.typtype <> 'd' AND t.typinput = 'array_in'::regproc
      UNION ALL
        SELECT attnum, t.typbasetype, t.typtypmod FROM element JOIN pg_type t ON t.oid = element.type WHERE t.typtype = 'd'
    ), made_of AS (
        -- What comes with PostgreSQL has an oid below 16384, and never changes.
        SELECT DISTINCT type AS whole, type AS part FROM attribute WHERE type >= 16384
      UNION
        SELECT whole, below.type FROM made_of JOIN pg_type t ON t.oid = part CROSS JOIN LATERAL (
            SELECT unnest(ARRAY[t.typbasetype, t.typelem])
            UNION ALL SELECT atttypid FROM pg_attribute WHERE attrelid = nullif(t.typrelid, 0) AND attnum > 0 AND NOT attisdropped
            UNION ALL SELECT rngsubtype FROM pg_range WHERE t.oid IN (rngtypid, rngmultitypid)) below(type)
        WHERE below.type >= 16384
    ), parts AS (
        SELECT whole, string_agg(item.digest, '' ORDER BY item.oid, item.digest) AS digests
        FROM made_of CROSS JOIN LATERAL (
            SELECT oid, left(md5(oid || ':' || enumlabel), 8) FROM pg_enum WHERE enumtypid = part
            UNION ALL SELECT t.oid, left(md5(t.oid || ':' || ARRAY(SELECT attnum || ' ' || atttypid FROM pg_attribute
                WHERE attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped ORDER BY attnum)::text), 8)
            FROM pg_type t WHERE t.oid = part AND t.typtype = 'c') item(oid, digest)
        GROUP BY whole
    ), leaf AS (
        -- A partition root has no rows and so no values for older ones: its leaves have them.
        SELECT a.attname, max(array_to_string(a.attmissingval, '')) AS missing
        FROM walhouse.ddl_tree(relation) t JOIN pg_attribute a ON a.attrelid = t.oid
        WHERE t.kind <> 'p' AND t.oid <> relation AND a.atthasmissing AND NOT a.attisdropped GROUP BY 1
    )
    SELECT coalesce(json_agg(json_strip_nulls(json_build_object(
        'attnum', a.attnum, 'name', a.attname::text,
        'declared_oid', a.declared::bigint, 'declared_modifier', a.declared_modifier,
        'type_oid', a.type::bigint, 'type_modifier', a.modifier, 'type_name', format_type(a.declared, a.declared_modifier),
        'is_enum', nullif(t.typtype = 'e', false), 'is_vector', nullif(t.typname = 'vector' AND t.typtype = 'b', false),
        'element', CASE WHEN e.type IS NOT NULL THEN
            json_build_object('type_oid', e.type::bigint, 'type_modifier', e.modifier, 'is_enum', et.typtype = 'e') END,
        'dimensions', nullif(a.dimensions, 0), 'not_null', nullif(a.attnotnull, false), 'generated', nullif(a.generated, false),
        'storage_toastable', nullif(a.extended AND t.typlen = -1, false),
        'missing', coalesce(l.missing, a.missing), 'stamp', a.stamp::text::bigint,
        'parts', p.digests)) ORDER BY a.attnum), '[]')
    FROM attribute a JOIN pg_type t ON t.oid = a.type
    LEFT JOIN (element e JOIN pg_type et ON et.oid = e.type AND et.typtype <> 'd' AND et.typdelim = ',') ON e.attnum = a.attnum
    LEFT JOIN parts p ON p.whole = a.type
    LEFT JOIN leaf l USING (attname)
    WHERE t.typtype <> 'd'
$$;

-- Everything that walhouse knows of a table; NULL if no publication carries it.
CREATE OR REPLACE FUNCTION walhouse.ddl_describe(relation oid) RETURNS json
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    publications json;
    described json;
BEGIN
    PERFORM FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = relation AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
      AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    publications := walhouse.ddl_publications(relation);
    IF publications IS NULL THEN
        RETURN NULL;
    END IF;
    -- Set by set, since a root may have thousands of partitions and is described whenever one is made.
    WITH tree AS MATERIALIZED (
        SELECT * FROM walhouse.ddl_tree(relation)
    ), key AS MATERIALIZED (
        -- The indexes that may identify rows.
        SELECT i.indrelid, json_agg(json_strip_nulls(json_build_object(
            'primary', nullif(i.indisprimary, false), 'replica', nullif(i.indisreplident, false),
            'immediate', nullif(i.indimmediate, false),
            'columns', ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
                             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                             WHERE k.place <= i.indnkeyatts ORDER BY k.place))) ORDER BY i.indisprimary, i.indisreplident) AS keys
        FROM tree JOIN pg_index i ON i.indrelid = tree.oid
        WHERE (i.indisprimary OR i.indisreplident) AND i.indisvalid GROUP BY i.indrelid
    )
    SELECT json_build_object(
        'oid', c.oid::bigint, 'schema', n.nspname::text, 'name', c.relname::text,
        'root', c.relkind = 'p', 'unlogged', c.relpersistence = 'u', 'identity', c.relreplident::text,
        'columns', walhouse.ddl_columns(c.oid), 'keys', coalesce(own.keys, '[]'), 'publications', publications,
        -- Only partitions that identify their rows in another way than the root.
        'partitions', coalesce((SELECT json_agg(json_build_object('oid', p.oid::bigint, 'schema', pn.nspname::text,
                'name', p.relname::text, 'identity', p.relreplident::text, 'keys', coalesce(key.keys, '[]'))
                ORDER BY pn.nspname, p.relname)
            FROM tree JOIN pg_class p ON p.oid = tree.oid JOIN pg_namespace pn ON pn.oid = p.relnamespace
            LEFT JOIN key ON key.indrelid = p.oid
            WHERE p.oid <> c.oid AND p.relkind <> 'p'
              AND (p.relreplident <> c.relreplident OR key.keys::text IS DISTINCT FROM own.keys::text)), '[]'),
        -- Each as oid, filenode, attachment, and whether it was created as a partition.
        'heaps', coalesce((SELECT json_agg(json_build_array(h.oid::bigint, h.relfilenode::bigint, tree.attachment,
                EXISTS (SELECT FROM pg_attribute a JOIN pg_attribute s ON s.attrelid = a.attrelid AND s.attnum = -1
                        WHERE a.attrelid = h.oid AND a.attnum > 0 AND a.attinhcount > 0 AND a.xmin = s.xmin AND a.cmin = s.cmin))
                ORDER BY h.oid)
            FROM tree JOIN pg_class h ON h.oid = tree.oid WHERE h.relkind = 'r'), '[]'))
    INTO STRICT described
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN key own ON own.indrelid = c.oid
    WHERE c.oid = relation;
    RETURN described;
END $$;

-- Describes these relations, those that inherit from them, the partition roots above them, and the
-- tables that have rows of them as values.
CREATE OR REPLACE FUNCTION walhouse.ddl_tell(relations oid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    described json;
BEGIN
    FOR described IN
        WITH RECURSIVE below AS (
            SELECT unnest(relations || walhouse.ddl_users(ARRAY(SELECT reltype FROM pg_class c WHERE c.oid = ANY (relations)))) AS oid
          UNION
            SELECT i.inhrelid FROM below JOIN pg_inherits i ON i.inhparent = below.oid
            JOIN pg_class c ON c.oid = i.inhrelid AND NOT c.relispartition
        )
        SELECT walhouse.ddl_describe(roots.oid)
        FROM (SELECT DISTINCT coalesce(pg_partition_root(below.oid)::oid, below.oid) AS oid FROM below) roots ORDER BY roots.oid
    LOOP
        IF described IS NOT NULL THEN
            PERFORM walhouse.ddl_emit(json_build_object('v', 1, 'xid', pg_current_xact_id()::text, 'table', described));
        END IF;
    END LOOP;
END $$;

-- The tables with a column whose values are of one of these types, or made of such: arrays, domains,
-- ranges, composite types, and the rows of other tables.
CREATE OR REPLACE FUNCTION walhouse.ddl_users(types oid[]) RETURNS oid[]
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE used AS (
        SELECT unnest(types) AS type, 0::oid AS relation
      UNION
        SELECT coalesce(c.reltype, d.objid), coalesce(c.oid, 0)
        FROM used JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid = used.type AND used.type <> 0
        LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
        WHERE d.classid = 'pg_type'::regclass OR d.objsubid > 0 AND c.relkind IN ('r', 'p', 'c')
    )
    SELECT coalesce(array_agg(DISTINCT c.oid), '{}') FROM used JOIN pg_class c ON c.oid = used.relation AND c.relkind IN ('r', 'p')
$$;

-- After a command. With the rights of its owner, since the key is nobody else's; the settings are those
-- under which walhouse itself reads values.
CREATE OR REPLACE FUNCTION walhouse.ddl_command() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s'
SET "DateStyle" = 'ISO, MDY' SET "IntervalStyle" = 'postgres' SET "TimeZone" = 'UTC' SET bytea_output = 'hex'
SET extra_float_digits = 3 SET lc_monetary = 'C' SET quote_all_identifiers = off AS $$
DECLARE
    relations oid[];
    types oid[];
BEGIN
    SELECT array_agg(coalesce(i.indrelid, c.oid)) FILTER (WHERE c.relkind IN ('r', 'p', 'c') OR i.indrelid IS NOT NULL),
           array_agg(coalesce(t.oid, c.reltype)) FILTER (WHERE t.oid IS NOT NULL OR c.relkind = 'c')
    INTO relations, types
    FROM pg_event_trigger_ddl_commands() d
    LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relpersistence <> 't'
    LEFT JOIN pg_index i ON i.indexrelid = c.oid
    LEFT JOIN pg_type t ON d.classid = 'pg_type'::regclass AND t.oid = d.objid;
    IF types IS NOT NULL THEN
        relations := coalesce(relations, '{}') || walhouse.ddl_users(types)
            || ARRAY(SELECT c.oid FROM pg_class c WHERE c.reloftype = ANY (types));
    END IF;
    IF relations IS NOT NULL THEN
        PERFORM walhouse.ddl_tell(relations);
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'walhouse is not told of this change of shape, and will read the catalog: %', SQLERRM;
END $$;

-- After something was dropped: columns that went with what they needed, and tables.
CREATE OR REPLACE FUNCTION walhouse.ddl_dropped() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s'
SET "DateStyle" = 'ISO, MDY' SET "IntervalStyle" = 'postgres' SET "TimeZone" = 'UTC' SET bytea_output = 'hex'
SET extra_float_digits = 3 SET lc_monetary = 'C' SET quote_all_identifiers = off AS $$
DECLARE
    shrunk oid[];
    gone oid[];
BEGIN
    SELECT array_agg(d.objid) FILTER (WHERE d.objsubid > 0 AND c.oid IS NOT NULL),
           array_agg(d.objid) FILTER (WHERE d.objsubid = 0 AND d.object_type = 'table')
    INTO shrunk, gone
    FROM pg_event_trigger_dropped_objects() d LEFT JOIN pg_class c ON c.oid = d.objid
    WHERE d.classid = 'pg_class'::regclass AND NOT d.is_temporary;
    IF gone IS NOT NULL AND EXISTS (SELECT FROM pg_publication) THEN
        PERFORM walhouse.ddl_emit(json_build_object('v', 1, 'xid', pg_current_xact_id()::text, 'dropped',
            (SELECT json_agg(o::bigint) FROM unnest(gone) o)));
    END IF;
    -- These tell of their own by themselves when they end.
    IF shrunk IS NOT NULL AND tg_tag NOT IN ('ALTER TABLE', 'ALTER TYPE') THEN
        PERFORM walhouse.ddl_tell(shrunk);
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'walhouse is not told of this change of shape, and will read the catalog: %', SQLERRM;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA walhouse FROM PUBLIC;

DROP EVENT TRIGGER IF EXISTS walhouse_ddl;
CREATE EVENT TRIGGER walhouse_ddl ON ddl_command_end
    WHEN TAG IN ('ALTER TABLE', 'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE SCHEMA', 'ALTER INDEX', 'ALTER TYPE',
                 'ALTER DOMAIN', 'CREATE EXTENSION', 'ALTER EXTENSION')
    EXECUTE FUNCTION walhouse.ddl_command();
ALTER EVENT TRIGGER walhouse_ddl ENABLE ALWAYS;
DROP EVENT TRIGGER IF EXISTS walhouse_drop;
CREATE EVENT TRIGGER walhouse_drop ON sql_drop EXECUTE FUNCTION walhouse.ddl_dropped();
ALTER EVENT TRIGGER walhouse_drop ENABLE ALWAYS;
