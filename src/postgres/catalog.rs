//! The tables that are meant, as the catalog shows them *now*, with what of them is published.
//!
//! A table is listed with its columns and with the key that identifies its rows in ClickHouse, or
//! with the reason why it has none: such a table must never enter the publication, since PostgreSQL
//! would then refuse the application's UPDATEs and DELETEs. Partitions are not listed: their root
//! stands for them (`publish_via_partition_root`).
//!
//! A key is usable when old rows carry it and it is unique at every moment:
//! <https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-REPLICA-IDENTITY>.

mod columns;
mod types;

use std::collections::HashMap;

use tokio_postgres::Client;

use super::{
    publication::{self, Membership},
    sql::SqlError,
};
use crate::{
    config::SourceConfig,
    event::{Heap, KeyKind, Lsn, ReplicaIdentity, SourceColumn, SourceTable, TableKind},
    quote,
};

/// What one snapshot of the catalog shows: a table that is in it and not among the members was not
/// dropped, it is not published.
pub struct Listing {
    /// The tables that are meant, by schema and name.
    pub tables: Vec<SourceTable>,
    /// What the publication carries, by oid; of tables that are not meant too.
    pub memberships: HashMap<u32, Membership>,
    /// A WAL position that the read is not newer than.
    pub position: Lsn,
}

/// The tables that `source.tables` matches.
pub async fn tables(client: &Client, source: &SourceConfig) -> Result<Listing, SqlError> {
    let filter = source.table_filter();
    let read = async {
        client.batch_execute(SNAPSHOT).await?;
        let position = position(client).await?;
        let mut listed = relations(client, None).await?;
        listed.retain(|relation| filter.matches(&relation.schema, &relation.name));
        let (tables, memberships) = described(client, source, listed).await?;
        Ok(Listing { tables, memberships, position })
    };
    ended(client, read.await).await
}

/// One table, if it is there, and a WAL position that the read is not newer than.
pub async fn table(client: &Client, source: &SourceConfig, oid: u32) -> Result<Option<(SourceTable, Lsn)>, SqlError> {
    let read = async {
        client.batch_execute(SNAPSHOT).await?;
        one(client, source, oid).await
    };
    ended(client, read.await).await
}

/// One table, if it is there, and a WAL position: commits from there on, and none before, write it
/// in this shape or a later one.
pub async fn table_at(
    client: &Client,
    source: &SourceConfig,
    table: &SourceTable,
) -> Result<Option<(SourceTable, Lsn)>, SqlError> {
    // The lock keeps the shape as it is between the two reads; the snapshot comes after it.
    let lock = format!(
        "{SNAPSHOT}; SET LOCAL lock_timeout = '2s'; LOCK TABLE ONLY {} IN ACCESS SHARE MODE",
        quote::postgres_table(&table.schema, &table.name)
    );
    let read = async {
        client.batch_execute(&lock).await?;
        one(client, source, table.oid).await
    };
    let found = ended(client, read.await).await?;
    // The name may have gone to another table meanwhile: then the lock was for nothing.
    Ok(found.filter(|(now, _)| (&now.schema, &now.name) == (&table.schema, &table.name)))
}

/// One snapshot for all that is read, so that a rewrite is seen whole or not at all.
const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

async fn ended<T>(client: &Client, outcome: Result<T, SqlError>) -> Result<T, SqlError> {
    let ended = client.batch_execute("ROLLBACK").await;
    let value = outcome?;
    ended?;
    Ok(value)
}

/// Read with the transaction's snapshot or after it: what that shows was written before.
async fn position(client: &Client) -> Result<Lsn, SqlError> {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
    let position: &str = row.try_get(0)?;
    Ok(position.parse().unwrap_or_default())
}

async fn one(client: &Client, source: &SourceConfig, oid: u32) -> Result<Option<(SourceTable, Lsn)>, SqlError> {
    let position = position(client).await?;
    let listed = relations(client, Some(oid)).await?;
    let (mut described, _) = described(client, source, listed).await?;
    Ok(described.pop().map(|table| (table, position)))
}

async fn described(
    client: &Client,
    source: &SourceConfig,
    listed: Vec<Relation>,
) -> Result<(Vec<SourceTable>, HashMap<u32, Membership>), SqlError> {
    let oids: Vec<u32> = listed.iter().map(|relation| relation.oid).collect();
    let mut columns = columns::read(client, &oids).await?;
    let partitions = partitions(client, &oids).await?;
    let below = partitions.values().flatten().map(|partition| partition.oid);
    let with_partitions: Vec<u32> = oids.iter().copied().chain(below).collect();
    let keys = keys(client, &with_partitions).await?;
    let mut heaps = heaps(client, &with_partitions).await?;
    columns::note_missing(client, &oids, &mut columns).await?;
    let tables = listed.into_iter().map(|relation| {
        let columns = columns.remove(&relation.oid).unwrap_or_default();
        let own = partitions.get(&relation.oid).map_or(&[][..], Vec::as_slice);
        let below = own.iter().map(|partition| partition.oid);
        let heaps = below.chain([relation.oid]).filter_map(|oid| heaps.remove(&oid)).collect();
        SourceTable { heaps, ..relation.into_table(columns, &keys, own) }
    });
    publication::published(client, &source.publication, tables.collect()).await
}

/// A row of `pg_class`.
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) kind: TableKind,
    pub(super) unlogged: bool,
    pub(super) identity: ReplicaIdentity,
}

/// All tables, or one.
async fn relations(client: &Client, oid: Option<u32>) -> Result<Vec<Relation>, SqlError> {
    let statement = "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', c.relpersistence = 'u', \
                            c.relreplident::text \
                     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                     WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't' \
                       AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND ($1::oid IS NULL OR c.oid = $1) \
                     ORDER BY n.nspname, c.relname";
    let rows = client.query(statement, &[&oid]).await?;
    let read = |row: &tokio_postgres::Row| -> Result<Relation, SqlError> {
        Ok(Relation {
            oid: row.try_get(0)?,
            schema: row.try_get(1)?,
            name: row.try_get(2)?,
            kind: if row.try_get(3)? { TableKind::PartitionRoot } else { TableKind::Table },
            unlogged: row.try_get(4)?,
            identity: identity(row.try_get(5)?),
        })
    };
    rows.iter().map(read).collect()
}

/// A letter of a later PostgreSQL counts as no identity, so that its table is refused and not guessed at.
pub(super) fn identity(letter: &str) -> ReplicaIdentity {
    letter.bytes().next().and_then(ReplicaIdentity::from_letter).unwrap_or(ReplicaIdentity::Nothing)
}

/// A partition below a listed root, on any level.
pub(super) struct Partition {
    pub(super) oid: u32,
    pub(super) quoted: String,
    pub(super) identity: ReplicaIdentity,
}

async fn partitions(client: &Client, roots: &[u32]) -> Result<HashMap<u32, Vec<Partition>>, SqlError> {
    let statement = "SELECT root.oid, c.oid, n.nspname::text, c.relname::text, c.relreplident::text \
                     FROM unnest($1::oid[]) AS root(oid), pg_partition_tree(root.oid) AS leaf \
                     JOIN pg_class c ON c.oid = leaf.relid JOIN pg_namespace n ON n.oid = c.relnamespace \
                     WHERE leaf.isleaf AND leaf.level > 0 ORDER BY root.oid, n.nspname, c.relname";
    let mut partitions: HashMap<u32, Vec<Partition>> = HashMap::new();
    for row in client.query(statement, &[&roots]).await? {
        let quoted = quote::postgres_table(row.try_get(2)?, row.try_get(3)?);
        let partition = Partition { oid: row.try_get(1)?, quoted, identity: identity(row.try_get(4)?) };
        partitions.entry(row.try_get(0)?).or_default().push(partition);
    }
    Ok(partitions)
}

/// The heaps among these relations.
///
/// A partition that was created as one has columns whose rows in the catalog are as old as the
/// table: the same command wrote them and those of the system columns, which nothing ever alters.
/// To attach a table writes them anew.
async fn heaps(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Heap>, SqlError> {
    let statement = "SELECT c.oid, c.relfilenode, \
                            (SELECT coalesce(sum(i.xmin::text::bigint), 0) % 4294967296 \
                             FROM pg_partition_ancestors(c.oid) a JOIN pg_inherits i ON i.inhrelid = a.relid)::bigint, \
                            EXISTS (SELECT FROM pg_attribute a JOIN pg_attribute s ON s.attrelid = a.attrelid AND s.attnum = -1 \
                                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attinhcount > 0 \
                                      AND a.xmin = s.xmin AND a.cmin = s.cmin) \
                     FROM pg_class c WHERE c.oid = ANY($1) AND c.relkind = 'r'";
    let mut heaps = HashMap::new();
    for row in client.query(statement, &[&oids]).await? {
        let oid = row.try_get(0)?;
        let attachment = u32::try_from(row.try_get::<_, i64>(2)?).unwrap_or_default();
        heaps.insert(oid, Heap { oid, filenode: row.try_get(1)?, attachment, born_partition: row.try_get(3)? });
    }
    Ok(heaps)
}

/// The indexes of a table that may identify its rows.
#[derive(Default)]
pub(super) struct Keys {
    pub(super) primary: Option<Index>,
    pub(super) replica: Option<Index>,
}

#[derive(Clone)]
pub(super) struct Index {
    pub(super) immediate: bool,
    /// By name, since a partition may number its columns differently.
    pub(super) columns: Vec<String>,
}

async fn keys(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Keys>, SqlError> {
    let statement = "SELECT i.indrelid, i.indisprimary, i.indisreplident, i.indimmediate, \
                            ARRAY(SELECT a.attname::text \
                                  FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place) \
                                  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
                                  WHERE k.place <= i.indnkeyatts ORDER BY k.place) \
                     FROM pg_index i \
                     WHERE i.indrelid = ANY($1) AND (i.indisprimary OR i.indisreplident) AND i.indisvalid";
    let mut keys: HashMap<u32, Keys> = HashMap::new();
    for row in client.query(statement, &[&oids]).await? {
        let entry = keys.entry(row.try_get(0)?).or_default();
        let index = Index { immediate: row.try_get(3)?, columns: row.try_get(4)? };
        if row.try_get(1)? {
            entry.primary = Some(index.clone());
        }
        if row.try_get(2)? {
            entry.replica = Some(index);
        }
    }
    Ok(keys)
}

impl Relation {
    pub(super) fn into_table(
        self,
        mut columns: Vec<SourceColumn>,
        keys: &HashMap<u32, Keys>,
        partitions: &[Partition],
    ) -> SourceTable {
        let key = self.key(&columns, keys, partitions).map(|(kind, names)| {
            for (place, name) in (0_u16..).zip(names) {
                if let Some(column) = columns.iter_mut().find(|column| column.name == *name) {
                    column.key_position = Some(place);
                }
            }
            kind
        });
        let Self { oid, schema, name, kind, identity, .. } = self;
        SourceTable {
            oid,
            schema,
            name,
            kind,
            replica_identity: identity,
            columns,
            key,
            heaps: Vec::new(),
            filter: None,
        }
    }

    fn key<'k>(
        &self,
        columns: &[SourceColumn],
        keys: &'k HashMap<u32, Keys>,
        partitions: &[Partition],
    ) -> Result<(KeyKind, &'k [String]), String> {
        let table = quote::postgres_table(&self.schema, &self.name);
        if self.unlogged {
            return Err(format!(
                "it is unlogged, so nothing of it is in the WAL; ALTER TABLE {table} SET LOGGED, or exclude it"
            ));
        }
        let (kind, names) = choose(self.identity, keys.get(&self.oid), &table)?;
        if let Some(column) = columns.iter().find(|column| column.generated && names.contains(&column.name)) {
            return Err(format!(
                "its key column {:?} is generated, and the publication does not carry it; choose another key with REPLICA IDENTITY USING INDEX",
                column.name
            ));
        }
        for partition in partitions {
            let same = partition.identity == self.identity
                && (kind == KeyKind::FullWithoutKey
                    || choose(partition.identity, keys.get(&partition.oid), &partition.quoted)?.1 == names);
            if !same {
                return Err(format!(
                    "its partition {leaf} identifies rows in another way, which ALTER TABLE on the root does not change; \
                     give both the same: ALTER TABLE {leaf} REPLICA IDENTITY …",
                    leaf = partition.quoted
                ));
            }
        }
        Ok((kind, names))
    }
}

/// The key that a replica identity leaves to old rows.
fn choose<'k>(
    identity: ReplicaIdentity,
    keys: Option<&'k Keys>,
    table: &str,
) -> Result<(KeyKind, &'k [String]), String> {
    let primary = keys.and_then(|keys| keys.primary.as_ref());
    let log = format!("or, for a log of its changes, ALTER TABLE {table} REPLICA IDENTITY FULL");
    match identity {
        ReplicaIdentity::Default => match primary {
            Some(index) if index.immediate => Ok((KeyKind::PrimaryKey, index.columns.as_slice())),
            Some(_) => Err(format!(
                "its primary key is deferrable, so two rows may hold one key for a while; \
                 make it immediate, or ALTER TABLE {table} REPLICA IDENTITY USING INDEX …, {log}"
            )),
            None => Err(format!(
                "it has no primary key; ALTER TABLE {table} ADD PRIMARY KEY (…), \
                 or ALTER TABLE {table} REPLICA IDENTITY USING INDEX …, {log}"
            )),
        },
        ReplicaIdentity::Full => Ok(match primary.filter(|index| index.immediate) {
            Some(index) => (KeyKind::FullWithPrimaryKey, index.columns.as_slice()),
            None => (KeyKind::FullWithoutKey, &[]),
        }),
        ReplicaIdentity::Index => match keys.and_then(|keys| keys.replica.as_ref()) {
            // It can not be a deferrable one.
            Some(index) => Ok((KeyKind::Index, index.columns.as_slice())),
            None => Err(format!(
                "the index of its replica identity is gone; ALTER TABLE {table} REPLICA IDENTITY DEFAULT or USING INDEX …"
            )),
        },
        ReplicaIdentity::Nothing => {
            Err(format!("its replica identity is NOTHING; ALTER TABLE {table} REPLICA IDENTITY DEFAULT"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(immediate: bool) -> Option<Index> {
        Some(Index { immediate, columns: vec!["id".to_owned()] })
    }

    fn kind(identity: ReplicaIdentity, primary: Option<Index>, replica: Option<Index>) -> Result<KeyKind, String> {
        choose(identity, Some(&Keys { primary, replica }), "\"public\".\"t\"").map(|(kind, _)| kind)
    }

    #[test]
    fn a_key_is_what_old_rows_carry() {
        use ReplicaIdentity::{Default, Full, Index, Nothing};
        assert_eq!(kind(Default, index(true), None), Ok(KeyKind::PrimaryKey));
        assert_eq!(kind(Full, index(true), None), Ok(KeyKind::FullWithPrimaryKey));
        assert_eq!(kind(Index, index(true), index(true)), Ok(KeyKind::Index));
        assert_eq!(kind(Index, index(false), index(true)), Ok(KeyKind::Index));
        assert!(kind(Default, None, None).expect_err("no key").contains("ADD PRIMARY KEY"));
        assert!(kind(Default, index(false), None).expect_err("deferrable").contains("deferrable"));
        assert_eq!(kind(Full, None, None), Ok(KeyKind::FullWithoutKey));
        assert_eq!(
            kind(Full, index(false), None),
            Ok(KeyKind::FullWithoutKey),
            "two rows may hold one key for a while"
        );
        assert!(kind(Index, index(true), None).expect_err("dropped index").contains("is gone"));
        assert!(kind(Nothing, index(true), None).expect_err("nothing").contains("NOTHING"));
    }
}
