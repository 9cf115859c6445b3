//! Events: those that became dead letters, and those whose handling does not end.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use walhouse::telemetry::names::{ALL, Kind, PROCESS};

use super::page::OnCall;
use super::{assert_finds, watched};
use crate::queue::{LOGIN, prefix, with_outbox};
use crate::support::{Daemon, Sqs, TestDb, eventually, program, steps, take};

pub(super) async fn login(db: &TestDb, day: &str) {
    let payload = LOGIN.replace('}', &format!(r#", "details": {{"day": "{day}"}}}}"#));
    let insert = "INSERT INTO outbox_event (event_type, payload) VALUES";
    db.pg.execute(&format!("{insert} ('SecurityEventOccurred', '{payload}')")).await;
}

pub(super) async fn audited(db: &TestDb, wanted: &str) {
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
    let on_call = OnCall::opens(&daemon).await;

    // A mistake: a column that somebody has added, and that not every event fits.
    db.ch
        .query("ALTER TABLE audit_log ADD COLUMN day Date MATERIALIZED toDate(JSONExtractString(details, 'day'))")
        .await;
    for day in ["someday", "2026-01-01"] {
        login(&db, day).await;
    }
    let alert = prometheus.fires("WalhouseDlqNotEmpty").await;
    assert_eq!((&alert["labels"]["queue"], &alert["labels"]["severity"]), (&"audit-log".into(), &"critical".into()));

    let words = ["1 dead letter", "walhouse dlq list --queue audit-log", "docs/recovery.md"];
    on_call.finds("audit-log-queue", &words, "WalhouseDlqNotEmpty").await;
    on_call.shows_in("#queues", &["audit-log-queue", "✗ 1"]).await;
    on_call.kept_as("dead-letters").await;

    let taken = steps("WalhouseDlqNotEmpty", &db);
    let [list, pause, redrive, resume, look] = &taken[..] else { panic!("{taken:?}") };
    assert_finds(&take(list, &db, &daemon).await, &["audit-log-dlq: 1 letter\n", "CANNOT_PARSE_DATE"]);
    take(pause, &db, &daemon).await;
    db.ch.query("ALTER TABLE audit_log DROP COLUMN day").await;
    assert_finds(&take(redrive, &db, &daemon).await, &["1 sent home"]);
    audited(&db, "1").await;
    take(resume, &db, &daemon).await;
    assert!(take(look, &db, &daemon).await.ends_with("audit-log-dlq: 0 letters\n"));
    prometheus.rests("WalhouseDlqNotEmpty").await;
    audited(&db, "2").await;
    on_call.rests().await;
    // Labels of real series are what the rules expect: none of them fails for want of a match, or for too many.
    let (failed, all) = prometheus.unsound().await;
    assert!(failed.is_empty() && all > 20, "of {all}: {failed:#?}");
    // By now nearly everything that can be measured was.
    every_series_is_in_the_list(&daemon.metrics().await);
    drop((on_call, prometheus, daemon));
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
    let on_call = OnCall::opens(&daemon).await;

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

    let words = ["it has had an event in hand for", "its time is 1 s", "none is lost", "end what hangs in ClickHouse"];
    on_call.finds("worker audit", &words, "WalhouseWorkerStuck").await;
    on_call.shows_in("#node-workers", &["1 of "]).await;
    daemon.wait_log("events wait until this is over", 1).await;
    on_call.kept_as("worker-stuck").await;

    let taken = steps("WalhouseWorkerStuck", &db);
    let [processes, views, detach, letters, status] = &taken[..] else { panic!("{taken:?}") };
    eventually(Duration::from_secs(60), async || {
        let running = take(processes, &db, &daemon).await;
        let ours = |line: &str| line.contains(&db.name) && line.contains("Insert") && line.contains("audit_log");
        if running.lines().any(ours) { Ok(()) } else { Err(running) }
    })
    .await;
    assert!(take(views, &db, &daemon).await.starts_with("audit_by_day\t"));
    take(detach, &db, &daemon).await;
    prometheus.rests("WalhouseWorkerStuck").await;
    prometheus.rests("WalhouseWorkerWaits").await;
    audited(&db, "1").await;
    assert!(take(letters, &db, &daemon).await.ends_with("audit-log-dlq: 0 letters\n"));
    assert_finds(&take(status, &db, &daemon).await, &["audit-log-queue: 0 messages, 0 dead letters", "All is well."]);
    on_call.rests().await;
    drop((on_call, prometheus, daemon));
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
