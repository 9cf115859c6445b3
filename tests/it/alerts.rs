//! The alerts and their runbooks: what is broken makes its alert fire in a real Prometheus, and what the page says mends it.
//!
//! Prometheus evaluates the rules as they are shipped, but for their durations: a minute is a second.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use walhouse::telemetry::names::{ALL, Kind, PROCESS};

use crate::queue::{LOGIN, prefix, with_outbox};
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Postgres, PostgresOptions, Prometheus, Running, Sqs, Step, TestDb, command,
    eventually, program, steps, take, walhouse,
};

async fn watched(db: &TestDb, daemon: &Daemon, alert: &str) -> Prometheus {
    let prometheus = Prometheus::scraping(daemon.port(), &db.directory);
    prometheus.scraped().await;
    prometheus.rests(alert).await;
    prometheus
}

async fn equal(daemon: &Daemon) {
    eventually(Duration::from_secs(60), async || {
        let exit = walhouse(daemon.config(), &["verify"]).await;
        if exit.code == Some(0) { Ok(()) } else { Err(format!("{exit:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_dropped_is_told_and_everything_is_copied_anew() {
    let db = TestDb::new("alert_slot").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY); INSERT INTO item SELECT generate_series(1, 100)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let prometheus = watched(&db, &daemon, "WalhouseDown").await;
    eventually(Duration::from_secs(30), async || match daemon.metric("walhouse_slot_state", "active").await {
        1.0 => Ok(()),
        _ => Err(daemon.metrics().await),
    })
    .await;

    let slot = format!("FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    eventually(Duration::from_secs(30), async || {
        db.pg.try_query(&format!("SELECT pg_terminate_backend(active_pid) {slot} AND active")).await?;
        let dropped = db.pg.try_query(&format!("SELECT pg_drop_replication_slot(slot_name) {slot}")).await?;
        if dropped.len() == 1 { Ok(()) } else { Err("there is no slot yet".to_owned()) }
    })
    .await;
    let (code, log) = daemon.wait_exit(Duration::from_secs(60)).await;
    assert!(code == 3 && log.contains("is gone"), "{code}: {log}");
    let alert = prometheus.fires("WalhouseDown").await;
    assert_eq!(alert["labels"]["severity"], "critical");

    let taken = steps("WalhouseDown", &db);
    let [check, look, drop_slot, drop_database, Step::Shell(run)] = &taken[..] else { panic!("{taken:?}") };
    let found = take(check, &db, &daemon).await;
    assert!(found.contains("will be created"), "{found}");
    assert_eq!(take(look, &db, &daemon).await, "", "there is no slot to look at");
    take(drop_slot, &db, &daemon).await;
    take(drop_database, &db, &daemon).await;
    let running = Running::start(command(run, &daemon));
    prometheus.rests("WalhouseDown").await;
    equal(&daemon).await;
    drop((running, prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_lost_is_told_while_walhouse_waits_for_clickhouse() {
    let settings = vec![("max_slot_wal_keep_size", "32MB".to_owned()), ("min_wal_size", "32MB".to_owned())];
    let postgres = Postgres::private(PostgresOptions { version: "18", settings, ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::private(ClickHouseOptions::default()), "alert_lost").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let prometheus = watched(&db, &daemon, "WalhouseSlotLost").await;
    eventually(Duration::from_secs(30), async || {
        let safe = daemon.metric("walhouse_slot_safe_wal_bytes", "").await;
        if (1.0..=64e6).contains(&safe) { Ok(()) } else { Err(format!("{safe} bytes are left")) }
    })
    .await;

    // Nobody reads the slot while the WAL grows; then walhouse comes back, and can not begin.
    db.clickhouse.kill9();
    daemon.kill9();
    for _ in 0..6 {
        db.pg.execute("SELECT pg_logical_emit_message(false, 'x', 'x'); SELECT pg_switch_wal()").await;
    }
    db.pg.execute("CHECKPOINT").await;
    daemon.start();
    let alert = prometheus.fires("WalhouseSlotLost").await;
    assert_eq!(alert["labels"]["state"], "lost");
    assert_eq!(daemon.metric("walhouse_slot_invalidated", "reason=\"wal_removed\"").await, 1.0);
    assert_eq!(daemon.metric("walhouse_slot_safe_wal_bytes", "").await, 0.0);
    drop((prometheus, daemon));
    db.clickhouse.start();
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clickhouse_that_is_down_is_told_and_nothing_is_missing_afterwards() {
    let clickhouse = ClickHouse::private(ClickHouseOptions::default());
    let db = TestDb::on(Postgres::shared(), clickhouse, "alert_away").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY)").await;
    // More tables than may have series of their own: all are counted together.
    let mut daemon = Daemon::spawn(&db, "[metrics]\nmax_tables = 0\n");
    daemon.wait_ready().await;
    let prometheus = watched(&db, &daemon, "WalhouseDependencyAway").await;

    db.clickhouse.kill9();
    db.pg.execute("INSERT INTO item SELECT generate_series(1, 100)").await;
    let alert = prometheus.fires("WalhouseDependencyAway").await;
    assert_eq!(alert["labels"]["dependency"], "clickhouse");
    // It is the one that is told: what follows from it is not another dependency's trouble.
    assert_eq!(prometheus.firing("WalhouseDependencyAway").await.map(|alerts| alerts.len()), Ok(1));

    let taken = steps("WalhouseDependencyAway", &db);
    let [check, verify] = &taken[..] else { panic!("{taken:?}") };
    let found = take(check, &db, &daemon).await;
    assert!(found.contains("✗ ClickHouse"), "{found}");
    db.clickhouse.start();
    prometheus.rests("WalhouseDependencyAway").await;
    eventually(Duration::from_secs(60), async || match take(verify, &db, &daemon).await {
        equal if equal.ends_with("The table is equal.\n") => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(daemon.metric("walhouse_rows_written_total", "table=\"(others)\"").await, 100.0);
    assert_eq!(daemon.metric("walhouse_rows_written_total", "public.item").await, 0.0);
    drop((prometheus, daemon));
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

    db.pg
        .execute(
            "ALTER TABLE sales_order DROP CONSTRAINT sales_order_pkey, ADD PRIMARY KEY (number);
            INSERT INTO sales_order VALUES (1, 20)",
        )
        .await;
    prometheus.fires("WalhouseTableStopped").await;
    assert_eq!(daemon.metric("walhouse_table_stopped", "table=\"public.sales_order\"").await, 1.0);

    let taken = steps("WalhouseTableStopped", &db);
    let [verify, look, resync] = &taken[..] else { panic!("{taken:?}") };
    assert!(take(verify, &db, &daemon).await.contains("✗  public.sales_order  stopped: "));
    assert!(take(look, &db, &daemon).await.starts_with("public\tsales_order\tstopped\t"));
    take(resync, &db, &daemon).await;
    prometheus.rests("WalhouseTableStopped").await;
    assert_eq!(daemon.metric("walhouse_table_stopped", "table=\"public.sales_order\"").await, 0.0);
    equal(&daemon).await;
    drop((prometheus, daemon));
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
    let listed = take(list, &db, &daemon).await;
    assert!(listed.contains("sales_order") && listed.contains("placed"), "{listed}");
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

async fn login(db: &TestDb, day: &str) {
    let payload = LOGIN.replace('}', &format!(r#", "details": {{"day": "{day}"}}}}"#));
    let insert = "INSERT INTO outbox_event (event_type, payload) VALUES";
    db.pg.execute(&format!("{insert} ('SecurityEventOccurred', '{payload}')")).await;
}

async fn audited(db: &TestDb, wanted: &str) {
    eventually(Duration::from_secs(60), async || {
        let found = db.ch.try_query("SELECT uniqExact(event_id) FROM audit_log").await?;
        if found.trim() == wanted { Ok(()) } else { Err(format!("{found} of {wanted} events")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_told_and_redriven() {
    let (db, sqs) = (with_outbox("alert_dlq").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let prometheus = watched(&db, &daemon, "WalhouseDlqNotEmpty").await;

    // A mistake: a column that somebody has added, and that not every event fits.
    db.ch
        .query("ALTER TABLE audit_log ADD COLUMN day Date MATERIALIZED toDate(JSONExtractString(details, 'day'))")
        .await;
    for day in ["someday", "2026-01-01"] {
        login(&db, day).await;
    }
    let alert = prometheus.fires("WalhouseDlqNotEmpty").await;
    assert_eq!((&alert["labels"]["queue"], &alert["labels"]["severity"]), (&"audit-log".into(), &"critical".into()));

    let taken = steps("WalhouseDlqNotEmpty", &db);
    let [list, redrive, look] = &taken[..] else { panic!("{taken:?}") };
    let listed = take(list, &db, &daemon).await;
    assert!(listed.contains("audit-log-dlq: 1 letter\n") && listed.contains("CANNOT_PARSE_DATE"), "{listed}");
    db.ch.query("ALTER TABLE audit_log DROP COLUMN day").await;
    assert!(take(redrive, &db, &daemon).await.contains("1 sent home"));
    assert!(take(look, &db, &daemon).await.ends_with("audit-log-dlq: 0 letters\n"));
    prometheus.rests("WalhouseDlqNotEmpty").await;
    audited(&db, "2").await;
    // Labels of real series are what the rules expect: none of them fails for want of a match, or for too many.
    let (failed, all) = prometheus.unsound().await;
    assert!(failed.is_empty() && all > 20, "of {all}: {failed:#?}");
    // By now nearly everything that can be measured was.
    every_series_is_in_the_list(&daemon.metrics().await);
    drop((prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_handling_hangs_is_told_and_handled_once_that_is_mended() {
    let (db, sqs) = (with_outbox("alert_stuck").await, Sqs::shared());
    let config = format!("{}[workers.audit]\ntimeout = \"1s\"\n", Sqs::handled(sqs.port(), &prefix(&db)));
    let mut daemon = Daemon::spawn(&db, &config);
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let prometheus = watched(&db, &daemon, "WalhouseWorkerStuck").await;

    // A view that runs within each insert, and takes longer than a worker waits.
    db.ch
        .query(
            "CREATE MATERIALIZED VIEW audit_by_day ENGINE = Memory AS SELECT toDate(event_timestamp) AS day,
            sleepEachRow(3) AS waited FROM audit_log",
        )
        .await;
    login(&db, "2026-01-01").await;
    let alert = prometheus.fires("WalhouseWorkerStuck").await;
    assert_eq!(alert["labels"]["worker"], "audit");
    prometheus.fires("WalhouseWorkerWaits").await;

    let taken = steps("WalhouseWorkerStuck", &db);
    let [processes, views, detach] = &taken[..] else { panic!("{taken:?}") };
    take(processes, &db, &daemon).await;
    assert!(take(views, &db, &daemon).await.starts_with("audit_by_day\t"));
    take(detach, &db, &daemon).await;
    prometheus.rests("WalhouseWorkerStuck").await;
    prometheus.rests("WalhouseWorkerWaits").await;
    audited(&db, "1").await;
    drop((prometheus, daemon));
    db.cleanup().await;
}

/// Whatever is measured is in the list, with the labels that the list has, and as Prometheus likes it.
fn every_series_is_in_the_list(page: &str) {
    let mut labels: HashMap<String, BTreeSet<&str>> = HashMap::new();
    for metric in ALL {
        let own: BTreeSet<&str> = metric.labels.iter().copied().collect();
        match metric.kind {
            Kind::Histogram => {
                labels.extend(["sum", "count"].map(|end| (format!("{}_{end}", metric.name), own.clone())));
                labels.insert(format!("{}_bucket", metric.name), own.into_iter().chain(["le"]).collect());
            }
            _ => drop(labels.insert(metric.name.to_owned(), own)),
        }
    }
    labels.extend(PROCESS.iter().map(|(name, ..)| ((*name).to_owned(), BTreeSet::new())));
    let mut seen = BTreeSet::new();
    for line in page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').expect("a series and its value");
        let (name, of) = series.split_once('{').unwrap_or((series, ""));
        let own: BTreeSet<&str> =
            of.trim_end_matches('}').split("\",").filter_map(|label| Some(label.split_once('=')?.0)).collect();
        assert_eq!(labels.get(name), Some(&own), "{line}");
        seen.insert(name);
    }
    for (name, ..) in PROCESS {
        assert!(seen.contains(name), "{name} is not measured");
    }
    let mut lint = Command::new(program("promtool"));
    let mut lint = lint.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    lint.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let linted = lint.wait_with_output().unwrap();
    assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stderr));
}
