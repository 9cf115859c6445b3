//! What somebody has asked for, and what everything else waits behind: a replay, a pause.

use std::time::Duration;

use super::{equal, watched};
use crate::queue::{LOGIN, prefix, with_outbox};
use crate::support::{Daemon, Sqs, TestDb, eventually, steps, take, walhouse};

async fn done(daemon: &Daemon, arguments: &[&str]) {
    let exit = walhouse(daemon.config(), arguments).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
}

/// A table that is replicated, and the rest of the configuration.
async fn replicated(label: &str, config: &str) -> (TestDb, Daemon) {
    let db = TestDb::new(label).await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, config);
    daemon.wait_ready().await;
    (db, daemon)
}

async fn counted(db: &TestDb, sql: &str, wanted: &str) {
    eventually(Duration::from_secs(60), async || {
        let found = db.ch.try_query(sql).await?;
        if found == wanted { Ok(()) } else { Err(format!("{found}, not {wanted}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_holds_everything_up_is_told_with_what_it_waits_for() {
    let (db, daemon) = replicated("book_replay", "[source]\nreplay_window = \"1GiB\"\n").await;
    let thresholds = [("> 0) > 300", "> 0) > 1")];
    let prometheus = watched(&db, &daemon, "WalhouseReplayHolds", &thresholds).await;
    let from = db.pg.value("SELECT pg_current_wal_lsn()").await;
    db.pg.execute("INSERT INTO item SELECT generate_series(1, 100)").await;
    counted(&db, "SELECT count() FROM item", "100").await;
    equal(&daemon).await;
    // A disk that is too full for this table, whatever it is.
    db.ch.query("ALTER TABLE item MODIFY SETTING min_free_disk_ratio_to_perform_insert = 1").await;
    done(&daemon, &["replay", "--from-lsn", &from, "--no-wait"]).await;
    prometheus.fires("WalhouseReplayHolds").await;
    assert!(daemon.metric("walhouse_replay_remaining_bytes", "").await > 0.0);

    let taken = steps("WalhouseReplayHolds", &db);
    let [status, request] = &taken[..] else { panic!("{taken:?}") };
    let found = take(status, &db, &daemon).await;
    assert!(found.contains("replay"), "{found}");
    let found = take(request, &db, &daemon).await;
    assert!(found.starts_with("begun\t") && found.contains(&from), "{found}");
    db.ch.query("ALTER TABLE item RESET SETTING min_free_disk_ratio_to_perform_insert").await;
    daemon.wait_log("delivered again from", 1).await;
    assert!(take(request, &db, &daemon).await.starts_with("done\t"));
    prometheus.rests("WalhouseReplayHolds").await;
    equal(&daemon).await;
    drop((prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_was_forgotten_is_told_until_it_is_ended() {
    let (db, daemon) = replicated("book_paused", "").await;
    let prometheus = watched(&db, &daemon, "WalhousePaused", &[("for: 30m", "for: 2m")]).await;
    done(&daemon, &["pause", "--reason", "the disk is changed"]).await;
    prometheus.fires("WalhousePaused").await;
    db.pg.execute("INSERT INTO item VALUES (1)").await;

    let taken = steps("WalhousePaused", &db);
    let [status, resume] = &taken[..] else { panic!("{taken:?}") };
    let found = take(status, &db, &daemon).await;
    for part in ["✗ pipeline: paused since", "the disk is changed", "→ walhouse resume"] {
        assert!(found.contains(part), "no {part:?} in: {found}");
    }
    take(resume, &db, &daemon).await;
    equal(&daemon).await;
    prometheus.rests("WalhousePaused").await;
    counted(&db, "SELECT count() FROM item", "1").await;
    drop((prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_and_a_table_that_stay_paused_are_told_until_they_go_on() {
    let (db, sqs) = (with_outbox("book_part").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let prometheus = watched(&db, &daemon, "WalhousePartPaused", &[("for: 240m", "for: 2m")]).await;
    done(&daemon, &["pause", "--worker", "audit", "--reason", "a mistake"]).await;
    done(&daemon, &["pause", "--table", "public.item"]).await;
    eventually(Duration::from_secs(150), async || {
        let mut what: Vec<String> = prometheus.firing("WalhousePartPaused").await?.into_iter().map(paused).collect();
        what.sort();
        if what == ["audit", "tables"] { Ok(()) } else { Err(format!("{what:?}")) }
    })
    .await;
    db.pg.execute("INSERT INTO item VALUES (1, 'later')").await;
    let event = format!("INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{LOGIN}')");
    db.pg.execute(&event).await;

    let taken = steps("WalhousePartPaused", &db);
    let [status, worker, table] = &taken[..] else { panic!("{taken:?}") };
    let found = take(status, &db, &daemon).await;
    for part in ["a mistake", "→ walhouse resume --worker audit", "→ walhouse resume --table public.item"] {
        assert!(found.contains(part), "no {part:?} in: {found}");
    }
    take(worker, &db, &daemon).await;
    take(&table.with("public.sales_order", "public.item"), &db, &daemon).await;
    counted(&db, "SELECT uniqExact(event_id) FROM audit_log", "1").await;
    counted(&db, "SELECT count() FROM item_current", "1").await;
    prometheus.rests("WalhousePartPaused").await;
    drop((prometheus, daemon));
    db.cleanup().await;
}

fn paused(alert: serde_json::Value) -> String {
    alert["labels"]["what"].as_str().unwrap_or_default().to_owned()
}
