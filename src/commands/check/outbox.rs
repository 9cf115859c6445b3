//! Whether events that applications write into the outbox table can be read, and are published.

use tokio_postgres::Client;

use super::{Found, failed, fine, warning};
use crate::{
    config::Config,
    postgres::{publication, sql::SqlError},
    quote,
};

/// What makes the table.
const MIGRATION: &str = "psql -f migrations/postgres/0002_outbox_event.sql";
/// Without these columns no row of it is an event.
const NEEDED: [&str; 2] = ["event_type", "payload"];
/// An event's id is a UUID, in whatever type it is kept.
const OF_AN_ID: [&str; 4] = ["uuid", "text", "varchar", "bpchar"];

/// `None` without `[queue]`.
pub(super) async fn look_at_outbox(client: &Client, config: &Config) -> Result<Option<Found>, SqlError> {
    let Some((schema, name)) = config.queue.as_ref().map(crate::config::QueueConfig::outbox) else { return Ok(None) };
    let table = quote::postgres_table(&schema, &name);
    let statement = "SELECT c.oid, ARRAY(SELECT a.attname::text FROM pg_attribute a \
                            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
                        (SELECT t.typname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
                            WHERE a.attrelid = c.oid AND a.attname = 'id' AND NOT a.attisdropped), \
                        EXISTS (SELECT FROM pg_publication_tables p \
                            WHERE p.pubname = $2 AND p.schemaname = n.nspname AND p.tablename = c.relname), \
                        pg_has_role(current_user, c.relowner, 'USAGE'), current_user::text \
                     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)";
    let publication = &config.source.publication;
    let Some(row) = client.query_opt(statement, &[&table, publication]).await? else {
        let what = format!("{table} is not there: events come as logical messages alone");
        return Ok(Some(warning(what, format!("{MIGRATION}, or correct queue.outbox_table"))));
    };
    let (oid, columns, id): (u32, Vec<String>, Option<String>) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let (published, owned, user): (bool, bool, &str) = (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
    let found = if let Some(misshapen) = misshapen(&table, &columns, id.as_deref()) {
        misshapen
    } else if let Some(leaf) = publication::without_identity(client, oid).await? {
        failed(
            format!(
                "{leaf} has no usable replica identity, so nobody could update or delete its rows once it is published"
            ),
            format!("ALTER TABLE {leaf} ADD PRIMARY KEY (id)"),
        )
    } else if published {
        fine(format!("{table} is published"))
    } else if owned {
        fine(format!("{table} will be published"))
    } else {
        let (publication, role) = (quote::postgres(publication), quote::postgres(user));
        failed(
            format!("{table} is not published, and {role} does not own it"),
            format!("let its owner ALTER PUBLICATION {publication} ADD TABLE {table}"),
        )
    };
    Ok(Some(found))
}

fn misshapen(table: &str, columns: &[String], id: Option<&str>) -> Option<Found> {
    let missing: Vec<&str> = NEEDED.into_iter().filter(|needed| !columns.iter().any(|own| own == needed)).collect();
    if !missing.is_empty() {
        let what = format!("{table} has no {}, so no row of it is an event", missing.join(" and no "));
        return Some(failed(what, format!("give it the columns that {MIGRATION} has")));
    }
    let id = id.filter(|id| !OF_AN_ID.contains(id))?;
    let what = format!("the id of {table} is {id}, and an event's is a UUID: every row would be a dead letter");
    Some(failed(what, format!("give it another name; the column id that {MIGRATION} has is a uuid")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_whose_rows_can_be_no_events_is_named() {
        let columns = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let whole = columns(&["event_type", "payload"]);
        assert!(misshapen("t", &whole, None).is_none() && misshapen("t", &whole, Some("uuid")).is_none());
        assert!(misshapen("t", &columns(&["id"]), None).unwrap().what.contains("no event_type and no payload"));
        assert!(misshapen("t", &whole, Some("int8")).unwrap().what.contains("is int8"));
    }
}
