//! The source's half of `walhouse check`.

use tokio_postgres::{Client, Row};

use super::{
    Found, Report, columns::look_at_columns, ddl::look_at_trigger, failed, failed_as_told, fine,
    outbox::look_at_outbox, plural, position, protection::of_postgres, warning,
};
use crate::{
    clickhouse::table::TableSpec,
    config::{Config, SourceConfig},
    event::{SourceTable, TableKind},
    postgres::{
        catalog::tables,
        sql::{SqlError, connect_over},
        transport,
    },
    quote,
    setup::FAILOVER_SINCE,
};

const AREA: &str = "PostgreSQL";
/// By major version.
const SUPPORTED: std::ops::RangeInclusive<i32> = 14..=18;

/// `time64` says whether ClickHouse has that type.
pub(super) async fn check(config: &Config, time64: bool) -> Report {
    let source = &config.source;
    let mut report = Report::default();
    let (protection, client) = match enter(source).await {
        Ok(entered) => entered,
        Err(error) => {
            report.push(AREA, "connection", failed_as_told(&error.to_string()));
            return report;
        }
    };
    report.push(AREA, "connection", fine(source.url.to_string()));
    report.push(AREA, "protection", protection);
    if let Err(error) = look(&client, config, time64, &mut report).await {
        report.push(AREA, "catalog", failed(error.to_string(), "mend this, then check again"));
    }
    report
}

async fn enter(source: &SourceConfig) -> Result<(Found, Client), SqlError> {
    let transport = transport::open(&source.url).await?;
    let protection = of_postgres(source, &transport);
    Ok((protection, connect_over(transport, source, "walhouse check").await?))
}

async fn look(client: &Client, config: &Config, time64: bool, report: &mut Report) -> Result<(), SqlError> {
    let source = &config.source;
    let server = Server::read(client).await?;
    report.push(AREA, "version", server.version());
    report.push(AREA, "wal_level", server.wal_level());
    report.push(AREA, "role", server.role());
    let slot = client.query_opt(SLOT, &[&source.slot]).await?;
    report.push(AREA, "free slots", server.slots(slot.is_some()));
    report.push(AREA, "free wal senders", server.senders());
    look_at_slot(client, config, &server, slot.as_ref(), report).await?;
    let tables = tables(client, source).await?.tables;
    look_at_publication(client, source, &server, &tables, report).await?;
    if source.failover && server.number < FAILOVER_SINCE {
        report.push(AREA, "failover", failed(&server.text, "remove source.failover: it needs PostgreSQL 17 or later"));
    }
    report.push(AREA, "DDL trigger", look_at_trigger(client).await?);
    if let Some(found) = look_at_outbox(client, config).await? {
        report.push(AREA, "outbox", found);
    }
    look_at_tables(client, config, time64, &tables, report).await
}

/// What one query tells of the server and of the role.
struct Server {
    number: i32,
    text: String,
    wal_level: String,
    slots: (i64, i64),
    senders: (i64, i64),
    user: String,
    database: String,
    may_replicate: bool,
    may_create: bool,
    standby: bool,
}

impl Server {
    async fn read(client: &Client) -> Result<Self, SqlError> {
        // Amazon RDS grants replication through membership in a role of its own.
        let statement = "SELECT current_setting('server_version_num')::int, current_setting('server_version'), \
                    current_setting('wal_level'), \
                    current_setting('max_replication_slots')::int8, (SELECT count(*) FROM pg_replication_slots), \
                    current_setting('max_wal_senders')::int8, (SELECT count(*) FROM pg_stat_replication), \
                    current_user::text, current_database()::text, \
                    r.rolreplication OR r.rolsuper OR EXISTS (SELECT FROM pg_roles p \
                        WHERE p.rolname = 'rds_replication' AND pg_has_role(current_user, p.oid, 'MEMBER')), \
                    has_database_privilege(current_database(), 'CREATE'), pg_is_in_recovery() \
             FROM pg_roles r WHERE r.rolname = current_user";
        let row = client.query_one(statement, &[]).await?;
        Ok(Self {
            number: row.try_get(0)?,
            text: row.try_get(1)?,
            wal_level: row.try_get(2)?,
            slots: (row.try_get(3)?, row.try_get(4)?),
            senders: (row.try_get(5)?, row.try_get(6)?),
            user: row.try_get(7)?,
            database: row.try_get(8)?,
            may_replicate: row.try_get(9)?,
            may_create: row.try_get(10)?,
            standby: row.try_get(11)?,
        })
    }

    fn version(&self) -> Found {
        if self.standby {
            return failed(
                format!("{}, a standby", self.text),
                "connect to the primary: the publication and the slot are made there",
            );
        }
        if SUPPORTED.contains(&(self.number / 10_000)) {
            return fine(&self.text);
        }
        failed(&self.text, format!("use PostgreSQL {} to {}", SUPPORTED.start(), SUPPORTED.end()))
    }

    fn wal_level(&self) -> Found {
        if self.wal_level == "logical" {
            return fine("logical");
        }
        failed(
            format!("{}; the WAL must hold what logical decoding needs", self.wal_level),
            "ALTER SYSTEM SET wal_level = 'logical', then restart PostgreSQL",
        )
    }

    fn role(&self) -> Found {
        if self.may_replicate {
            return fine(format!("{:?} may replicate", self.user));
        }
        let role = quote::postgres(&self.user);
        failed(
            format!("{:?} may not replicate", self.user),
            format!("ALTER ROLE {role} REPLICATION (on Amazon RDS: GRANT rds_replication TO {role})"),
        )
    }

    fn slots(&self, exists: bool) -> Found {
        let (most, used) = self.slots;
        let text = format!("{} of {most}", (most - used).max(0));
        if exists || used < most {
            return fine(text);
        }
        failed(text, "raise max_replication_slots and restart PostgreSQL, or drop a slot that nobody uses")
    }

    fn senders(&self) -> Found {
        let (most, used) = self.senders;
        let text = format!("{} of {most}", (most - used).max(0));
        if used < most {
            return fine(text);
        }
        failed(text, "raise max_wal_senders and restart PostgreSQL, or stop a replica that is not needed")
    }
}

/// The slot by itself, and with what is stored. One that is gone is no other matter than what was missed by that.
async fn look_at_slot(
    client: &Client,
    config: &Config,
    server: &Server,
    slot: Option<&Row>,
    report: &mut Report,
) -> Result<(), SqlError> {
    let position = Box::pin(position::look(config, client)).await;
    match (slot, position) {
        (None, None) => report.push(AREA, "slot", fine(format!("{:?} will be created", config.source.slot))),
        (None, Some(position)) => report.push(AREA, "slot", position),
        (Some(row), position) => {
            report.push(AREA, "slot", slot_found(row, &server.database)?);
            if let Some(position) = position {
                report.push(AREA, "position", position);
            }
        }
    }
    Ok(())
}

const SLOT: &str = "SELECT s.slot_type, s.plugin::text, s.database::text, s.temporary, s.wal_status, s.active_pid, \
                           a.application_name, a.usename::text \
                    FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid \
                    WHERE s.slot_name = $1";

fn slot_found(row: &Row, database: &str) -> Result<Found, SqlError> {
    let kind: &str = row.try_get(0)?;
    let plugin: Option<&str> = row.try_get(1)?;
    let of_database: Option<&str> = row.try_get(2)?;
    let other = "drop it, or give source.slot another name";
    if kind != "logical" || plugin != Some("pgoutput") {
        return Ok(failed(format!("it is a {kind} slot with the plugin {}", plugin.unwrap_or("none")), other));
    }
    if of_database != Some(database) {
        return Ok(failed(format!("it belongs to the database {:?}", of_database.unwrap_or_default()), other));
    }
    if row.try_get(3)? {
        return Ok(failed("it is temporary, and goes with its session", other));
    }
    match row.try_get(4)? {
        Some("lost") => {
            let remedy = "the WAL that it needed is gone: drop the slot, and let every table be copied again into a fresh database; raise max_slot_wal_keep_size";
            return Ok(failed("it is lost", remedy));
        }
        Some("unreserved") => {
            return Ok(warning(
                "it may be lost at the next checkpoint",
                "run walhouse now, and raise max_slot_wal_keep_size",
            ));
        }
        _ => {}
    }
    if let Some(pid) = row.try_get::<_, Option<i32>>(5)? {
        let (application, user): (Option<&str>, Option<&str>) = (row.try_get(6)?, row.try_get(7)?);
        let who = format!(
            "{} as {}",
            application.filter(|name| !name.is_empty()).unwrap_or("somebody"),
            user.unwrap_or("an unknown role")
        );
        return Ok(warning(format!("in use by {who} (pid {pid})"), "a second walhouse waits until the slot is free"));
    }
    Ok(fine("exists, free"))
}

async fn look_at_publication(
    client: &Client,
    source: &SourceConfig,
    server: &Server,
    tables: &[SourceTable],
    report: &mut Report,
) -> Result<(), SqlError> {
    let statement = "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot, puballtables, \
                            pg_has_role(current_user, pubowner, 'USAGE'), pg_get_userbyid(pubowner)::text \
                     FROM pg_publication WHERE pubname = $1";
    let name = quote::postgres(&source.publication);
    let Some(row) = client.query_opt(statement, &[&source.publication]).await? else {
        report.push(AREA, "publication", absent(server, &name));
        if server.may_create {
            let missing: Vec<&SourceTable> = tables.iter().filter(|table| table.key.is_ok()).collect();
            look_at_ownership(client, &name, &missing, report).await?;
        }
        return Ok(());
    };
    let (all_actions, via_root, all_tables, owned): (bool, bool, bool, bool) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    let rooted = tables.iter().any(|table| table.kind == TableKind::PartitionRoot);
    let found = if !all_actions {
        failed(
            "it leaves some changes out",
            format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"),
        )
    } else if rooted && !via_root {
        failed(
            "it publishes partitions, not their roots",
            format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true)"),
        )
    } else if all_tables {
        warning(
            "exists, FOR ALL TABLES",
            "a table without a key is in it too, and PostgreSQL refuses its UPDATEs and DELETEs; publish tables by name",
        )
    } else {
        fine("exists")
    };
    report.push(AREA, "publication", found);
    if all_tables {
        return Ok(());
    }
    let missing = unpublished(client, &source.publication, tables).await?;
    if missing.is_empty() || owned {
        return look_at_ownership(client, &name, &missing, report).await;
    }
    let list: Vec<String> = missing.iter().map(|table| quote::postgres_table(&table.schema, &table.name)).collect();
    let what = format!(
        "{} missing, and the publication belongs to {:?}",
        plural(missing.len(), "table"),
        row.try_get::<_, &str>(4)?
    );
    report.push(
        AREA,
        "published tables",
        failed(what, format!("ALTER PUBLICATION {name} ADD TABLE {}", list.join(", "))),
    );
    Ok(())
}

fn absent(server: &Server, name: &str) -> Found {
    if server.may_create {
        return fine(format!("{name} will be created"));
    }
    let (role, database) = (quote::postgres(&server.user), quote::postgres(&server.database));
    failed(
        format!("{name} does not exist, and {role} may not create it"),
        format!(
            "GRANT CREATE ON DATABASE {database} TO {role}, or let an owner of the tables CREATE PUBLICATION {name} FOR TABLE … WITH (publish_via_partition_root = true)"
        ),
    )
}

/// Usable tables that are not in the publication yet.
async fn unpublished<'t>(
    client: &Client,
    publication: &str,
    tables: &'t [SourceTable],
) -> Result<Vec<&'t SourceTable>, SqlError> {
    let statement = "SELECT p.schemaname::text, p.tablename::text FROM pg_publication_tables p WHERE p.pubname = $1";
    let rows = client.query(statement, &[&publication]).await?;
    let mut published = std::collections::HashSet::new();
    for row in &rows {
        published.insert((row.try_get::<_, &str>(0)?, row.try_get::<_, &str>(1)?));
    }
    let missing =
        |table: &&SourceTable| table.key.is_ok() && !published.contains(&(table.schema.as_str(), table.name.as_str()));
    Ok(tables.iter().filter(missing).collect())
}

/// Only a table's owner may publish it.
async fn look_at_ownership(
    client: &Client,
    publication: &str,
    missing: &[&SourceTable],
    report: &mut Report,
) -> Result<(), SqlError> {
    let oids: Vec<u32> = missing.iter().map(|table| table.oid).collect();
    let statement = "SELECT oid FROM pg_class WHERE oid = ANY($1) AND NOT pg_has_role(current_user, relowner, 'USAGE')";
    let mut foreign = Vec::new();
    for row in client.query(statement, &[&oids]).await? {
        let oid: u32 = row.try_get(0)?;
        foreign.extend(
            missing
                .iter()
                .filter(|table| table.oid == oid)
                .map(|table| quote::postgres_table(&table.schema, &table.name)),
        );
    }
    if foreign.is_empty() {
        let what = if missing.is_empty() {
            "all".to_owned()
        } else {
            format!("{} will be added", plural(missing.len(), "table"))
        };
        report.push(AREA, "published tables", fine(what));
        return Ok(());
    }
    let what = format!("{} missing that another role owns", plural(foreign.len(), "table"));
    let remedy = format!(
        "let the owner ALTER PUBLICATION {publication} ADD TABLE {} (a publication of the owner's, if it does not exist)",
        foreign.join(", ")
    );
    report.push(AREA, "published tables", failed(what, remedy));
    Ok(())
}

async fn look_at_tables(
    client: &Client,
    config: &Config,
    time64: bool,
    tables: &[SourceTable],
    report: &mut Report,
) -> Result<(), SqlError> {
    for absent in config.without_table(tables.iter().map(SourceTable::full_name)) {
        let remedy = "correct the name of its section if it is misspelt";
        report.push("tables", absent, warning("options are given for it, and it is not there", remedy));
    }
    if tables.is_empty() {
        report.push(
            "tables",
            "all",
            failed("no table matches source.tables", "correct source.tables and source.exclude"),
        );
        return Ok(());
    }
    let unreadable = unreadable(client, tables).await?;
    let mut usable = Vec::new();
    for table in tables {
        let options = config.table_options(&table.schema, &table.name);
        let found = match TableSpec::new(table, &options, time64) {
            Err(reason) => failed_as_told(&reason),
            Ok(spec) => match unreadable.iter().find(|(oid, _)| *oid == table.oid) {
                Some((_, reason)) => failed_as_told(reason),
                None => {
                    usable.push(spec);
                    continue;
                }
            },
        };
        report.push("tables", format!("{}.{}", table.schema, table.name), found);
    }
    if !usable.is_empty() {
        report.push("tables", "usable", fine(format!("{} of {}", usable.len(), plural(tables.len(), "table"))));
    }
    usable.iter().for_each(|spec| look_at_columns(spec, report));
    Ok(())
}

/// Tables that the copy could not read whole, with the reason. It reads partitions one by one, so the
/// root's privilege is not enough.
async fn unreadable(client: &Client, tables: &[SourceTable]) -> Result<Vec<(u32, String)>, SqlError> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let statement = "SELECT root.oid, n.nspname::text, c.relname::text, current_user::text, \
                            has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT') \
                     FROM unnest($1::oid[]) AS root(oid) \
                     JOIN LATERAL (SELECT root.oid AS relid UNION SELECT relid FROM pg_partition_tree(root.oid)) part ON true \
                     JOIN pg_class c ON c.oid = part.relid JOIN pg_namespace n ON n.oid = c.relnamespace \
                     WHERE NOT has_schema_privilege(n.oid, 'USAGE') OR NOT has_table_privilege(c.oid, 'SELECT') \
                        OR row_security_active(c.oid) \
                     ORDER BY n.nspname, c.relname";
    let mut found = Vec::new();
    for row in client.query(statement, &[&oids]).await? {
        let (schema, name, user): (&str, &str, &str) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let (role, in_schema, table) =
            (quote::postgres(user), quote::postgres(schema), quote::postgres_table(schema, name));
        let reason = match (row.try_get(4)?, row.try_get(5)?) {
            (false, _) => format!("{role} may not look into the schema; GRANT USAGE ON SCHEMA {in_schema} TO {role}"),
            (_, false) => format!("{role} may not read {table}; GRANT SELECT ON {table} TO {role}"),
            _ => format!("row security hides rows of {table} from {role}; ALTER ROLE {role} BYPASSRLS"),
        };
        found.push((row.try_get(0)?, reason));
    }
    Ok(found)
}
