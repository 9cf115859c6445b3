//! The target's half of `walhouse check`.

use std::{future::Future, time::Duration};

use clickhouse::{Client, error::Error};

use super::{Found, Report, failed, failed_as_told, fine, protection::of_clickhouse, warning};
use crate::{
    clickhouse::{
        client::{client, code, describe, is_of_tls},
        ddl::HAS_TIME64,
    },
    config::ClickHouseConfig,
    quote,
};

const AREA: &str = "ClickHouse";
const TIMEOUT: Duration = Duration::from_secs(10);
/// The oldest release that walhouse's settings and statements are meant for.
const OLDEST: (u32, u32) = (24, 8);
/// What walhouse does in its database. CREATE VIEW is for the views of current rows.
const RIGHTS: [&str; 9] = [
    "CREATE TABLE",
    "CREATE VIEW",
    "DROP TABLE",
    "DROP VIEW",
    "ALTER TABLE",
    "SELECT",
    "INSERT",
    "OPTIMIZE",
    "TRUNCATE",
];

/// What it needs beside its database, where the server asks for grants on these: engines of tables, and of `system` to see its
/// own inserts end.
const ELSEWHERE: [(&str, &str); 2] = [("TABLE ENGINE", "ReplacingMergeTree"), ("SELECT", "system.processes")];
/// For metrics alone.
const PARTS: (&str, &str) = ("SELECT", "system.parts");

pub(super) async fn check(config: &ClickHouseConfig) -> Report {
    let mut report = Report::default();
    let client = client(config);
    let version: String = match bounded(client.query("SELECT version()").fetch_one()).await {
        Ok(version) => version,
        Err(error) => {
            report.push(AREA, "connection", refused(config, &error));
            return report;
        }
    };
    report.push(AREA, "connection", fine(format!("{} as {}", config.url, config.user)));
    report.push(AREA, "protection", of_clickhouse(config));
    report.push(AREA, "version", version_found(&version));
    let database = quote::clickhouse(&config.database);
    let engine = client.query("SELECT engine FROM system.databases WHERE name = ?").bind(&config.database);
    let exists = match bounded(engine.fetch_optional::<String>()).await {
        Ok(engine) => {
            let exists = engine.is_some();
            report.push(AREA, "database", database_found(&client, &config.user, &database, engine).await);
            exists
        }
        Err(error) => {
            report.push(
                AREA,
                "database",
                failed(describe(&error), format!("GRANT SELECT ON system.databases TO {}", config.user)),
            );
            return report;
        }
    };
    report.push(AREA, "rights", rights(&client, &config.user, &database, exists).await);
    report
}

/// Whether the server has the type Time64; one that does not answer is taken for one that has not.
pub(super) async fn has_time64(config: &ClickHouseConfig) -> bool {
    bounded(client(config).query_raw(HAS_TIME64).fetch_one::<u8>()).await.is_ok_and(|has| has == 1)
}

/// The crate itself waits for ever.
async fn bounded<T>(query: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(TIMEOUT, query).await.unwrap_or(Err(Error::TimedOut))
}

fn refused(config: &ClickHouseConfig, error: &Error) -> Found {
    let (url, user) = (&config.url, &config.user);
    match code(error) {
        // Since 26.x a missing password is 194.
        Some(516 | 194 | 193 | 192) => failed(
            format!("{url} does not let user {user:?} in: {}", describe(error)),
            "correct clickhouse.user and clickhouse.password_file",
        ),
        Some(_) => failed(format!("{url}: {}", describe(error)), "see the server's log"),
        None if is_of_tls(error) => failed_as_told(&describe(error)),
        None => failed(
            format!("{url}: {}", describe(error)),
            "is ClickHouse running, and is clickhouse.url its HTTP interface (8123, not 9000)?",
        ),
    }
}

fn version_found(version: &str) -> Found {
    let mut numbers = version.split('.').map_while(|part| part.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST => {
            warning(version, format!("walhouse is tested from {}.{} on; upgrade", OLDEST.0, OLDEST.1))
        }
        _ => fine(version),
    }
}

async fn database_found(client: &Client, user: &str, database: &str, engine: Option<String>) -> Found {
    match engine.as_deref() {
        Some("Atomic" | "Replicated" | "Shared") => fine(format!("{database} exists")),
        Some(engine) => failed(
            format!("{database} has the engine {engine}, without EXCHANGE TABLES"),
            "name a database of its own in clickhouse.database; it will be created",
        ),
        None => match granted(client, "CREATE DATABASE", &format!("{database}.*")).await {
            Ok(true) => fine(format!("{database} will be created")),
            Ok(false) => failed(
                format!("user {user:?} sees no database {database}, and may not create it"),
                format!(
                    "CREATE DATABASE {database}, or GRANT CREATE DATABASE ON {database}.* TO {}",
                    quote::clickhouse(user)
                ),
            ),
            Err(error) => warning(
                format!("{database} does not exist; {}", describe(&error)),
                "create it, or see whether the first run can",
            ),
        },
    }
}

async fn rights(client: &Client, user: &str, database: &str, exists: bool) -> Found {
    let own = format!("{database}.*");
    let needed = RIGHTS.map(|right| (right, own.as_str())).into_iter().chain(ELSEWHERE).chain([PARTS]);
    let mut missing: Vec<(&str, Vec<&str>)> = Vec::new();
    for (right, on) in needed {
        match granted(client, right, on).await {
            Ok(true) => {}
            Ok(false) => match missing.last_mut() {
                Some((place, rights)) if *place == on => rights.push(right),
                _ => missing.push((on, vec![right])),
            },
            Err(error) => return warning(format!("not known: {}", describe(&error)), "the first run will tell"),
        }
    }
    if missing.is_empty() {
        return fine(if exists { "all that is needed" } else { "all that is needed, once it is created" });
    }
    let to = quote::clickhouse(user);
    let rights = |(on, rights): &(&str, Vec<&str>)| format!("{} ON {on}", rights.join(", "));
    let lacks = format!("user {user:?} lacks {}", missing.iter().map(rights).collect::<Vec<_>>().join("; "));
    let remedy = missing.iter().map(|of| format!("GRANT {} TO {to}", rights(of))).collect::<Vec<_>>().join("; ");
    if missing.iter().all(|(on, _)| *on == PARTS.1) {
        return warning(format!("{lacks}, and so tells no metrics of parts"), remedy);
    }
    failed(lacks, remedy)
}

async fn granted(client: &Client, right: &str, on: &str) -> Result<bool, Error> {
    // A name may hold a question mark, which `query` would take for a parameter.
    let statement = format!("CHECK GRANT {right} ON {on}");
    bounded(client.query_raw(&statement).fetch_one::<u8>()).await.map(|granted| granted == 1)
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};

    #[test]
    fn an_old_server_is_a_warning_and_an_unknown_version_is_not() {
        for (version, outcome) in [
            ("26.7.2.1", Outcome::Ok),
            ("24.8.1.2684", Outcome::Ok),
            ("24.7.6.8", Outcome::Warning),
            ("23.12.1.1", Outcome::Warning),
            ("nightly", Outcome::Ok),
        ] {
            assert_eq!(version_found(version).outcome, outcome, "{version}");
        }
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_named_with_what_to_look_at() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        drop(listener);
        let mut config = ClickHouseConfig::default();
        config.url.clone_from(&url);
        let report = check(&config).await;
        assert_eq!(report.checks.len(), 1);
        assert!(report.checks[0].what.contains(&url), "{report}");
        assert!(report.to_string().contains("8123"), "{report}");
    }
}
