//! The process: whether it is seen, stays up, and has room.

use std::fs;
use std::time::Duration;

use super::{equal, slow_down, speed_up, watched};
use crate::support::{Daemon, Prometheus, TestDb, eventually, steps, take};

#[tokio::test(flavor = "multi_thread")]
async fn a_walhouse_that_prometheus_does_not_know_is_found_by_the_name_of_its_job() {
    let db = TestDb::new("book_scrape").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let prometheus = Prometheus::scraping_as("warehouse", daemon.port(), &db.directory, &[]);
    let file = db.directory.join("prometheus.yml");
    let alert = prometheus.fires("WalhouseNotScraped").await;
    assert_eq!(alert["labels"]["severity"], "critical");

    let taken = steps("WalhouseNotScraped", &db);
    let [config, metrics, targets, promtool] = &taken[..] else { panic!("{taken:?}") };
    let listens = format!("listen = \"127.0.0.1:{}\"", daemon.port());
    assert!(take(config, &db, &daemon).await.contains(&listens));
    assert!(take(metrics, &db, &daemon).await.contains("\nwalhouse_build_info{"));
    let own = format!(":{}/", prometheus.port());
    let found = take(&targets.with(":9090/", &own), &db, &daemon).await;
    assert!(found.contains(r#""job":"warehouse""#) && !found.contains(r#""job":"walhouse""#), "{found}");
    let wrong = fs::read_to_string(&file).unwrap();
    fs::write(&file, wrong.replace("job_name: warehouse", "job_name: walhouse")).unwrap();
    let own = file.display().to_string();
    let checked = take(&promtool.with("/etc/prometheus/prometheus.yml", &own), &db, &daemon).await;
    assert!(checked.contains("SUCCESS"), "{checked}");
    // What the step for systemd does.
    prometheus.reload();
    prometheus.rests("WalhouseNotScraped").await;
    drop((prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walhouse_that_is_killed_again_and_again_is_told_until_it_stays_up() {
    let db = TestDb::new("book_restarts").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let alert = "WalhouseRestarts";
    let prometheus = watched(&db, &daemon, alert, &[("[15m]) > 2", "[20m]) > 1")]).await;
    // However long a life takes on a machine that has much to do, it is told of in the end.
    let mut lives = 0;
    while prometheus.firing(alert).await.unwrap().is_empty() {
        assert!(lives < 30, "it does not fire");
        daemon.kill9();
        db.pg.execute(&format!("INSERT INTO item VALUES ({lives})")).await;
        daemon.start();
        eventually(Duration::from_secs(60), async || daemon.get("/metrics").await.map(drop)).await;
        let began = daemon.metric("process_start_time_seconds", "").await;
        prometheus.sees("process_start_time_seconds", &began.to_string()).await;
        lives += 1;
    }

    let taken = steps("WalhouseRestarts", &db);
    let [memory, check, status] = &taken[..] else { panic!("{taken:?}") };
    let found = take(memory, &db, &daemon).await;
    for metric in ["process_resident_memory_bytes ", "walhouse_memory_budget_bytes "] {
        assert!(found.contains(metric), "no {metric} in: {found}");
    }
    let found = take(check, &db, &daemon).await;
    assert!(found.contains("✓ PostgreSQL") && !found.contains('✗'), "{found}");
    prometheus.rests(alert).await;
    daemon.wait_ready().await;
    let found = take(status, &db, &daemon).await;
    assert!(found.contains("walhouse     up: process ") && found.contains("All is well."), "{found}");
    equal(&daemon).await;
    drop((prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clickhouse_that_takes_less_than_comes_fills_the_budget_and_no_more() {
    let db = TestDb::new("book_memory").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY, v text)").await;
    let mut daemon = Daemon::spawn(&db, "[batch]\nmax_bytes = \"1MiB\"\n[memory]\nbudget = \"4MiB\"\n");
    daemon.wait_ready().await;
    let prometheus = watched(&db, &daemon, "WalhouseMemoryNearBudget", &[("for: 15m", "for: 4m")]).await;
    slow_down(&db).await;
    let rows = "SELECT i, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 20) WHERE i > 0)";
    db.pg.execute(&format!("INSERT INTO item {rows} FROM generate_series(1, 30000) i")).await;
    prometheus.fires("WalhouseMemoryNearBudget").await;
    assert!(daemon.metric("walhouse_memory_in_flight_bytes", "").await <= f64::from(4 << 20));
    // Its one transaction has not come in whole, and is late all the same.
    assert!(daemon.metric("walhouse_lag_seconds", "").await > 3.0);

    let taken = steps("WalhouseMemoryNearBudget", &db);
    let [status, processes] = &taken[..] else { panic!("{taken:?}") };
    let behind = take(status, &db, &daemon).await;
    assert!(
        behind.contains(" of WAL are kept for the slot") && behind.contains(" before the end of the WAL"),
        "{behind}"
    );
    eventually(Duration::from_secs(20), async || match take(processes, &db, &daemon).await {
        found if found.contains("INSERT INTO") && found.contains("item") => Ok(()),
        other => Err(other),
    })
    .await;
    speed_up(&db).await;
    prometheus.rests("WalhouseMemoryNearBudget").await;
    equal(&daemon).await;
    assert_eq!(daemon.metric("walhouse_back_pressure", "").await, 0.0);
    drop((prometheus, daemon));
    db.cleanup().await;
}
