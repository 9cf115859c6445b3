//! Connections that are protected, and those that must not come about: against a real server, and whoever pretends to be one.

mod clients;
mod pss;
mod renewal;
mod services;
mod strangers;

use std::path::Path;

use walhouse::config::SourceConfig;
use walhouse::postgres::connection::{ReplicationConnection, field};
use walhouse::postgres::sql;
use walhouse::retry::Kind;

use crate::support::{Authority, Postgres, PostgresOptions, TestDb, self_signed, walhouse, write_config};

const ENCRYPTED: &str = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// Connects in both ways, for SQL and for the slot. Whether that is encrypted, or what both say, and whether they would try again.
async fn connect(url: &str) -> Result<bool, ([String; 2], bool)> {
    let source = SourceConfig::new(url.parse().unwrap_or_else(|error| panic!("{url}: {error}")));
    let sql = sql::connect(&source, "test").await;
    let replication = ReplicationConnection::connect(&source.url, "test").await;
    match (sql, replication) {
        (Ok(client), Ok(mut connection)) => {
            let row = client.query_one(ENCRYPTED, &[]).await.expect("an answer");
            let rows = connection.command("to ask", ENCRYPTED).await.expect("an answer");
            let encrypted: &str = row.get(0);
            assert_eq!(encrypted, field(&rows, 0), "{url}");
            connection.close().await;
            Ok(encrypted == "true")
        }
        (Err(first), Err(second)) => {
            assert_eq!(first.kind(), second.kind(), "{url}: {first} / {second}");
            Err(([first.to_string(), second.to_string()], first.kind() == Kind::Transient))
        }
        (Ok(_), Err(error)) => panic!("{url}: only the slot's connection fails: {error}"),
        (Err(error), Ok(_)) => panic!("{url}: only SQL fails: {error}"),
    }
}

#[track_caller]
fn encrypted(outcome: Result<bool, ([String; 2], bool)>, expected: bool) {
    assert_eq!(outcome, Ok(expected));
}

/// Neither way comes about, both say so with these words, and without a secret.
#[track_caller]
fn refused(outcome: Result<bool, ([String; 2], bool)>, words: &[&str]) -> bool {
    let (said, again) = outcome.expect_err("it should not have come about");
    for said in said {
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
        assert!(!said.contains(CANARY) && !said.contains("PRIVATE KEY"), "{said}");
    }
    again
}

/// In every password; must be in no output.
const CANARY: &str = "Canary4711";

/// A server with TLS, a database on it, and the authority whose certificate is at `ca`.
async fn server(label: &str, hba: Vec<String>) -> (TestDb, Authority, String) {
    let postgres = Postgres::private(PostgresOptions { hba, ..Default::default() });
    let db = TestDb::on(postgres, crate::support::ClickHouse::shared(), label).await;
    let authority = Authority::new("the test's own");
    let ca = authority.write(&db.directory, "ca").display().to_string();
    db.postgres.show(&authority.issue(&["localhost", "127.0.0.1"]), &authority).await;
    (db, authority, ca)
}

fn url(db: &TestDb, who: &str, host: &str, parameters: &str) -> String {
    format!("postgres://{who}@{host}:{}/{}?{parameters}", db.postgres.port(), db.name)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_the_server_is_has_to_be_proven_as_far_as_sslmode_says() {
    let (db, authority, ca) = server("tls_proven", Vec::new()).await;
    let other = Authority::new("somebody else").write(&db.directory, "other").display().to_string();
    let at = async |host: &str, parameters: &str| connect(&url(&db, "postgres", host, parameters)).await;
    for mode in ["prefer", "require", "verify-ca", "verify-full"] {
        for host in ["localhost", "127.0.0.1"] {
            encrypted(at(host, &format!("sslmode={mode}&sslrootcert={ca}")).await, true);
            // A root that was given is asked for in every mode.
            let said = ["signed by nobody who is trusted here", "set source.sslrootcert"];
            assert!(refused(at(host, &format!("sslmode={mode}&sslrootcert={other}")).await, &said));
        }
    }
    encrypted(at("localhost", "sslmode=disable").await, false);
    for unproven in ["", "sslmode=prefer", "sslmode=require"] {
        encrypted(at("127.0.0.1", unproven).await, true);
    }
    let said = ["signed by nobody who is trusted here"];
    for system in ["sslmode=verify-full", "sslmode=verify-ca", "sslrootcert=system"] {
        refused(at("localhost", system).await, &said);
    }

    db.postgres.show(&authority.issue(&["db.internal", "10.1.2.3"]), &authority).await;
    for host in ["localhost", "127.0.0.1"] {
        let said = ["is for db.internal, 10.1.2.3 and not for", host, "subjectAltName"];
        assert!(refused(at(host, &format!("sslmode=verify-full&sslrootcert={ca}")).await, &said));
        encrypted(at(host, &format!("sslmode=verify-ca&sslrootcert={ca}")).await, true);
    }
    // The name is the certificate's, and the address is only the way there.
    let there =
        url(&db, "postgres", "db.internal", &format!("hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={ca}"));
    encrypted(connect(&there).await, true);

    db.postgres.show(&authority.issue_expired(&["localhost"]), &authority).await;
    for mode in ["require", "verify-ca", "verify-full"] {
        let said = ["has expired on 2021-02-03", "renew it"];
        assert!(refused(at("localhost", &format!("sslmode={mode}&sslrootcert={ca}")).await, &said));
    }
    let own = self_signed(&["localhost"]);
    db.postgres.show(&own, &authority).await;
    refused(at("localhost", &format!("sslmode=verify-full&sslrootcert={ca}")).await, &["its certificate is"]);
    let (own, _) = own.write(&db.directory, "own");
    let said = ["an authority's own", "CA:FALSE"];
    refused(at("localhost", &format!("sslmode=verify-full&sslrootcert={}", own.display())).await, &said);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_used_in_two_modes_and_refused_in_all_others() {
    let db = TestDb::new("tls_none").await;
    for mode in ["disable", "prefer"] {
        encrypted(connect(&url(&db, "postgres", "127.0.0.1", &format!("sslmode={mode}"))).await, false);
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        let said = [&format!("has no TLS, and sslmode={mode} asks for it")[..], "set ssl = on"];
        refused(connect(&url(&db, "postgres", "localhost", &format!("sslmode={mode}"))).await, &said);
    }
    db.cleanup().await;
}

/// What `check` says of a connection's protection.
async fn protection(db: &TestDb, extra: &str, area: &str) -> (Option<i32>, String) {
    let config = write_config(db, extra, crate::support::free_port(), "protection.toml");
    let exit = walhouse(&config, &["check", "--json"]).await;
    let report: serde_json::Value =
        serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{error}: {exit:?}"));
    let of_it = |name: &str| {
        let checks = report["checks"].as_array().cloned().unwrap_or_default();
        checks.into_iter().find(|check| check["area"] == area && check["name"] == name)
    };
    let check = of_it("protection").or_else(|| of_it("connection")).unwrap_or_else(|| panic!("no {area}: {exit:?}"));
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    (exit.code, format!("{}: {} → {}", text("outcome"), text("what"), text("remedy")))
}

#[tokio::test(flavor = "multi_thread")]
async fn check_shows_how_each_connection_is_protected() {
    let (db, authority, ca) = server("tls_check", Vec::new()).await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY)").await;
    let source = |parameters: &str| format!("[source]\nurl = \"{}\"\n", url(&db, "postgres", "localhost", parameters));
    let of = async |extra: &str, area: &str| protection(&db, extra, area).await;
    let (code, said) = of(&source(&format!("sslmode=verify-full&sslrootcert={ca}")), "PostgreSQL").await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("ok: TLS 1.3, the certificate is trusted and names the host (verify-full)"), "{said}");
    assert!(said.contains("SCRAM is bound to its certificate; valid until 4096-01-01"), "{said}");
    // The keys beside the URL say the same.
    let beside = format!("{}sslmode = \"verify-ca\"\nsslrootcert = \"{ca}\"\n", source(""));
    let (_, said) = of(&beside, "PostgreSQL").await;
    assert!(said.starts_with("ok: TLS 1.3, the certificate is trusted, whatever host it names"), "{said}");
    let (_, said) = of(&source("sslmode=disable"), "PostgreSQL").await;
    assert!(said.starts_with("ok: not encrypted; it stays on this machine"), "{said}");
    let (_, said) = of(&source(""), "ClickHouse").await;
    assert!(said.starts_with("ok: not encrypted; it stays on this machine"), "{said}");
    let socket = format!(
        "postgres://postgres@/{}?host={}&port={}",
        db.name,
        db.postgres.directory().display(),
        db.postgres.port()
    );
    let (_, said) = of(&format!("[source]\nurl = \"{socket}\"\n"), "PostgreSQL").await;
    assert!(said.starts_with("ok: a Unix socket"), "{said}");

    db.postgres.show(&authority.issue_expired(&["localhost"]), &authority).await;
    let (code, said) = of(&source(&format!("sslmode=verify-full&sslrootcert={ca}")), "PostgreSQL").await;
    assert_eq!(code, Some(1));
    assert!(said.starts_with("failed: TLS to PostgreSQL at localhost:") && said.contains("→ renew it there"), "{said}");
    db.cleanup().await;
}

/// A file's path, as a parameter.
fn path(path: &Path) -> String {
    path.display().to_string()
}
