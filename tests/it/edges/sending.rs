//! From the WAL into the queue.

use super::{Edge, handled, once, wait_handled, wait_sent};
use crate::support::{Sqs, confirmed, eventually, settled, stored};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_after_sqs_has_taken_an_event_and_before_its_answer_sends_it_twice_and_it_is_handled_once() {
    let edge = Edge::new("edge_answer").await;
    let mut sender = edge.sender().await;
    edge.queues.keep_answers(&["AmazonSQS.SendMessageBatch"]);
    edge.write().await;
    edge.queues.has_kept(1).await;
    sender.kill9();
    edge.has("audit-log-queue", 1).await;
    edge.mend();
    sender.start();
    wait_sent(&sender, 1).await;
    settled(&edge.db).await;
    // What is not known to be there is sent once more, with the same id.
    edge.has("audit-log-queue", 2).await;
    let workers = edge.workers();
    // Of the two messages one process runs the handler for the first, and knows the second by its id.
    wait_handled(&workers, "audit", "known", 1).await;
    wait_handled(&workers, "audit", "done", 1).await;
    edge.has("audit-log-queue", 0).await;
    assert_eq!(edge.audited().await, once());
    drop((sender, workers));
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_after_the_answer_and_before_the_checkpoint_sends_an_event_twice_and_it_is_handled_once() {
    let edge = Edge::new("edge_checkpoint").await;
    let mut sender = edge.sender().await;
    // What the first one has reserved is enough for the second, which no checkpoint holds up.
    edge.write().await;
    wait_sent(&sender, 1).await;
    settled(&edge.db).await;
    edge.warehouse.keep_requests(&["INTO _checkpoint"]);
    let before: u64 = edge.db.pg.value("SELECT pg_current_wal_insert_lsn() - '0/0'").await.parse().unwrap();
    edge.write().await;
    // Walhouse knows that it is sent, and nobody else does.
    wait_sent(&sender, 2).await;
    edge.warehouse.has_kept(1).await;
    sender.kill9();
    let checkpoint = stored(&edge.db.ch, &edge.db.name).await.unwrap().unwrap();
    let acknowledged = confirmed(&edge.db.pg, &edge.db.name).await.unwrap().unwrap();
    assert!(acknowledged <= checkpoint && checkpoint <= before, "{acknowledged}, {checkpoint}, {before}");
    edge.mend();
    sender.start();
    wait_sent(&sender, 1).await;
    settled(&edge.db).await;
    edge.has("audit-log-queue", 3).await;
    let workers = edge.workers();
    wait_handled(&workers, "audit", "known", 1).await;
    wait_handled(&workers, "audit", "done", 2).await;
    let two = || "2".to_owned();
    assert_eq!(edge.audited().await, (two(), two()));
    // What was stored is not sent again.
    sender.kill9();
    sender.start();
    sender.wait_ready().await;
    settled(&edge.db).await;
    assert_eq!(Sqs::shared().count(&edge.queue("audit-log-queue")).await, 0);
    assert_eq!((handled(&workers, "audit", "done").await, handled(&workers, "audit", "known").await), (2, 1));
    drop((sender, workers));
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_before_sqs_has_an_event_sends_it_once() {
    let edge = Edge::new("edge_request").await;
    let mut sender = edge.sender().await;
    edge.queues.keep_requests(&["AmazonSQS.SendMessageBatch"]);
    edge.write().await;
    edge.queues.has_kept(1).await;
    sender.kill9();
    edge.has("audit-log-queue", 0).await;
    edge.mend();
    sender.start();
    wait_sent(&sender, 1).await;
    settled(&edge.db).await;
    edge.has("audit-log-queue", 1).await;
    drop(sender);
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_without_a_kill_sends_an_event_twice_and_it_is_handled_once() {
    let edge = Edge::new("edge_lost").await;
    let sender = edge.sender().await;
    edge.queues.cut_after("AmazonSQS.SendMessageBatch");
    edge.write().await;
    edge.queues.is_cut().await;
    edge.mend();
    wait_sent(&sender, 1).await;
    eventually(Duration::from_secs(30), async || match Sqs::shared().count(&edge.queue("audit-log-queue")).await {
        2 => Ok(()),
        count => Err(format!("{count} messages")),
    })
    .await;
    let workers = edge.workers();
    wait_handled(&workers, "audit", "known", 1).await;
    wait_handled(&workers, "audit", "done", 1).await;
    assert_eq!(edge.audited().await, once());
    drop((sender, workers));
    edge.db.cleanup().await;
}
