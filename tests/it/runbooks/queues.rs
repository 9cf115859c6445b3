//! Queues and workers: what can not be seen, waits, or fails.

use std::time::Duration;

use super::watched;
use crate::queue::{LOGIN, prefix, with_outbox};
use crate::support::{
    Daemon, Prometheus, Running, Sqs, Step, TestDb, command, eventually, free_port, steps, take, write_config,
};

const SENT: &str = "events that are written into the outbox table are sent from now on";

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

async fn handled(db: &TestDb, port: u16, alert: &str, thresholds: &[(&str, &str)]) -> (Daemon, Prometheus) {
    let mut daemon = Daemon::spawn(db, &Sqs::handled(port, &prefix(db)));
    daemon.wait_ready().await;
    daemon.wait_log(SENT, 1).await;
    let prometheus = watched(db, &daemon, alert, thresholds).await;
    (daemon, prometheus)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_dead_letters_that_is_gone_is_told_and_made_anew() {
    let (db, sqs) = (with_outbox("book_counted").await, Sqs::shared());
    let (daemon, prometheus) = handled(&db, sqs.port(), "WalhouseDlqNotCounted", &[("for: 15m", "for: 2m")]).await;
    let dead = format!("{}audit-log-dlq", prefix(&db));
    sqs.client().delete_queue().queue_url(sqs.url(&dead).await).send().await.unwrap();
    let alert = prometheus.fires("WalhouseDlqNotCounted").await;
    assert_eq!(alert["labels"]["queue"], "audit-log");
    daemon.wait_log("can not be counted", 1).await;

    let taken = steps("WalhouseDlqNotCounted", &db);
    let [dry_run, list, provision] = &taken[..] else { panic!("{taken:?}") };
    let found = take(dry_run, &db, &daemon).await;
    assert!(found.contains(&format!("+ queue       {dead}")) && found.contains("would be created"), "{found}");
    let found = take(&list.with("audit-log", "data-sync"), &db, &daemon).await;
    assert!(found.ends_with("data-sync-dlq: 0 letters\n"), "{found}");
    let found = take(provision, &db, &daemon).await;
    assert!(found.contains("  created") && found.ends_with(" done.\n"), "{found}");
    prometheus.rests("WalhouseDlqNotCounted").await;
    assert!(take(list, &db, &daemon).await.ends_with("audit-log-dlq: 0 letters\n"));
    assert_eq!(daemon.metric("walhouse_dlq_messages", "audit-log").await, 0.0);
    drop((prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_no_worker_takes_are_told_until_a_second_process_takes_them() {
    let (db, sqs) = (with_outbox("book_waits").await, Sqs::shared());
    let own = Sqs::config(sqs.port(), &prefix(&db));
    let mut daemon = Daemon::spawn(&db, &own);
    daemon.wait_ready().await;
    daemon.wait_log(SENT, 1).await;
    login(&db, "2026-01-01").await;
    let queue = format!("{}audit-log-queue", prefix(&db));
    eventually(Duration::from_secs(20), async || match sqs.count(&queue).await {
        1 => Ok(()),
        other => Err(format!("{other} messages")),
    })
    .await;
    // A new process counts at once what is there.
    assert_eq!(daemon.sigterm(Duration::from_secs(20)).await.code(), Some(0));
    daemon.start();
    daemon.wait_ready().await;
    let prometheus = Prometheus::scraping_by(daemon.port(), &db.directory, &[("> 300", "> 3")]);
    let alert = prometheus.fires("WalhouseQueueWaits").await;
    assert_eq!(alert["labels"]["queue"], "audit-log");

    let taken = steps("WalhouseQueueWaits", &db);
    let [status, metrics, config, second] = &taken[..] else { panic!("{taken:?}") };
    let found = take(status, &db, &daemon).await;
    for part in ["audit-log-queue: 1 messages", "workers      audit (off)"] {
        assert!(found.contains(part), "no {part:?} in: {found}");
    }
    let found = take(metrics, &db, &daemon).await;
    let line = r#"walhouse_queue_messages{queue="audit-log",state="visible"} 1"#;
    assert!(found.contains(line) && !found.contains("walhouse_worker_in_hand{"), "{found}");
    assert!(take(config, &db, &daemon).await.contains("[workers]\nenabled = false"));
    let workers = write_config(&db, &Sqs::handled(sqs.port(), &prefix(&db)), free_port(), "walhouse-workers.toml");
    let Step::Shell(line) = second.with("/etc/walhouse-workers.toml", &workers.display().to_string()) else {
        panic!("{second:?}")
    };
    let running = Running::start(command(&line, &daemon));
    audited(&db, "1").await;
    prometheus.rests("WalhouseQueueWaits").await;
    drop((running, prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_fails_is_paused_before_more_events_are_dead_letters() {
    let (db, sqs) = (with_outbox("book_fails").await, Sqs::shared());
    let (daemon, prometheus) =
        handled(&db, sqs.port(), "WalhouseWorkerFails", &[("[15m]", "[8m]"), ("for: 5m", "for: 2m")]).await;
    let column = "ADD COLUMN day Date MATERIALIZED toDate(JSONExtractString(details, 'day'))";
    db.ch.query(&format!("ALTER TABLE audit_log {column}")).await;
    for number in 0..8 {
        login(&db, &format!("day {number}")).await;
    }
    let alert = prometheus.fires("WalhouseWorkerFails").await;
    assert_eq!(alert["labels"]["worker"], "audit");
    assert!(daemon.log().contains("an event is a dead letter"), "{}", daemon.log());

    let taken = steps("WalhouseWorkerFails", &db);
    let [list, pause, resume] = &taken[..] else { panic!("{taken:?}") };
    eventually(Duration::from_secs(30), async || match take(list, &db, &daemon).await {
        found if found.contains("CANNOT_PARSE_DATE") => Ok(()),
        other => Err(other),
    })
    .await;
    take(pause, &db, &daemon).await;
    login(&db, "some day").await;
    eventually(Duration::from_secs(20), async || match daemon.metric("walhouse_paused", "what=\"audit\"").await {
        1.0 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    db.ch.query("ALTER TABLE audit_log DROP COLUMN day").await;
    prometheus.rests("WalhouseWorkerFails").await;
    take(resume, &db, &daemon).await;
    // What waited was handled, and never failed.
    eventually(Duration::from_secs(60), async || {
        let found = db.ch.try_query("SELECT countIf(details LIKE '%some day%') FROM audit_log FINAL").await?;
        if found == "1" { Ok(()) } else { Err(found) }
    })
    .await;
    drop((prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sqs_that_comes_back_without_its_queues_gets_them_anew_and_no_event_is_lost() {
    let (db, sqs) = (with_outbox("book_requests").await, Sqs::private());
    let (daemon, prometheus) = handled(&db, sqs.port(), "WalhouseQueueRequestsFail", &[("for: 5m", "for: 2m")]).await;
    login(&db, "2026-01-01").await;
    audited(&db, "1").await;
    sqs.stop();
    login(&db, "2026-01-02").await;
    prometheus.fires("WalhouseQueueRequestsFail").await;
    assert!(daemon.metric("walhouse_queue_errors_total", "").await > 0.0);
    assert!(daemon.metric("walhouse_worker_take_errors_total", "").await > 0.0);

    let taken = steps("WalhouseQueueRequestsFail", &db);
    let [check, dry_run, provision] = &taken[..] else { panic!("{taken:?}") };
    let found = take(check, &db, &daemon).await;
    assert!(found.contains("✓ PostgreSQL") && found.contains("can not be reached"), "{found}");
    sqs.start();
    let found = take(dry_run, &db, &daemon).await;
    assert!(found.contains("audit-log-queue"), "{found}");
    take(provision, &db, &daemon).await;
    audited(&db, "2").await;
    prometheus.rests("WalhouseQueueRequestsFail").await;
    drop((prometheus, daemon));
    db.cleanup().await;
}
