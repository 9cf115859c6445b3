//! The columns of tables, their types resolved to what the text of their values is made of.

use std::collections::HashMap;

use tokio_postgres::Client;

use crate::{
    event::{ElementType, SourceColumn},
    postgres::sql::SqlError,
};

/// The columns of these tables, by the tables' oids.
pub(super) async fn read(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Vec<SourceColumn>>, SqlError> {
    // A domain over a domain has its modifier where the chain ends. An array's modifier is that of its
    // elements, unless these are of a domain. `array_in` tells arrays from what is only like one. A
    // virtual generated column is in no row, and so in no publication. What comes with PostgreSQL has
    // an oid below 16384, and never changes.
    let statement = "WITH RECURSIVE attribute AS ( \
                         SELECT attrelid, attnum, attname, atttypid AS declared, atttypmod AS declared_modifier, \
                                atttypid AS type, atttypmod AS modifier, attnotnull, attgenerated <> '' AS generated, \
                                attstorage <> 'p' AS extended, attndims::int4 AS dimensions, \
                                array_to_string(attmissingval, '') AS missing, xmin AS stamp \
                         FROM pg_attribute WHERE attrelid = ANY($1) AND attnum > 0 AND NOT attisdropped AND attgenerated <> 'v' \
                       UNION ALL \
                         SELECT attrelid, attnum, attname, declared, declared_modifier, t.typbasetype, t.typtypmod, \
                                attnotnull, generated, extended, greatest(dimensions, t.typndims), missing, stamp \
                         FROM attribute JOIN pg_type t ON t.oid = attribute.type WHERE t.typtype = 'd'), \
                     element AS ( \
                         SELECT attrelid, attnum, t.typelem AS type, modifier \
                         FROM attribute JOIN pg_type t ON t.oid = attribute.type \
                         WHERE t.typtype <> 'd' AND t.typinput = 'pg_catalog.array_in'::regproc \
                       UNION ALL \
                         SELECT attrelid, attnum, t.typbasetype, t.typtypmod \
                         FROM element JOIN pg_type t ON t.oid = element.type WHERE t.typtype = 'd'), \
                     made_of AS ( \
                         SELECT DISTINCT type AS whole, type AS part FROM attribute WHERE type >= 16384 \
                       UNION \
                         SELECT whole, below.type FROM made_of JOIN pg_type t ON t.oid = part CROSS JOIN LATERAL ( \
                             SELECT unnest(ARRAY[t.typbasetype, t.typelem]) \
                             UNION ALL SELECT atttypid FROM pg_attribute \
                                 WHERE attrelid = nullif(t.typrelid, 0) AND attnum > 0 AND NOT attisdropped \
                             UNION ALL SELECT rngsubtype FROM pg_range WHERE t.oid IN (rngtypid, rngmultitypid)) below(type) \
                         WHERE below.type >= 16384), \
                     parts AS ( \
                         SELECT whole, string_agg(left(md5(item.oid || ':' || item.text), 8), '' ORDER BY item.oid, item.text) AS digests \
                         FROM made_of CROSS JOIN LATERAL ( \
                             SELECT oid, enumlabel::text FROM pg_enum WHERE enumtypid = part \
                             UNION ALL SELECT t.oid, ARRAY(SELECT attnum || ' ' || atttypid FROM pg_attribute \
                                 WHERE attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped ORDER BY attnum)::text \
                             FROM pg_type t WHERE t.oid = part AND t.typtype = 'c') item(oid, text) \
                         GROUP BY whole) \
                     SELECT a.attrelid, a.attnum, attname::text, a.type, a.modifier, t.typtype = 'e', attnotnull, generated, \
                            extended AND t.typlen = -1, declared, declared_modifier, \
                            format_type(declared, declared_modifier), t.typname = 'vector' AND t.typtype = 'b', \
                            dimensions, e.type, e.modifier, et.typtype = 'e', missing, stamp::text::bigint, \
                            p.digests \
                     FROM attribute a JOIN pg_type t ON t.oid = a.type \
                     LEFT JOIN (element e JOIN pg_type et ON et.oid = e.type AND et.typtype <> 'd' AND et.typdelim = ',') \
                         ON e.attrelid = a.attrelid AND e.attnum = a.attnum \
                     LEFT JOIN parts p ON p.whole = a.type \
                     WHERE t.typtype <> 'd' ORDER BY a.attrelid, a.attnum";
    let mut columns: HashMap<u32, Vec<SourceColumn>> = HashMap::new();
    for row in client.query(statement, &[&oids]).await? {
        let column = SourceColumn {
            attnum: row.try_get(1)?,
            name: row.try_get(2)?,
            type_oid: row.try_get(3)?,
            type_modifier: row.try_get(4)?,
            type_name: row.try_get(11)?,
            is_enum: row.try_get(5)?,
            is_vector: row.try_get(12)?,
            element: element(&row)?,
            dimensions: u16::try_from(row.try_get::<_, i32>(13)?).unwrap_or_default(),
            not_null: row.try_get(6)?,
            generated: row.try_get(7)?,
            key_position: None,
            storage_toastable: row.try_get(8)?,
            declared_oid: row.try_get(9)?,
            declared_modifier: row.try_get(10)?,
            missing: row.try_get(17)?,
            stamp: u32::try_from(row.try_get::<_, i64>(18)?).unwrap_or_default(),
            parts: row.try_get::<_, Option<String>>(19)?.unwrap_or_default(),
        };
        columns.entry(row.try_get(0)?).or_default().push(column);
    }
    Ok(columns)
}

fn element(row: &tokio_postgres::Row) -> Result<Option<ElementType>, SqlError> {
    let Some(type_oid) = row.try_get(14)? else { return Ok(None) };
    Ok(Some(ElementType { type_oid, type_modifier: row.try_get(15)?, is_enum: row.try_get(16)? }))
}

/// A partition root has no rows and so no values for older ones: its leaves have them.
pub(super) async fn note_missing(
    client: &Client,
    roots: &[u32],
    columns: &mut HashMap<u32, Vec<SourceColumn>>,
) -> Result<(), SqlError> {
    let statement = "SELECT root.oid, a.attname::text, max(array_to_string(a.attmissingval, '')) \
                     FROM unnest($1::oid[]) AS root(oid), pg_partition_tree(root.oid) AS leaf \
                     JOIN pg_attribute a ON a.attrelid = leaf.relid \
                     WHERE leaf.isleaf AND leaf.level > 0 AND a.atthasmissing AND NOT a.attisdropped GROUP BY 1, 2";
    for row in client.query(statement, &[&roots]).await? {
        let (root, name): (u32, &str) = (row.try_get(0)?, row.try_get(1)?);
        let column = columns.get_mut(&root).and_then(|columns| columns.iter_mut().find(|column| column.name == name));
        if let Some(column) = column {
            column.missing = row.try_get(2)?;
        }
    }
    Ok(())
}
