//! The columns of tables, their types resolved to what the text of their values is made of.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::Client;

use super::types::Types;
use crate::{event::SourceColumn, postgres::sql::SqlError};

/// The columns of these tables, by the tables' oids. What types there are is read on its own, and laid
/// together here: in one statement over hundreds of tables, a server without statistics of its catalog
/// compares every column with every other.
pub(super) async fn read(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Vec<SourceColumn>>, SqlError> {
    // A virtual generated column is in no row, and so in no publication.
    let statement = "SELECT attrelid, attnum, attname::text, atttypid, atttypmod, attndims::int4, format_type(atttypid, atttypmod), \
                            attnotnull, attgenerated <> '', attstorage <> 'p', array_to_string(attmissingval, ''), \
                            xmin::text::bigint \
                     FROM pg_attribute \
                     WHERE attrelid = ANY($1) AND attnum > 0 AND NOT attisdropped AND attgenerated <> 'v' \
                     ORDER BY attrelid, attnum";
    let rows = client.query(statement, &[&oids]).await?;
    let declared = rows.iter().map(|row| row.try_get(3)).collect::<Result<BTreeSet<u32>, _>>()?;
    let types = Types::read(client, &declared).await?;
    let mut columns: HashMap<u32, Vec<SourceColumn>> = HashMap::new();
    for row in rows {
        let (declared_oid, declared_modifier) = (row.try_get(3)?, row.try_get(4)?);
        let resolved = types.resolved(declared_oid, declared_modifier, row.try_get(5)?)?;
        let column = SourceColumn {
            attnum: row.try_get(1)?,
            name: row.try_get(2)?,
            type_oid: resolved.ty.oid,
            type_modifier: resolved.modifier,
            type_name: row.try_get(6)?,
            is_enum: resolved.ty.is_enum,
            is_vector: resolved.ty.is_vector,
            element: types.element(&resolved)?,
            dimensions: u16::try_from(resolved.dimensions).unwrap_or_default(),
            not_null: row.try_get(7)?,
            generated: row.try_get(8)?,
            key_position: None,
            storage_toastable: row.try_get::<_, bool>(9)? && resolved.ty.has_length,
            declared_oid,
            declared_modifier,
            missing: row.try_get(10)?,
            stamp: u32::try_from(row.try_get::<_, i64>(11)?).unwrap_or_default(),
            parts: types.parts(resolved.ty),
        };
        columns.entry(row.try_get(0)?).or_default().push(column);
    }
    Ok(columns)
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
