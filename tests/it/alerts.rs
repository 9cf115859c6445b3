//! The alerts and their runbooks: what is broken makes its alert fire in a real Prometheus, the status page tells of it in a real
//! browser, and every step of the alert's section, as it stands there, is taken and mends it.
//!
//! Prometheus evaluates the rules as they are shipped, but for their durations: a minute is a second. What the page shows during a
//! fault is kept as a picture in `target/screenshots`.

mod events;
mod page;
mod slot;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::queue::{OUTBOX, prefix};
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Postgres, Prometheus, Sqs, TestDb, eventually, steps, take, walhouse,
};
use events::{audited, login};
use page::OnCall;

async fn watched(db: &TestDb, daemon: &Daemon, alert: &str) -> Prometheus {
    let prometheus = Prometheus::scraping(daemon.port(), &db.directory);
    prometheus.scraped().await;
    prometheus.rests(alert).await;
    prometheus
}

/// Waits until `walhouse verify` finds both sides equal.
async fn equal(daemon: &Daemon) {
    eventually(Duration::from_secs(60), async || {
        let exit = walhouse(daemon.config(), &["verify"]).await;
        if exit.code == Some(0) { Ok(()) } else { Err(format!("{exit:?}")) }
    })
    .await;
}

/// What was found, all of which has to be there.
#[track_caller]
fn assert_finds(found: &str, words: &[&str]) {
    for word in words {
        assert!(found.contains(word), "no {word:?} in:\n{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clickhouse_that_is_down_is_told_and_nothing_is_missing_afterwards() {
    let (clickhouse, sqs) = (ClickHouse::private(ClickHouseOptions::default()), Sqs::shared());
    let db = TestDb::on(Postgres::shared(), clickhouse, "alert_away").await;
    db.pg.execute(OUTBOX).await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY)").await;
    // More tables than may have series of their own: all are counted together.
    let config = format!("{}[metrics]\nmax_tables = 0\n", Sqs::handled(sqs.port(), &prefix(&db)));
    let mut daemon = Daemon::spawn(&db, &config);
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let prometheus = watched(&db, &daemon, "WalhouseDependencyAway").await;
    let on_call = OnCall::opens(&daemon).await;
    on_call.rests().await;
    // The first event has its place stored in ClickHouse; those after it go to SQS without.
    login(&db, "2026-01-01").await;
    audited(&db, "1").await;

    db.clickhouse.kill9();
    db.pg.execute("INSERT INTO item SELECT generate_series(1, 100)").await;
    login(&db, "2026-01-02").await;
    let alert = prometheus.fires("WalhouseDependencyAway").await;
    assert_eq!(alert["labels"]["dependency"], "clickhouse");
    // It is the one that is told: what follows from it is not another dependency's trouble.
    assert_eq!(prometheus.firing("WalhouseDependencyAway").await.map(|alerts| alerts.len()), Ok(1));
    let alert = prometheus.fires("WalhouseWorkerWaits").await;
    assert_eq!(alert["labels"]["worker"], "audit");
    let words = ["it can not be reached", "nothing is lost", "goes on by itself", "walhouse check"];
    on_call.finds("ClickHouse", &words, "WalhouseDependencyAway").await;
    // Longer than an event may take: it waits, and is not said to hang.
    eventually(Duration::from_secs(60), async || {
        let oldest = daemon.metric("walhouse_worker_oldest_in_hand_timestamp_seconds", "\"audit\"").await;
        let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() - oldest;
        if oldest > 0.0 && age > 16.0 { Ok(()) } else { Err(format!("{age} s, since {oldest}")) }
    })
    .await;
    on_call.finds("worker audit", &["what it depends on is away", "walhouse check"], "WalhouseWorkerWaits").await;
    assert!(!on_call.text().await.contains("WalhouseWorkerStuck"), "{}", on_call.text().await);
    on_call.shows_in("#node-target", &["not reached"]).await;
    on_call.kept_as("clickhouse-away").await;

    let taken = steps("WalhouseWorkerWaits", &db);
    let [status, check] = &taken[..] else { panic!("{taken:?}") };
    assert_finds(&take(status, &db, &daemon).await, &["ClickHouse   can not be reached", "audit-log-queue: "]);
    assert_finds(&take(check, &db, &daemon).await, &["✗ ClickHouse"]);
    let taken = steps("WalhouseDependencyAway", &db);
    let [status, check, verify] = &taken[..] else { panic!("{taken:?}") };
    let found = take(status, &db, &daemon).await;
    assert_finds(&found, &["walhouse     up: ", "WAL          ", "✗ ClickHouse: ", "WalhouseDependencyAway"]);
    assert_finds(&take(check, &db, &daemon).await, &["✓ PostgreSQL", "✗ ClickHouse"]);
    db.clickhouse.start();
    prometheus.rests("WalhouseDependencyAway").await;
    prometheus.rests("WalhouseWorkerWaits").await;
    eventually(Duration::from_secs(60), async || match take(verify, &db, &daemon).await {
        equal if equal.ends_with("The table is equal.\n") => Ok(()),
        other => Err(other),
    })
    .await;
    audited(&db, "2").await;
    on_call.rests().await;
    assert_eq!(daemon.metric("walhouse_rows_written_total", "table=\"(others)\"").await, 100.0);
    assert_eq!(daemon.metric("walhouse_rows_written_total", "public.item").await, 0.0);
    drop((on_call, prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_stopped_by_ddl_is_told_and_copied_again() {
    let db = TestDb::new("alert_stopped").await;
    db.pg
        .execute(
            "CREATE TABLE sales_order (id int8 PRIMARY KEY, number int8 NOT NULL); INSERT INTO sales_order VALUES (1, 10)",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let prometheus = watched(&db, &daemon, "WalhouseTableStopped").await;
    let on_call = OnCall::opens(&daemon).await;

    db.pg
        .execute(
            "ALTER TABLE sales_order DROP CONSTRAINT sales_order_pkey, ADD PRIMARY KEY (number);
            INSERT INTO sales_order VALUES (1, 20)",
        )
        .await;
    prometheus.fires("WalhouseTableStopped").await;
    assert_eq!(daemon.metric("walhouse_table_stopped", "table=\"public.sales_order\"").await, 1.0);
    let words = ["stopped: ", "walhouse resync public.sales_order"];
    on_call.finds("public.sales_order", &words, "WalhouseTableStopped").await;
    on_call.shows_in("#tables", &["stopped"]).await;
    on_call.kept_as("table-stopped").await;

    let taken = steps("WalhouseTableStopped", &db);
    let [status, resync, verify] = &taken[..] else { panic!("{taken:?}") };
    let found = take(status, &db, &daemon).await;
    assert_finds(&found, &["✗ public.sales_order: stopped: ", "→ walhouse resync public.sales_order"]);
    let differs = take(verify, &db, &daemon).await;
    assert!(!differs.ends_with("The table is equal.\n"), "not before it is mended: {differs}");
    take(resync, &db, &daemon).await;
    prometheus.rests("WalhouseTableStopped").await;
    assert_eq!(daemon.metric("walhouse_table_stopped", "table=\"public.sales_order\"").await, 0.0);
    eventually(Duration::from_secs(60), async || match take(verify, &db, &daemon).await {
        equal if equal.ends_with("The table is equal.\n") => Ok(()),
        other => Err(other),
    })
    .await;
    on_call.rests().await;
    drop((on_call, prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_a_dead_letter_is_told_until_its_letter_is_purged() {
    let db = TestDb::new("alert_letters").await;
    db.pg.execute("CREATE TABLE sales_order (id int8 PRIMARY KEY, placed date)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let prometheus = watched(&db, &daemon, "WalhouseDeadLetters").await;
    db.pg.execute("INSERT INTO sales_order VALUES (1, 'infinity'), (2, '2026-01-01')").await;
    let alert = prometheus.fires("WalhouseDeadLetters").await;
    assert_eq!(alert["labels"]["table"], "public.sales_order");

    let taken = steps("WalhouseDeadLetters", &db);
    let [list, verify, purge] = &taken[..] else { panic!("{taken:?}") };
    assert_finds(&take(list, &db, &daemon).await, &["sales_order", "placed"]);
    db.pg.execute("UPDATE sales_order SET placed = '2026-01-02' WHERE id = 1").await;
    eventually(Duration::from_secs(60), async || match take(verify, &db, &daemon).await {
        equal if equal.ends_with("The table is equal.\n") => Ok(()),
        other => Err(other),
    })
    .await;
    take(purge, &db, &daemon).await;
    prometheus.rests("WalhouseDeadLetters").await;
    drop((prometheus, daemon));
    db.cleanup().await;
}
