//! What PostgreSQL would skip in silence: whatever may have been missed is a halt, or the stop of one table, never a hole.

use std::fs;
use std::time::Duration;

use crate::support::{
    ClickHouse, Daemon, Postgres, PostgresOptions, TestDb, assert_equal, confirmed, eventually, stored,
};

const STOP: Duration = Duration::from_secs(20);
const REMEDY: &str = "To copy everything anew: stop walhouse, drop the ClickHouse database";

/// Two small tables, replicated, and the daemon.
async fn replicated(db: &TestDb) -> Daemon {
    db.pg
        .execute("CREATE TABLE a (id int8 PRIMARY KEY); CREATE TABLE b (id int8 PRIMARY KEY); INSERT INTO a VALUES (1)")
        .await;
    let mut daemon = Daemon::spawn(db, "");
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO a VALUES (2); INSERT INTO b VALUES (2)").await;
    assert_equal(db, "a").await;
    assert_equal(db, "b").await;
    daemon
}

/// The same, and the daemon has ended.
async fn stopped(db: &TestDb) -> Daemon {
    let mut daemon = replicated(db).await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    daemon
}

/// All that ClickHouse holds of this database, merged or not.
async fn everything(db: &TestDb) -> String {
    let mut all = String::new();
    for table in ["a", "b", "_checkpoint", "_tables", "_chunks"] {
        all += &db.ch.query(&format!("SELECT '{table}', * FROM {table} FINAL ORDER BY ALL")).await;
        all += "\n";
    }
    all
}

/// Starts the daemon, which halts at once with the remedy and `says`; nothing has changed in ClickHouse.
async fn halts(db: &TestDb, daemon: &mut Daemon, says: &[&str]) {
    let before = everything(db).await;
    daemon.start();
    let (code, log) = daemon.wait_exit(Duration::from_secs(20)).await;
    assert_eq!(code, 3, "{log}");
    let last = log.lines().rfind(|line| line.starts_with("walhouse: ")).expect("the reason is said").to_owned();
    for text in
        says.iter().chain(&[REMEDY, "nothing more is written", &format!("pg_drop_replication_slot('{}')", db.name)])
    {
        assert!(last.contains(text), "no {text:?} in: {last}");
    }
    assert_eq!(everything(db).await, before, "something was written");
    // A second start changes nothing about it: it does not mend itself in silence.
    daemon.start();
    assert_eq!(daemon.wait_exit(Duration::from_secs(20)).await.0, 3);
    assert_eq!(everything(db).await, before, "something was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_dropped_is_a_halt_and_is_not_made_anew() {
    let db = TestDb::new("gap_dropped").await;
    let mut daemon = stopped(&db).await;
    db.pg.query(&format!("SELECT pg_drop_replication_slot('{}')", db.name)).await;
    db.pg.execute("INSERT INTO a VALUES (3)").await;
    halts(&db, &mut daemon, &[&format!("the replication slot {} is gone", db.name)]).await;
    assert_eq!(confirmed(&db.pg, &db.name).await, Ok(None), "the slot was made anew");

    // Somebody makes it anew: that is no better.
    db.pg.query(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", db.name)).await;
    halts(&db, &mut daemon, &[&format!("the slot {} stands at", db.name), "or it was made anew"]).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_remedy_that_a_halt_names_is_one() {
    let db = TestDb::new("gap_remedy").await;
    let mut daemon = stopped(&db).await;
    db.pg.query(&format!("SELECT pg_drop_replication_slot('{}')", db.name)).await;
    db.pg.execute("DELETE FROM a WHERE id = 1; INSERT INTO b VALUES (3)").await;
    halts(&db, &mut daemon, &[]).await;
    db.ch.drop_database().await.expect("the database can be dropped");
    daemon.start();
    assert_equal(&db, "a").await;
    assert_equal(&db, "b").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_else_advanced_is_a_halt() {
    let db = TestDb::new("gap_advanced").await;
    let mut daemon = stopped(&db).await;
    db.pg.execute("INSERT INTO a VALUES (3)").await;
    db.pg.query(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", db.name)).await;
    let stands = confirmed(&db.pg, &db.name).await;
    halts(&db, &mut daemon, &[&format!("the slot {} stands at", db.name), "somebody else has advanced it"]).await;
    assert_eq!(confirmed(&db.pg, &db.name).await, stands);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_advanced_by_nothing_but_idle_wal_is_a_halt_too() {
    // Whether what it passed held a change can not be told any more.
    let db = TestDb::new("gap_idle").await;
    let mut daemon = stopped(&db).await;
    db.pg.query("SELECT pg_logical_emit_message(true, 'nobody', 'reads this')").await;
    db.pg.query(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", db.name)).await;
    halts(&db, &mut daemon, &["somebody else has advanced it"]).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_dropped_is_a_halt_and_is_not_made_anew() {
    let db = TestDb::new("gap_nopub").await;
    let mut daemon = stopped(&db).await;
    db.pg.execute("DROP PUBLICATION walhouse; INSERT INTO a VALUES (3)").await;
    halts(&db, &mut daemon, &["the publication is gone"]).await;
    assert_eq!(db.pg.value("SELECT count(*) FROM pg_publication").await, "0", "the publication was made anew");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_dropped_and_made_again_is_a_halt() {
    let db = TestDb::new("gap_pub").await;
    let mut daemon = stopped(&db).await;
    db.pg.execute("DROP PUBLICATION walhouse").await;
    db.pg.execute("INSERT INTO a VALUES (3)").await;
    db.pg.execute("CREATE PUBLICATION walhouse FOR TABLE a, b WITH (publish_via_partition_root = true)").await;
    halts(&db, &mut daemon, &["the publication was altered or made anew"]).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_left_out_deletes_for_a_moment_is_a_halt() {
    let db = TestDb::new("gap_publish").await;
    let mut daemon = replicated(&db).await;
    db.pg
        .execute(
            "ALTER PUBLICATION walhouse SET (publish = 'insert'); DELETE FROM a WHERE id = 1;
            ALTER PUBLICATION walhouse SET (publish = 'insert, update, delete, truncate')",
        )
        .await;
    // Nothing in the stream tells of it; the catalog does.
    let (code, log) = daemon.wait_exit(Duration::from_secs(20)).await;
    assert_eq!(code, 3, "{log}");
    assert!(log.contains("walhouse: the publication was altered or made anew"), "{log}");
    halts(&db, &mut daemon, &["the publication was altered or made anew"]).await;
    db.cleanup().await;
}

/// The status and the reason that are stored of a table.
async fn state(db: &TestDb, table: &str) -> (String, String) {
    let sql = format!("SELECT status, reason FROM _tables WHERE table_name = '{table}' ORDER BY revision DESC LIMIT 1");
    let row = db.ch.query(&sql).await;
    let (status, reason) = row.split_once('\t').unwrap_or((&row, ""));
    (status.to_owned(), reason.to_owned())
}

/// `a` was copied anew, by itself; `b` went on.
async fn assert_only_a_was_copied(db: &TestDb, daemon: &mut Daemon, before: &str) {
    eventually(Duration::from_secs(30), async || {
        let found =
            db.ch.try_query("SELECT uuid, status FROM _tables FINAL WHERE table_name = 'a' AND fresh = ''").await?;
        let (uuid, status) = found.split_once('\t').ok_or("it is being copied")?;
        if status == "streaming" && uuid != before { Ok(()) } else { Err(found.clone()) }
    })
    .await;
    for id in 10..12 {
        db.pg.execute(&format!("INSERT INTO a VALUES ({id}); INSERT INTO b VALUES ({id})")).await;
        for table in ["a", "b"] {
            assert_equal(db, table).await;
            assert_eq!(state(db, table).await.0, "streaming");
        }
        // And once more after a restart.
        assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
        daemon.start();
        daemon.wait_ready().await;
    }
    assert_eq!(daemon.metric("walhouse_tables_stopped", "").await, 0.0);
}

const OUT: &str = "ALTER PUBLICATION walhouse DROP TABLE a";
const BACK: &str = "ALTER PUBLICATION walhouse ADD TABLE a";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_left_the_publication_and_came_back_is_copied_anew_while_walhouse_runs() {
    let db = TestDb::new("gap_member").await;
    let mut daemon = replicated(&db).await;
    let before = db.ch.query("SELECT uuid FROM _tables FINAL WHERE table_name = 'a'").await;
    for statement in [OUT, "INSERT INTO a VALUES (3)", BACK, "INSERT INTO a VALUES (4)"] {
        db.pg.execute(statement).await;
    }
    assert_only_a_was_copied(&db, &mut daemon, &before).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_left_the_publication_and_came_back_is_copied_anew_at_the_next_start() {
    let db = TestDb::new("gap_member_down").await;
    let mut daemon = stopped(&db).await;
    let before = db.ch.query("SELECT uuid FROM _tables FINAL WHERE table_name = 'a'").await;
    for statement in [OUT, "INSERT INTO a VALUES (3)", BACK, "INSERT INTO a VALUES (4)"] {
        db.pg.execute(statement).await;
    }
    daemon.start();
    assert_only_a_was_copied(&db, &mut daemon, &before).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_behind_the_same_url_is_a_halt_and_is_left_as_it_is() {
    let db = TestDb::new("gap_cluster").await;
    let mut daemon = stopped(&db).await;
    let other = Postgres::private(PostgresOptions::default());
    let there = TestDb::on(other.clone(), ClickHouse::shared(), "gap_cluster_there").await;
    there.pg.execute(&format!("CREATE DATABASE {}", db.name)).await;
    let there = crate::support::Pg::new(other.clone(), &db.name);
    there.execute("CREATE TABLE a (id int8 PRIMARY KEY); CREATE TABLE b (id int8 PRIMARY KEY)").await;
    let config = fs::read_to_string(daemon.config()).expect("the configuration can be read");
    let (from, to) = (format!(":{}/", db.postgres.port()), format!(":{}/", other.port()));
    fs::write(daemon.config(), config.replace(&from, &to)).expect("the configuration can be written");
    halts(&db, &mut daemon, &["this is another PostgreSQL cluster", "If source.url is wrong, correct it."]).await;
    let left = "SELECT (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_replication_slots)";
    assert_eq!(
        there.query(left).await,
        [[Some("0".to_owned()), Some("0".to_owned())]],
        "the other cluster was changed"
    );
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_beyond_the_end_of_the_wal_is_a_halt() {
    let db = TestDb::new("gap_wal").await;
    let mut daemon = stopped(&db).await;
    // As if PostgreSQL's disk had been restored from an older state.
    db.ch
        .query(
            "INSERT INTO _checkpoint (slot, epoch, lsn, ceiling, system_identifier, timeline, publication, revision)
            SELECT slot, epoch, lsn + 1073741824, ceiling + 1073741824, system_identifier, timeline, publication,
                revision + 1 FROM _checkpoint ORDER BY revision DESC LIMIT 1",
        )
        .await;
    halts(&db, &mut daemon, &["the server's WAL ends at", "before the checkpoint", "restored from an older state"])
        .await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_daemons_on_one_slot_the_second_waits_and_takes_over() {
    let db = TestDb::new("two").await;
    let mut first = replicated(&db).await;
    let mut second = Daemon::spawn(&db, "");
    second.wait_log("another walhouse holds this slot; waiting for it to end", 1).await;
    let lock =
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'walhouse lock'
        ORDER BY backend_start LIMIT 1";
    let holder = format!("process {} (walhouse lock) of role postgres from 127.0.0.1", db.pg.value(lock).await);
    assert!(second.log().contains(&holder), "no {holder:?} in:\n{}", second.log());

    // The first goes on as if nothing were, and nothing comes from the second.
    let sender = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    let sending = db.pg.value(&sender).await;
    db.pg.execute("INSERT INTO a SELECT generate_series(100, 200)").await;
    assert_equal(&db, "a").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(db.pg.value(&sender).await, sending);
    assert_eq!(second.streams(), 0);
    assert_eq!(second.metric("walhouse_rows_written_total", "").await, 0.0);
    assert_ne!(second.get("/readyz").await.expect("it serves").status, 200);

    // A crash of the first: its lock goes with its session.
    first.kill9();
    db.pg.execute("INSERT INTO b SELECT generate_series(100, 200)").await;
    second.wait_streams(0).await;
    second.wait_ready().await;
    assert_equal(&db, "b").await;

    // And the other way round, in order.
    first.start();
    first.wait_log("another walhouse holds this slot; waiting for it to end", 1).await;
    let before = first.streams();
    assert_eq!(second.sigterm(STOP).await.code(), Some(0));
    db.pg.execute("DELETE FROM a WHERE id > 150").await;
    first.wait_streams(before).await;
    assert_equal(&db, "a").await;
    let kept = stored(&db.ch, &db.name).await;
    assert!(matches!(kept, Ok(Some(_))), "{kept:?}");
    drop((first, second));
    db.cleanup().await;
}
