//! A source with another history: the page of the documentation on it, done.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::recovery::blocks;
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Pg, Postgres, PostgresOptions, TestDb, assert_equal, command, done,
    eventually, walhouse,
};

const STOP: Duration = Duration::from_secs(20);
const OPERATIONS: &str = include_str!("../../docs/operations.md");
const SETUP: &str = "CREATE TABLE a (id int8 PRIMARY KEY, v text); CREATE TABLE b (id int8 PRIMARY KEY, v text);
    CREATE TABLE held (id int8 PRIMARY KEY)";

/// The page's commands: what would be done, do it, start, compare.
fn page() -> Vec<&'static str> {
    let chapter = OPERATIONS.split("## After a restore, or on another cluster").nth(1).expect("the chapter");
    blocks(chapter.split("\n## ").next().unwrap_or_default(), "sh")
}

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Follows the page, with the daemon down; it is up again at the end.
async fn follow(db: &TestDb, daemon: &mut Daemon, tables: &[&str]) {
    let [look, begin, start, _compare] = page()[..] else { panic!("{:?}", page()) };
    let stored = "SELECT * FROM _checkpoint FINAL FORMAT TSV";
    let before = db.ch.query(stored).await;
    let would = text(&done(command(look, daemon)));
    assert!(would.starts_with("Epoch 1 would begin at ") && would.contains("Nothing was changed"), "{would}");
    // It is asked for in so many words.
    let exit = walhouse(daemon.config(), &["provision", "--new-epoch"]).await;
    assert!(exit.code == Some(2) && exit.stderr.contains("say --yes"), "{exit:?}");
    assert_eq!(db.ch.query(stored).await, before);
    let began = text(&done(command(begin, daemon)));
    assert!(began.starts_with("Epoch 1 has begun at "), "{began}");
    for table in tables {
        assert!(began.contains(&format!("public.{table}: copied anew beside what is there")), "{began}");
    }
    assert!(start.starts_with("walhouse run "), "{start}");
    daemon.start();
    // What was there can be read until the copy takes its place.
    for table in tables {
        assert!(db.ch.try_query(&format!("SELECT count() FROM {table}_current")).await.is_ok());
    }
    daemon.wait_ready().await;
    eventually(Duration::from_secs(60), async || {
        let exit = walhouse(daemon.config(), &["status", "--json"]).await;
        let report: serde_json::Value = serde_json::from_str(&exit.stdout).map_err(|error| error.to_string())?;
        let all = report["stored"]["tables"].as_array().cloned().unwrap_or_default();
        let streaming = |name: &str| {
            let name = format!("public.{name}");
            all.iter()
                .any(|one| one["table"] == name.as_str() && one["state"] == "streaming" && one["copying"].is_null())
        };
        let epoch = report["stored"]["checkpoint"]["epoch"] == 1;
        if epoch && tables.iter().all(|table| streaming(table)) { Ok(()) } else { Err(report.to_string()) }
    })
    .await;
    for table in tables {
        assert_equal(db, table).await;
    }
}

/// The page's last command.
fn compare(daemon: &Daemon) {
    let compare = page().pop().expect("there is one");
    let said = text(&done(command(compare, daemon)));
    assert!(said.contains("tables are equal"), "{said}");
}

/// Halts for what `says`, and names the way out.
async fn halts(daemon: &mut Daemon, says: &str) {
    let (code, log) = daemon.wait_exit(Duration::from_secs(60)).await;
    assert_eq!(code, 3, "{log}");
    assert!(log.contains(says) && log.contains("walhouse provision --new-epoch --dry-run"), "{log}");
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let status =
        Command::new("cp").arg("-a").arg(from).arg(to).stdin(Stdio::null()).status().expect("cp can be started");
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_to_an_earlier_point_the_page_leads_to_equal_tables() {
    let postgres = Postgres::private(PostgresOptions::default());
    let db = TestDb::on(postgres.clone(), ClickHouse::shared(), "epoch_restore").await;
    db.pg.execute(SETUP).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO a VALUES (1, 'before'), (2, 'before'); INSERT INTO b VALUES (1, 'before')").await;
    assert_equal(&db, "a").await;
    assert_equal(&db, "b").await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    // A backup of the server that is down, or has crashed, is as good as one by pg_basebackup.
    let data = postgres.directory().to_owned();
    let backup = db.directory.join("backup");
    postgres.kill9();
    copy(&data, &backup);
    postgres.start();

    // What happens from here on is lost with the restore.
    daemon.start();
    daemon.wait_ready().await;
    db.pg
        .execute(
            "UPDATE a SET v = 'lost' WHERE id = 1; DELETE FROM a WHERE id = 2;
            INSERT INTO a SELECT i, 'lost' FROM generate_series(10, 5000) i; INSERT INTO b VALUES (2, 'lost')",
        )
        .await;
    assert_equal(&db, "a").await;
    assert_equal(&db, "b").await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    postgres.kill9();
    copy(&backup, &data);
    postgres.start();
    // Positions that were used before are used again, for something else.
    db.pg.execute("UPDATE a SET v = 'after' WHERE id = 2; INSERT INTO b VALUES (3, 'after')").await;
    daemon.start();
    halts(&mut daemon, "it was restored from an older state").await;

    follow(&db, &mut daemon, &["a", "b", "held"]).await;
    compare(&daemon);
    db.pg.execute("UPDATE a SET v = 'later' WHERE id = 1; DELETE FROM b WHERE id = 1").await;
    assert_equal(&db, "a").await;
    assert_equal(&db, "b").await;
    assert_eq!(db.ch.query("SELECT v FROM a_current WHERE id = 1").await, "later");
    // And over a restart.
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    daemon.start();
    daemon.wait_ready().await;
    db.pg.execute("UPDATE a SET v = 'last' WHERE id = 1").await;
    assert_equal(&db, "a").await;
    // While it is up, no epoch can begin.
    let exit = walhouse(daemon.config(), &["provision", "--new-epoch", "--yes"]).await;
    assert!(exit.code == Some(1) && exit.stderr.contains("stop walhouse run first"), "{exit:?}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_another_cluster_where_oids_are_others_the_page_leads_to_equal_tables() {
    let (old, new) = (Postgres::private(PostgresOptions::default()), Postgres::private(PostgresOptions::default()));
    let mut db = TestDb::on(old.clone(), ClickHouse::shared(), "epoch_cluster").await;
    db.pg.execute(SETUP).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg
        .execute("INSERT INTO a VALUES (1, 'x'), (2, 'y'); INSERT INTO b VALUES (1, 'z'); INSERT INTO held VALUES (1)")
        .await;
    for table in ["a", "b", "held"] {
        assert_equal(&db, table).await;
    }
    let exit = walhouse(daemon.config(), &["pause", "--table", "public.held"]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    // The tables are made in another order, so the oid of one is that of another, or nearly.
    let there = Pg::new(new.clone(), "postgres");
    there.execute(&format!("CREATE DATABASE {}", db.name)).await;
    let there = Pg::new(new.clone(), &db.name);
    there
        .execute(
            "CREATE TABLE b (id int8 PRIMARY KEY, v text); CREATE TABLE a (id int8 PRIMARY KEY, v text);
            CREATE TABLE held (id int8 PRIMARY KEY); CREATE TABLE fresh (id int8 PRIMARY KEY);
            INSERT INTO a VALUES (1, 'x'), (2, 'y'); INSERT INTO b VALUES (1, 'z'); INSERT INTO held VALUES (1), (2)",
        )
        .await;
    let config = fs::read_to_string(daemon.config()).expect("the configuration can be read");
    let (from, to) = (format!(":{}/", old.port()), format!(":{}/", new.port()));
    fs::write(daemon.config(), config.replace(&from, &to)).expect("the configuration can be written");
    (db.pg, db.postgres) = (there, new);
    daemon.start();
    halts(&mut daemon, "this is another PostgreSQL cluster").await;

    follow(&db, &mut daemon, &["a", "b"]).await;
    assert_equal(&db, "fresh").await;
    // It stays paused.
    assert_eq!(db.ch.query("SELECT groupArray(id) FROM held_current").await, "[1]");
    let exit = walhouse(daemon.config(), &["resume", "--table", "public.held"]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    db.pg.execute("DELETE FROM a WHERE id = 1; UPDATE b SET v = 'again'; INSERT INTO held VALUES (3)").await;
    for table in ["a", "b", "held"] {
        assert_equal(&db, table).await;
    }
    compare(&daemon);
    drop(daemon);
    db.cleanup().await;
}

/// Its tables come back under other UUIDs, with all that walhouse stores beside them.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_of_clickhouse_the_page_leads_to_equal_tables() {
    let place = std::env::temp_dir().join(format!("walhouse-backup-{:08x}", rand::random::<u32>()));
    let settings = format!("<backups><allowed_path>{}/</allowed_path></backups>", place.display());
    let clickhouse = ClickHouse::private(ClickHouseOptions { settings, ..Default::default() });
    let db = TestDb::on(Postgres::shared(), clickhouse, "epoch_backup").await;
    db.pg.execute(SETUP).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO a VALUES (1, 'before'), (2, 'before'); INSERT INTO b VALUES (1, 'before')").await;
    assert_equal(&db, "a").await;
    assert_equal(&db, "b").await;
    let file = format!("File('{}/all')", place.display());
    db.ch.query(&format!("BACKUP DATABASE `{}` TO {file}", db.name)).await;
    // What happens from here on is lost in ClickHouse.
    db.pg
        .execute("UPDATE a SET v = 'after' WHERE id = 1; DELETE FROM a WHERE id = 2; INSERT INTO b VALUES (2, '')")
        .await;
    assert_equal(&db, "a").await;
    assert_equal(&db, "b").await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    let uuid = format!("SELECT uuid FROM system.tables WHERE database = '{}' AND name = 'a'", db.name);
    let before = db.ch.query(&uuid).await;
    for statement in
        [format!("DROP DATABASE `{}` SYNC", db.name), format!("RESTORE DATABASE `{}` FROM {file}", db.name)]
    {
        db.ch.try_query_as("default", "", &statement).await.expect("the backup can be restored");
    }
    assert_ne!(db.ch.query(&uuid).await, before);
    assert_eq!(db.ch.query("SELECT v FROM a_current WHERE id = 1").await, "before");
    daemon.start();
    halts(&mut daemon, "beyond the checkpoint").await;

    follow(&db, &mut daemon, &["a", "b", "held"]).await;
    compare(&daemon);
    db.pg.execute("UPDATE a SET v = 'later' WHERE id = 1; DELETE FROM b WHERE id = 1").await;
    assert_equal(&db, "a").await;
    assert_equal(&db, "b").await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    daemon.start();
    daemon.wait_ready().await;
    drop(daemon);
    let _ = fs::remove_dir_all(&place);
    db.cleanup().await;
}
