//! Whether the source tells of changes of shape by itself. It need not.

use tokio_postgres::Client;

use super::{Found, fine, warning};
use crate::{postgres::sql::SqlError, quote};

/// Where the triggers come from.
const MIGRATION: &str = "migrations/postgres/0001_ddl_trigger.sql";

/// Looks for the event triggers of `migrations/postgres`, and whether their messages can be read.
pub(super) async fn look_at_trigger(client: &Client) -> Result<Found, SqlError> {
    let statement = "SELECT count(*), count(*) FILTER (WHERE evtenabled IN ('O', 'A')), current_user::text, \
                            coalesce(has_schema_privilege(to_regnamespace('walhouse'), 'USAGE') \
                                AND has_table_privilege(k.oid, 'SELECT'), false), k.relispopulated \
                     FROM (SELECT 1) one \
                     LEFT JOIN pg_class k ON k.relname = 'ddl_key' AND k.relnamespace = to_regnamespace('walhouse') \
                     LEFT JOIN pg_event_trigger t ON t.evtname IN ('walhouse_ddl', 'walhouse_drop') \
                     WHERE t.oid IS NOT NULL GROUP BY k.oid, k.relispopulated";
    let Some(row) = client.query_opt(statement, &[]).await? else {
        return Ok(fine(format!(
            "not installed, and need not be: {MIGRATION} lets more changes of shape be followed in place, and at once"
        )));
    };
    let (present, enabled, user): (i64, i64, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let (readable, populated): (bool, Option<bool>) = (row.try_get(3)?, row.try_get(4)?);
    let role = quote::postgres(user);
    Ok(if present < 2 || populated.is_none() {
        warning("only a part of it is there, so the catalog is read instead", format!("run {MIGRATION} again"))
    } else if enabled < present {
        let remedy = "ALTER EVENT TRIGGER walhouse_ddl ENABLE ALWAYS; ALTER EVENT TRIGGER walhouse_drop ENABLE ALWAYS";
        warning("it is disabled, so the catalog is read instead", remedy)
    } else if !readable {
        let remedy = format!("GRANT USAGE ON SCHEMA walhouse TO {role}; GRANT SELECT ON walhouse.ddl_key TO {role}");
        warning(format!("{role} may not read its key, so the catalog is read instead"), remedy)
    } else if populated == Some(false) {
        warning("it has no key, so the catalog is read instead", "REFRESH MATERIALIZED VIEW walhouse.ddl_key")
    } else {
        fine("installed: changes of shape are followed at once, and more of them in place")
    })
}
