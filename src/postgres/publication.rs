//! The publication: what of the source it carries.
//!
//! A table's membership has an identity that changes whenever what is published of it does, so a
//! table that left for a moment is noticed: nothing in the stream tells of it.

use super::sql::SqlError;
use crate::{
    event::{ReplicaIdentity, SourceColumn, SourceTable},
    quote,
    retry::Kind,
};
use std::collections::HashMap;
use tokio_postgres::{Client, error::SqlState};

/// The publication.
#[derive(Clone, Debug)]
pub struct Publication {
    /// `pg_publication.oid`.
    pub oid: u32,
    /// What changes whenever it is altered or made anew.
    pub identity: String,
    /// Whether it carries stored generated columns (PostgreSQL 18).
    pub generated: bool,
}

/// Looks at the publication; `None` if there is none of this name.
///
/// # Errors
/// If it leaves out what a true copy needs.
pub async fn publication(client: &Client, name: &str) -> Result<Option<Publication>, SqlError> {
    let row = client
        .query_opt(
            "SELECT oid, oid || ':' || xmin, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot, \
                    coalesce(to_jsonb(p) ->> 'pubgencols', 'n') = 's' FROM pg_publication p WHERE pubname = $1",
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let (all, via_root): (bool, bool) = (row.try_get(2)?, row.try_get(3)?);
    let quoted = quote::postgres(name);
    if !all {
        return Err(SqlError::definite(format!(
            "the publication {name} does not publish every kind of change, so the copy would drift; run ALTER PUBLICATION \
             {quoted} SET (publish = 'insert, update, delete, truncate')"
        )));
    }
    if !via_root {
        return Err(SqlError::definite(format!(
            "the publication {name} publishes partitions as tables of their own; run ALTER PUBLICATION {quoted} SET \
             (publish_via_partition_root = true)"
        )));
    }
    Ok(Some(Publication { oid: row.try_get(0)?, identity: row.try_get(1)?, generated: row.try_get(4)? }))
}

/// Creates the publication, without any table.
pub async fn create_publication(client: &Client, name: &str) -> Result<Publication, SqlError> {
    let quoted = quote::postgres(name);
    client.batch_execute(&format!("CREATE PUBLICATION {quoted} WITH (publish_via_partition_root = true)")).await?;
    tracing::info!(publication = name, "publication created");
    let created = publication(client, name).await?;
    created.ok_or_else(|| SqlError::definite(format!("the publication {name} vanished while it was looked at")))
}

/// A table's membership in the publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// What changes whenever the table leaves and comes back, or its filter or columns change.
    pub identity: String,
    /// The attribute numbers of the columns that are published; `None` for all that can be.
    columns: Option<Vec<i16>>,
    /// Which rows are published; `None` for all.
    filter: Option<String>,
    /// Whether stored generated columns are published without being listed.
    generated: bool,
}

impl Membership {
    /// That of a table which is added without a list of columns or a filter.
    fn whole(generated: bool) -> Self {
        Self { identity: String::new(), columns: None, filter: None, generated }
    }

    /// As a DDL message tells of it; its identity is the catalog's to tell.
    pub(super) fn told(columns: Option<Vec<i16>>, filter: Option<String>, generated: bool) -> Self {
        Self { identity: String::new(), columns, filter, generated }
    }

    /// The table with what of it is published. One that is published without its key has none.
    pub(super) fn narrowed(&self, table: SourceTable) -> SourceTable {
        match self.published(&table) {
            Ok(published) => published,
            Err(reason) => SourceTable { key: table.key.clone().and(Err(reason)), ..table },
        }
    }

    /// What of a table is published: what the stream carries, and the copy has to read.
    ///
    /// # Errors
    /// If a column of its key is not. PostgreSQL then refuses the application's UPDATEs and DELETEs.
    fn published(&self, table: &SourceTable) -> Result<SourceTable, String> {
        let carried = |column: &SourceColumn| match &self.columns {
            Some(listed) => listed.contains(&column.attnum),
            None => self.generated || !column.generated,
        };
        if self.columns.is_some() && table.replica_identity == ReplicaIdentity::Full {
            return Err("the publication lists columns of it, which PostgreSQL does not take together with REPLICA \
                        IDENTITY FULL: publish all of its columns, or change its replica identity"
                .to_owned());
        }
        let missing = table.columns.iter().find(|column| column.key_position.is_some() && !carried(column));
        if let Some(column) = missing {
            return Err(format!(
                "the publication does not carry {}, a column of its key, and so PostgreSQL refuses its UPDATEs and DELETEs: \
                 add it to the publication's list",
                column.name
            ));
        }
        let columns = table.columns.iter().filter(|column| carried(column)).cloned().collect();
        Ok(SourceTable { columns, filter: self.filter.clone(), ..table.clone() })
    }
}

/// The publication's tables, by oid; `only` one of them, if it is one.
pub async fn memberships(
    client: &Client,
    publication: &Publication,
    only: Option<u32>,
) -> Result<HashMap<u32, Membership>, SqlError> {
    let row = client.query_one("SELECT to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL", &[]).await?;
    // Lists of columns, filters and schemas came with PostgreSQL 15.
    let fifteen: bool = row.try_get(0)?;
    let filter = if fifteen { "pg_get_expr(prqual, prrelid)" } else { "NULL::text" };
    let rows = client
        .query(
            &format!(
                "SELECT prrelid, 'table ' || oid || ':' || xmin || ':' || md5(to_jsonb(r)::text), \
                        string_to_array(translate(to_jsonb(r) ->> 'prattrs', '[,]', ''), ' ')::int2[], {filter} \
                 FROM pg_publication_rel r WHERE prpubid = $1 AND prrelid = coalesce($2, prrelid) \
                 UNION ALL SELECT c.oid, 'all', NULL, NULL FROM pg_class c, pg_publication p \
                 WHERE p.oid = $1 AND p.puballtables AND c.relkind IN ('r', 'p') AND c.oid = coalesce($2, c.oid)"
            ),
            &[&publication.oid, &only],
        )
        .await?;
    let mut found = HashMap::new();
    for row in rows {
        let (identity, columns, filter) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        found.insert(row.try_get(0)?, Membership { identity, columns, filter, generated: publication.generated });
    }
    if !fifteen {
        return Ok(found);
    }
    let schemas = "SELECT c.oid, 'schema ' || n.oid || ':' || n.xmin FROM pg_publication_namespace n \
                   JOIN pg_class c ON c.relnamespace = n.pnnspid AND c.relkind IN ('r', 'p') \
                   WHERE n.pnpubid = $1 AND c.oid = coalesce($2, c.oid)";
    for row in client.query(schemas, &[&publication.oid, &only]).await? {
        let identity: String = row.try_get(1)?;
        let entry = found.entry(row.try_get(0)?);
        let of_both = |membership: &mut Membership| {
            // With its schema, all rows of a table are published, whatever its own filter says.
            membership.filter = None;
            membership.identity = format!("{}, {identity}", membership.identity);
        };
        entry
            .and_modify(of_both)
            .or_insert_with(|| Membership { identity, ..Membership::whole(publication.generated) });
    }
    Ok(found)
}

/// The tables with what of them is published, or would be if they were added, and the publication's
/// own. One that is published without its key has none.
pub(super) async fn published(
    client: &Client,
    name: &str,
    tables: Vec<SourceTable>,
) -> Result<(Vec<SourceTable>, HashMap<u32, Membership>), SqlError> {
    let publication = match publication(client, name).await {
        Ok(publication) => publication,
        // Its settings are refused, not the question: nothing is streamed through it.
        Err(error) if error.code().is_none() && error.kind() == Kind::Definite => None,
        Err(error) => return Err(error),
    };
    let memberships = match &publication {
        Some(publication) => memberships(client, publication, None).await?,
        None => HashMap::new(),
    };
    let whole = Membership::whole(publication.is_some_and(|publication| publication.generated));
    let narrowed = |table: SourceTable| memberships.get(&table.oid).unwrap_or(&whole).narrowed(table);
    let tables = tables.into_iter().map(narrowed).collect();
    Ok((tables, memberships))
}

/// How long the lock that [`add_to_publication`] needs is waited for. While it waits, so does every
/// writer that comes after it: the application must not stand still behind a forgotten session.
const LOCK_PATIENCE: &str = "2s";

/// Adds a table to the publication. Writers of the table are kept out in the same transaction, so
/// that no change of it is neither streamed nor copied. `false` if the lock was not to be had:
/// try again later.
pub async fn add_to_publication(client: &Client, publication: &str, table: &str) -> Result<bool, SqlError> {
    let statement = format!(
        "BEGIN; SET LOCAL lock_timeout = '{LOCK_PATIENCE}'; LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE; \
         ALTER PUBLICATION {} ADD TABLE {table}; COMMIT",
        quote::postgres(publication)
    );
    let Err(error) = client.batch_execute(&statement).await else { return Ok(true) };
    client.batch_execute("ROLLBACK").await?;
    if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) { Ok(false) } else { Err(error.into()) }
}

/// The table, or a partition of it, whose rows nobody could update or delete any more once they are published.
pub async fn without_identity(client: &Client, oid: u32) -> Result<Option<String>, SqlError> {
    let row = client
        .query_opt(
            "SELECT c.oid::regclass::text FROM pg_class c \
             WHERE c.oid IN (SELECT $1::oid UNION SELECT relid FROM pg_partition_tree($1::oid::regclass)) \
             AND NOT CASE c.relreplident WHEN 'f' THEN true WHEN 'n' THEN false \
             ELSE EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate \
                          AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END) END LIMIT 1",
            &[&oid],
        )
        .await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}
