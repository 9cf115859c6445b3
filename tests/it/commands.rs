//! The commands as an operator types them: exit codes, and what is said where.

mod promises;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Daemon, Exit, TestDb, free_port, walhouse, write_config};

const TAIL: &str = "_version UInt128, _is_deleted UInt8) ENGINE = ReplacingMergeTree(_version, _is_deleted) ORDER BY";

fn config(db: &TestDb, extra: &str) -> PathBuf {
    write_config(db, extra, free_port(), "walhouse.toml")
}

/// Tables and state on both sides, as walhouse leaves them; the checkpoint is beyond every fence.
async fn replicated(label: &str) -> TestDb {
    let db = TestDb::new(label).await;
    db.pg
        .execute(
            "CREATE TABLE item (id int8 PRIMARY KEY, name text); INSERT INTO item VALUES (1, 'a'), (2, 'b');
            CREATE TABLE other (id int8 PRIMARY KEY); CREATE TABLE log (line text)",
        )
        .await;
    db.ch.create_database().await;
    db.ch.query(&format!("CREATE TABLE item (id Int64, name Nullable(String), {TAIL} id")).await;
    db.ch.query(&format!("CREATE TABLE other (id Int64, {TAIL} id")).await;
    db.ch.query("INSERT INTO item VALUES (1, 'a', 1, 0), (2, 'b', 1, 0)").await;
    let migrations = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/clickhouse");
    let entries = fs::read_dir(migrations).expect("the migrations are there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("the migrations can be listed").path()).collect();
    files.sort();
    for file in files {
        let sql = fs::read_to_string(file);
        db.ch.query(&sql.expect("a migration can be read")).await;
    }
    db
}

async fn checkpoint(db: &TestDb) {
    let (slot, far) = (&db.name, u64::MAX);
    db.ch
        .query(&format!("INSERT INTO _checkpoint (slot, lsn, ceiling, revision) VALUES ('{slot}', {far}, {far}, 1)"))
        .await;
}

/// The newest record of a table.
async fn record(db: &TestDb, table: &str, status: &str, reason: &str, revision: u32) {
    let oid = db.pg.value(&format!("SELECT '{table}'::regclass::oid")).await;
    db.ch
        .query(&format!(
            "INSERT INTO _tables (slot, oid, schema_name, table_name, target, status, reason, revision)
            VALUES ('{}', {oid}, 'public', '{table}', '{table}', '{status}', '{reason}', {revision})",
            db.name
        ))
        .await;
}

fn assert_exit(exit: &Exit, code: i32, stderr: &str) {
    assert!(exit.code == Some(code) && exit.stderr.contains(stderr), "{exit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_tells_equal_from_different_stopped_copying_and_keyless() {
    let db = replicated("cli_verify").await;
    let config = config(&db, "");
    assert_exit(&walhouse(&config, &["verify"]).await, 1, "walhouse has not run yet with this configuration");
    checkpoint(&db).await;
    record(&db, "item", "streaming", "", 1).await;

    let exit = walhouse(&config, &["verify"]).await;
    assert_exit(&exit, 1, "public.item");
    assert!(exit.stdout.contains("✗  public.other  still copying: its copy has not begun"), "{exit:?}");
    assert!(exit.stdout.contains("-  public.log  not replicated: it has no primary key"), "{exit:?}");
    assert!(exit.stdout.ends_with("NOT equal: 1 of 2 tables.\n"), "{exit:?}");

    record(&db, "other", "streaming", "", 1).await;
    let exit = walhouse(&config, &["verify"]).await;
    assert_exit(&exit, 0, "");
    assert!(exit.stdout.ends_with("All 2 tables are equal.\n"), "{exit:?}");

    record(&db, "other", "stopped", "column a is new", 2).await;
    db.ch.query("INSERT INTO item VALUES (2, 'x', 2, 0)").await;
    let exit = walhouse(&config, &["verify", "--json"]).await;
    assert_exit(&exit, 1, "");
    let json: serde_json::Value = serde_json::from_str(&exit.stdout).expect("standard output is JSON");
    assert_eq!(json["equal"], false);
    assert_eq!(json["compared"][0]["differing"][0]["key"], "id=2");
    let states: Vec<_> = (0..2).map(|at| json["not_compared"][at]["state"].as_str().unwrap_or_default()).collect();
    assert_eq!(states, ["not_replicated", "stopped"]);

    let exit = walhouse(&config, &["verify", "--table", "public.l*"]).await;
    assert_exit(&exit, 0, "");
    assert!(exit.stdout.ends_with("There is nothing to compare.\n"), "{exit:?}");
    assert_exit(&walhouse(&config, &["verify", "--table", "crm.*"]).await, 2, "--table within source.tables");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_waits_for_the_checkpoint_no_longer_than_it_was_told() {
    let db = replicated("cli_behind").await;
    db.ch.query(&format!("INSERT INTO _checkpoint (slot, lsn, revision) VALUES ('{}', 16, 1)", db.name)).await;
    record(&db, "item", "streaming", "", 1).await;
    let config = config(&db, "");
    let exit = walhouse(&config, &["verify", "--timeout", "200ms", "--table", "public.item"]).await;
    assert_exit(&exit, 1, "walhouse: ClickHouse is at 0/10 of the WAL, and to compare it needs ");
    assert_eq!(exit.stdout, "");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_ends_with_2_before_anything_is_done() {
    let db = TestDb::new("cli_config").await;
    let wrong = config(&db, "[batch]\nmax_dealy = \"1s\"\n");
    for command in ["run", "check", "verify", "config"] {
        assert_exit(&walhouse(&wrong, &[command]).await, 2, "batch.max_dealy: unknown key");
    }
    assert_exit(&walhouse(&db.directory.join("absent.toml"), &[]).await, 2, "give the path of a configuration");
    assert_exit(&walhouse(&wrong, &["repair"]).await, 2, "unrecognized subcommand");
    let right = config(&db, "[source]\npassword = \"canary\"\n");
    let shown = walhouse(&right, &["config"]).await;
    assert_exit(&shown, 0, "");
    assert!(shown.stdout.contains("(redacted)") && !shown.stdout.contains("canary"), "{shown:?}");

    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let mut daemon = Daemon::spawn(&db, &format!("[http]\nlisten = \"{address}\"\n"));
    let (code, log) = daemon.wait_exit(Duration::from_secs(20)).await;
    assert_eq!(code, 2, "{log}");
    assert!(log.contains(&format!("walhouse: http.listen: {address} can not be served (")), "{log}");
    assert_eq!(db.pg.value("SELECT count(*) FROM pg_publication").await, "0");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_is_no_error() {
    let db = TestDb::new("cli_pipe").await;
    let config = config(&db, "");
    for arguments in [&["config"][..], &["check"], &["check", "--json"], &["--help"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_walhouse"))
            .arg("--config")
            .arg(&config)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("walhouse can be started");
        drop(child.stdout.take());
        let stderr = BufReader::new(child.stderr.take().expect("standard error is a pipe"));
        let lines: Vec<String> = stderr.lines().map_while(Result::ok).collect();
        let code = child.wait().expect("walhouse can be waited for").code();
        assert!(lines.is_empty() && matches!(code, Some(0 | 1)), "{arguments:?}: {code:?} {lines:?}");
    }
    db.cleanup().await;
}
