//! From the queue into the audit log.
//!
//! A process that was killed has its message for half a minute more; then another one gets it.

use super::{Edge, handled, once, twice_and_once, wait_handled};
use crate::support::{eventually, settled};
use std::time::Duration;

/// One run of the handler for as long as the test wants.
const PATIENT: &str = "[workers.audit]\ntimeout = \"60s\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_an_effect_and_the_deletion_of_its_message_runs_the_handler_twice_and_leaves_one_row() {
    let edge = Edge::new("edge_delete").await;
    let mut daemon = edge.whole("").await;
    edge.queues.keep_requests(&["AmazonSQS.DeleteMessageBatch", "audit-log-queue"]);
    edge.write().await;
    edge.queues.has_kept(1).await;
    wait_handled(&daemon, "audit", "done", 1).await;
    assert_eq!(edge.audited().await, once());
    // That it was sent is stored, so it is not sent again.
    settled(&edge.db).await;
    daemon.kill9();
    edge.mend();
    edge.has("audit-log-queue", 1).await;
    daemon.start();
    // What a process knows of events dies with it: the second one runs the handler again, and its row is the same.
    wait_handled(&daemon, "audit", "done", 1).await;
    edge.has("audit-log-queue", 0).await;
    assert_eq!(handled(&daemon, "audit", "known").await, 0);
    assert_eq!(edge.audited().await, twice_and_once());
    drop(daemon);
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_whose_answer_is_lost_is_repeated_and_the_handler_is_not() {
    let edge = Edge::new("edge_deleted").await;
    let daemon = edge.whole("").await;
    edge.queues.cut_after("AmazonSQS.DeleteMessageBatch");
    edge.write().await;
    edge.queues.is_cut().await;
    edge.mend();
    wait_handled(&daemon, "audit", "done", 1).await;
    edge.has("audit-log-queue", 0).await;
    assert_eq!(edge.audited().await, once());
    drop(daemon);
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_before_clickhouse_has_the_row_leaves_one_row() {
    let edge = Edge::new("edge_insert").await;
    let mut daemon = edge.whole(PATIENT).await;
    edge.warehouse.keep_requests(&["INSERT+INTO+audit_log"]);
    edge.write().await;
    // The handler runs, and its insert is on its way.
    edge.warehouse.has_kept(1).await;
    assert_eq!(handled(&daemon, "audit", "done").await, 0);
    settled(&edge.db).await;
    daemon.kill9();
    edge.mend();
    assert_eq!(edge.audited().await, ("0".to_owned(), "0".to_owned()));
    daemon.start();
    // The first run came to nothing; the second is the one that counts.
    wait_handled(&daemon, "audit", "done", 1).await;
    edge.has("audit-log-queue", 0).await;
    assert_eq!(edge.audited().await, once());
    drop(daemon);
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_after_clickhouse_has_the_row_and_before_its_answer_leaves_one_row_for_a_reader() {
    let edge = Edge::new("edge_inserted").await;
    let mut daemon = edge.whole(PATIENT).await;
    edge.warehouse.keep_answers(&["INSERT+INTO+audit_log"]);
    edge.write().await;
    edge.warehouse.has_kept(1).await;
    assert_eq!(handled(&daemon, "audit", "done").await, 0);
    settled(&edge.db).await;
    daemon.kill9();
    edge.mend();
    assert_eq!(edge.audited().await, once());
    daemon.start();
    wait_handled(&daemon, "audit", "done", 1).await;
    edge.has("audit-log-queue", 0).await;
    // Neither run knew of the other, and both wrote: the event's id makes one of them.
    assert_eq!(edge.audited().await, twice_and_once());
    drop(daemon);
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_flow_through_two_processes_of_the_same_configuration_of_which_one_has_no_workers() {
    const EVENTS: u64 = 200;
    let edge = Edge::new("edge_two").await;
    let mut sender = edge.sender().await;
    let mut workers = edge.workers();
    workers.wait_log("another walhouse holds this slot", 1).await;
    for _ in 0..EVENTS / 2 {
        edge.write().await;
    }
    let audited = async |rows: u64| {
        eventually(Duration::from_secs(60), async || match edge.audited().await.1.parse::<u64>() {
            Ok(count) if count == rows => Ok(()),
            other => Err(format!("{other:?} of {rows}")),
        })
        .await;
    };
    audited(EVENTS / 2).await;
    assert_eq!(u64::from(handled(&workers, "audit", "done").await), EVENTS / 2);
    assert!(!sender.metrics().await.contains("walhouse_events_handled_total{"), "it has no workers");
    // Whoever has the slot sends, and whoever has workers handles: now that is one and the same.
    sender.kill9();
    workers.wait_ready().await;
    for _ in 0..EVENTS / 2 {
        edge.write().await;
    }
    audited(EVENTS).await;
    edge.has("audit-log-queue", 0).await;
    drop((sender, workers));
    edge.db.cleanup().await;
}
