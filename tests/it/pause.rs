//! `walhouse pause` and `walhouse resume`: what stands still, and that nothing is lost by it.

use std::time::Duration;

use crate::queue::{LOGIN, prefix, with_outbox};
use crate::support::{
    ClickHouse, Daemon, Exit, Postgres, PostgresOptions, Sqs, TestDb, assert_equal, confirmed, eventually, settled,
    stored, walhouse,
};

const STOP: Duration = Duration::from_secs(20);

async fn done(daemon: &Daemon, arguments: &[&str]) -> Exit {
    let exit = walhouse(daemon.config(), arguments).await;
    assert_eq!(exit.code, Some(0), "{arguments:?}: {exit:?}");
    exit
}

async fn count(db: &TestDb, table: &str) -> String {
    db.ch.query(&format!("SELECT count() FROM {table}_current")).await
}

/// A table with a row, replicated.
async fn replicated(db: &TestDb) -> Daemon {
    db.pg.execute("CREATE TABLE a (id int8 PRIMARY KEY); CREATE TABLE b (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(db, "");
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)").await;
    assert_equal(db, "a").await;
    assert_equal(db, "b").await;
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_pipeline_reads_nothing_until_it_is_resumed_also_after_a_restart() {
    let db = TestDb::new("pause").await;
    let mut daemon = replicated(&db).await;
    db.pg.execute("INSERT INTO a SELECT generate_series(2, 1000)").await;
    let exit = done(&daemon, &["pause", "--reason", "moving house"]).await;
    for part in ["the pipeline: paused since", ": moving house", "taken up by process", "of WAL are kept for the slot"]
    {
        assert!(exit.stderr.contains(part), "no {part:?} in: {}", exit.stderr);
    }
    // Idempotent, and it says so.
    let exit = done(&daemon, &["pause", "--reason", "another"]).await;
    assert!(exit.stderr.contains("paused already since") && exit.stderr.contains(": moving house"), "{}", exit.stderr);

    // It was drained: what the slot was told is what is stored.
    assert_eq!(confirmed(&db.pg, &db.name).await, stored(&db.ch, &db.name).await);
    let before = count(&db, "a").await;
    let slot = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    for lives in 0..2 {
        db.pg.execute(&format!("INSERT INTO a SELECT generate_series({0}001, {0}999)", lives + 1)).await;
        eventually(Duration::from_secs(20), async || {
            let ready = daemon.get("/readyz").await?;
            let paused =
                ready.status == 503 && ready.body.contains("paused since") && ready.body.contains("moving house");
            if paused { Ok(()) } else { Err(ready.body) }
        })
        .await;
        assert_eq!(daemon.metric("walhouse_paused", "what=\"pipeline\"").await, 1.0);
        assert_eq!(db.pg.value(&slot).await, "f");
        // The lock is held all the while.
        let holder = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
            WHERE locktype = 'advisory' AND datname = current_database()";
        assert_eq!(db.pg.value(holder).await, "1");
        let exit = walhouse(daemon.config(), &["status"]).await;
        let says = exit.stdout.contains("walhouse     up: ") && exit.stdout.contains("✗ pipeline: paused since");
        assert!(says && exit.code == Some(1), "{exit:?}");
        assert_eq!(count(&db, "a").await, before);
        if lives == 0 {
            assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
            daemon.start();
        }
    }

    let exit = done(&daemon, &["resume"]).await;
    assert!(exit.stderr.contains("the pipeline: resumed since"), "{}", exit.stderr);
    assert_equal(&db, "a").await;
    daemon.wait_ready().await;
    assert_eq!(daemon.metric("walhouse_paused", "what=\"pipeline\"").await, 0.0);
    let exit = done(&daemon, &["resume"]).await;
    assert!(exit.stderr.contains("the pipeline: is not paused"), "{}", exit.stderr);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_is_down_can_be_paused_and_starts_paused() {
    let db = TestDb::new("pause_down").await;
    let mut daemon = replicated(&db).await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    let exit = done(&daemon, &["pause"]).await;
    assert!(exit.stderr.contains("it holds from its next start on"), "{}", exit.stderr);
    let streams = daemon.streams();
    db.pg.execute("INSERT INTO a VALUES (2)").await;
    daemon.start();
    daemon.wait_log("the pipeline is paused since", 1).await;
    assert_eq!(daemon.streams(), streams);
    done(&daemon, &["resume"]).await;
    assert_equal(&db, "a").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_says_how_much_wal_the_server_may_keep_and_keeps_the_slot_from_being_idle() {
    let settings = vec![
        ("max_slot_wal_keep_size", "1GB".to_owned()),
        ("idle_replication_slot_timeout", "6s".to_owned()),
        ("checkpoint_timeout", "30s".to_owned()),
    ];
    let postgres = Postgres::private(PostgresOptions { version: "18", settings, ..PostgresOptions::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), "pause_wal").await;
    let daemon = replicated(&db).await;
    let exit = done(&daemon, &["pause"]).await;
    assert!(exit.stderr.contains("more the server gives it up"), "{}", exit.stderr);
    assert!(exit.stderr.contains("(max_slot_wal_keep_size = 1.0 GiB)"), "{}", exit.stderr);
    // A checkpoint is what gives up slots that are idle for too long.
    tokio::time::sleep(Duration::from_secs(10)).await;
    db.pg.execute("INSERT INTO a VALUES (2); CHECKPOINT").await;
    let lost = format!("SELECT invalidation_reason IS NULL FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    assert_eq!(db.pg.value(&lost).await, "t");
    done(&daemon, &["resume"]).await;
    assert_equal(&db, "a").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_table_stays_as_it_is_and_is_copied_anew_when_it_is_resumed() {
    let db = TestDb::new("pause_table").await;
    let mut daemon = replicated(&db).await;
    let exit = done(&daemon, &["pause", "--table", "public.a", "--reason", "backfill"]).await;
    assert!(exit.stderr.contains("public.a: done") && exit.stderr.contains("are passed over"), "{}", exit.stderr);
    let uuid = db.ch.query("SELECT uuid FROM _tables FINAL WHERE table_name = 'a'").await;
    for lives in 0..2 {
        db.pg.execute(&format!("INSERT INTO a VALUES (1{lives}); INSERT INTO b VALUES (1{lives})")).await;
        db.pg.execute("DELETE FROM a WHERE id = 1").await;
        assert_equal(&db, "b").await;
        settled(&db).await;
        assert_eq!(db.ch.query("SELECT groupArray(id) FROM a_current").await, "[1]");
        eventually(Duration::from_secs(20), async || match daemon.metric("walhouse_paused", "what=\"tables\"").await {
            1.0 => Ok(()),
            other => Err(other.to_string()),
        })
        .await;
        // It is no trouble, and it is not forgotten.
        assert_eq!(daemon.metric("walhouse_tables_stopped", "").await, 0.0);
        let exit = walhouse(daemon.config(), &["status"]).await;
        let remedy = "→ walhouse resume --table public.a";
        assert!(exit.code == Some(1) && exit.stdout.contains(remedy), "{exit:?}");
        // What left the publication and came back waits for the operator too.
        db.pg.execute("ALTER PUBLICATION walhouse DROP TABLE a; ALTER PUBLICATION walhouse ADD TABLE a").await;
        assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
        daemon.start();
        daemon.wait_ready().await;
    }
    let exit = walhouse(daemon.config(), &["resync", "public.a"]).await;
    assert!(exit.code == Some(1) && exit.stderr.contains("it is paused; walhouse resume --table public.a"), "{exit:?}");
    let exit = walhouse(daemon.config(), &["verify"]).await;
    assert!(exit.code == Some(1) && exit.stdout.contains("✗  public.a  paused: since"), "{exit:?}");

    let exit = done(&daemon, &["resume", "--table", "public.*"]).await;
    assert!(exit.stderr.contains("public.a: done") && !exit.stderr.contains("public.b"), "{}", exit.stderr);
    assert_equal(&db, "a").await;
    assert_ne!(db.ch.query("SELECT uuid FROM _tables FINAL WHERE table_name = 'a'").await, uuid);
    db.pg.execute("INSERT INTO a VALUES (99)").await;
    assert_equal(&db, "a").await;
    let exit = walhouse(daemon.config(), &["pause", "--table", "public.nothing"]).await;
    assert!(exit.code == Some(2) && exit.stderr.contains("does not replicate a table public.nothing"), "{exit:?}");
    drop(daemon);
    db.cleanup().await;
}

async fn waiting(db: &TestDb, sqs: &Sqs, wanted: (u64, &str)) {
    eventually(Duration::from_secs(60), async || {
        let queue = sqs.count(&format!("{}audit-log-queue", prefix(db))).await;
        let audited = db.ch.try_query("SELECT uniqExact(event_id) FROM audit_log").await?;
        if (queue, audited.as_str()) == wanted { Ok(()) } else { Err(format!("{queue} {audited}, not {wanted:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_worker_takes_nothing_in_any_process_and_the_others_go_on() {
    let (db, sqs) = (with_outbox("pause_worker").await, Sqs::shared());
    let handled = Sqs::handled(sqs.port(), &prefix(&db));
    let mut first = Daemon::spawn(&db, &handled);
    first.wait_ready().await;
    first.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    // A second one waits for the slot, and runs workers all the same.
    let second = Daemon::spawn(&db, &handled);
    db.pg.execute(&login()).await;
    waiting(&db, &sqs, (0, "1")).await;
    second.wait_log("a worker takes events worker=\"audit\"", 1).await;

    let exit = done(&first, &["pause", "--worker", "audit", "--reason", "a mistake"]).await;
    for pid in [first.pid(), second.pid()] {
        assert!(exit.stderr.contains(&format!("process {pid} on ")), "no {pid} in: {}", exit.stderr);
    }
    for _ in 0..3 {
        db.pg.execute(&login()).await;
    }
    waiting(&db, &sqs, (3, "1")).await;
    assert_eq!(first.metric("walhouse_paused", "what=\"audit\"").await, 1.0);
    assert_eq!(first.metric("walhouse_paused", "what=\"data-sync\"").await, 0.0);
    // Over a restart too.
    assert_eq!(first.sigterm(STOP).await.code(), Some(0));
    first.start();
    first.wait_log("a worker takes events worker=\"operation\"", 2).await;
    assert_eq!(first.log().matches("a worker takes events worker=\"audit\"").count(), 1);
    waiting(&db, &sqs, (3, "1")).await;

    done(&first, &["resume", "--worker", "audit"]).await;
    waiting(&db, &sqs, (0, "4")).await;
    drop((first, second));
    db.cleanup().await;
}

fn login() -> String {
    format!("INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{LOGIN}')")
}
