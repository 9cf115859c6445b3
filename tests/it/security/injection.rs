//! Names are data: whatever a database, a schema, a table, a column, a type, a label, a publication, a target or a mask is
//! called, statements mean what they would with a plain one.

use std::time::Duration;

use crate::support::{Ch, ClickHouse, Daemon, Pg, Postgres, TestDb, eventually, walhouse};

/// Everything that ends a name, a string, a statement or a comment somewhere, or begins a substitution, in 63 bytes at most.
fn hostile(what: &str) -> String {
    let name = format!("{what}\"'`\\;--/*${{x}}$1%s%n\n\t\x1b[2J?{{id:Int8}}ü😀');DROP");
    assert!(name.len() <= 63, "{} bytes", name.len());
    name
}

/// The same for what is written into a configuration, which takes no control characters in a name.
fn written(what: &str) -> String {
    hostile(what).chars().filter(|one| !one.is_control()).collect()
}

fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn target(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// As a basic string of TOML, which is also one of JSON.
fn toml(text: &str) -> String {
    serde_json::to_string(text).expect("a string")
}

/// A pattern that is this name.
fn pattern(name: &str) -> String {
    name.chars().map(|one| if r"\*?[]{}".contains(one) { format!("\\{one}") } else { one.to_string() }).collect()
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

struct Names {
    schema: String,
    table: String,
    key: String,
    value: String,
    label: String,
    mask: String,
    target: String,
}

impl Names {
    fn new() -> Self {
        let of = hostile;
        Self {
            schema: of("s"),
            table: of("t"),
            key: of("k"),
            value: of("v"),
            label: of("l"),
            mask: of("m"),
            // Short enough, with the database's name, for a file's.
            target: "g\"'`\\;--/*${x}%s?ü".to_owned(),
        }
    }

    fn create(&self) -> String {
        let (schema, table, key, value) =
            (ident(&self.schema), ident(&self.table), ident(&self.key), ident(&self.value));
        let (kind, domain, pair) = (ident(&hostile("e")), ident(&hostile("d")), ident(&hostile("p")));
        format!(
            "CREATE SCHEMA {schema}; CREATE TYPE {schema}.{kind} AS ENUM ({label}, 'plain'); CREATE DOMAIN {schema}.{domain} AS text;
             CREATE TYPE {schema}.{pair} AS ({value} text, {key} int);
             CREATE TABLE {schema}.{table} ({key} text, n int, {value} text, kind {schema}.{kind}, domain {schema}.{domain},
                pair {schema}.{pair}, masked text, big text, PRIMARY KEY ({key}, n));
             ALTER TABLE {schema}.{table} ALTER big SET STORAGE EXTERNAL;
             CREATE TABLE log ({value} text, n int); ALTER TABLE log REPLICA IDENTITY FULL",
            label = literal(&self.label),
        )
    }

    fn rows(&self, from: u32) -> String {
        let (schema, table) = (ident(&self.schema), ident(&self.table));
        format!(
            "INSERT INTO {schema}.{table} SELECT {text}, i, {text} || i, {label}, {text}, ROW({text}, i)::{schema}.{pair}, {text}, repeat({text}, 100)
             FROM generate_series({from}, {from} + 9) i; INSERT INTO log SELECT {text}, i FROM generate_series({from}, {from} + 9) i",
            text = literal(&hostile("x")),
            pair = ident(&hostile("p")),
            label = literal(&self.label),
        )
    }
}

/// Runs a statement in a database of any name.
async fn session(db: &TestDb, database: &str) -> tokio_postgres::Client {
    let mut config: tokio_postgres::Config = db.pg.url().parse().expect("a URL");
    let (client, connection) = config.dbname(database).connect(tokio_postgres::NoTls).await.expect("a session");
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_changes_what_a_statement_means() {
    let db = TestDb::on(Postgres::private(Default::default()), ClickHouse::shared(), "injection").await;
    // By number, as two tests may run at once on the shared ClickHouse.
    let (names, suffix) = (Names::new(), &db.name[db.name.len() - 3..]);
    let (source, warehouse, publication) = (hostile("d"), written(&format!("w{suffix}")), written("p"));
    Pg::new(db.postgres.clone(), "postgres").execute(&format!("CREATE DATABASE {}", ident(&source))).await;
    let pg = session(&db, &source).await;
    pg.batch_execute(&format!("{}; {}", names.create(), names.rows(1))).await.expect("SQL");
    let whole = format!("{}.{}", names.schema, names.table);
    let extra = format!(
        "[source]\nurl = \"postgres://postgres@127.0.0.1:{}/{}\"\npublication = {}\ntables = [\"*.*\"]\n[clickhouse]\ndatabase = {}\n
        [tables.{}]\ntarget = {}\nmask = {{ masked = {{ fixed = {} }} }}\n",
        db.postgres.port(),
        escaped(&source),
        toml(&publication),
        toml(&warehouse),
        toml(&whole),
        toml(&names.target),
        toml(&names.mask),
    );
    let mut daemon = Daemon::spawn(&db, &extra);
    daemon.wait_ready().await;
    let (schema, table, key, value) =
        (ident(&names.schema), ident(&names.table), ident(&names.key), ident(&names.value));
    let more = ident(&hostile("c"));
    pg.batch_execute(&names.rows(11)).await.expect("SQL");
    pg.batch_execute(&format!(
        "UPDATE {schema}.{table} SET {value} = {value} || '!' WHERE n % 2 = 0; UPDATE {schema}.{table} SET n = -n WHERE n % 5 = 0;
         DELETE FROM {schema}.{table} WHERE n = 3; DELETE FROM log WHERE n = 3;
         ALTER TABLE {schema}.{table} ADD COLUMN {more} text DEFAULT {};
         UPDATE {schema}.{table} SET {more} = {key} WHERE n = 4; ALTER TABLE {schema}.{table} RENAME {value} TO {renamed}",
        literal(&names.label),
        renamed = ident(&hostile("r")),
    ))
    .await
    .expect("SQL");
    let equal = async || {
        eventually(Duration::from_secs(90), async || {
            let exit = walhouse(daemon.config(), &["verify", "--timeout", "20s"]).await;
            if exit.code == Some(0) && exit.stdout.contains("All 2 tables are equal") {
                Ok(())
            } else {
                Err(format!("{exit:?}"))
            }
        })
        .await;
    };
    equal().await;
    // An oracle that is nobody's of ours, of what a name would have changed.
    let ch = Ch::new(db.clickhouse.clone(), "default");
    let of = format!("{}.{} FINAL WHERE _is_deleted = 0", target(&warehouse), target(&names.target));
    let summed = async |ch: &Ch| {
        ch.query(&format!(
            "SELECT count(), sum(n), countIf({} = 'x'), uniqExact({}) FROM {of}",
            target(&hostile("c")),
            target(&names.key)
        ))
        .await
    };
    let row =
        pg.query_one(&format!("SELECT count(*)::text, sum(n)::text FROM {schema}.{table}"), &[]).await.expect("a row");
    let (count, sum): (&str, &str) = (row.get(0), row.get(1));
    assert_eq!(summed(&ch).await, format!("{count}\t{sum}\t0\t1"));
    let masked = ch.query(&format!("SELECT DISTINCT hex(masked), hex(toString(kind)) FROM {of}")).await;
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02X}")).collect::<String>();
    assert_eq!(masked, format!("{}\t{}", hex(&names.mask), hex(&names.label)));

    pg.batch_execute(&format!("TRUNCATE log; {}", names.rows(21))).await.expect("SQL");
    let exit = walhouse(daemon.config(), &["resync", &pattern(&whole)]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    equal().await;
    for arguments in
        [["status"].as_slice(), &["check"], &["dlq", "list"], &["provision"], &["verify", "--table", &pattern(&whole)]]
    {
        let exit = walhouse(daemon.config(), arguments).await;
        assert!(exit.code.is_some_and(|code| code < 2), "{arguments:?}: {exit:?}");
        // What a terminal would obey is not in what it is given.
        let said = exit.stdout + &exit.stderr;
        assert!(!said.chars().any(|one| one.is_control() && one != '\n'), "{arguments:?}: {said:?}");
    }
    let metrics = daemon.metrics().await;
    assert!(metrics.lines().all(|line| line.starts_with(['#', 'w', 'p']) || line.is_empty()), "{metrics}");
    let log = daemon.log();
    let forged = log.lines().filter(|line| line.starts_with(['\t', '?'])).count();
    assert_eq!(forged, 0, "a name has made lines of the log: {log}");
    // A name that no file of ClickHouse can have keeps its own table out, and no other.
    pg.batch_execute(&format!("CREATE TABLE {schema}.{} (id int PRIMARY KEY)", ident(&hostile("f"))))
        .await
        .expect("SQL");
    daemon.wait_log("bytes too long for the files there", 1).await;
    pg.batch_execute(&format!("UPDATE {schema}.{table} SET n = 1000 WHERE n = 4")).await.expect("SQL");
    eventually(Duration::from_secs(60), async || {
        match ch.try_query(&format!("SELECT max(n) FROM {of}")).await?.as_str() {
            "1000" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    assert_eq!(daemon.streams(), 1, "{log}");
    daemon.kill9();
    ch.query(&format!("DROP DATABASE {}", target(&warehouse))).await;
    drop(pg);
    drop(daemon);
    db.cleanup().await;
}
