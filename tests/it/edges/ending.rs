//! How walhouse ends while a part of it can not go on.

use std::time::Duration;

use super::{Edge, wait_handled};
use crate::queue::insert;
use crate::support::{confirmed, eventually, stored};

/// A length that no answer has, so that there is no room for as many columns: a panic in ClickHouse's own client.
const NO_ANSWER: &str = "SELECT unhex('FFFFFFFFFFFFFFFF7F') FORMAT RawBLOB";

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_sqs_hangs_stores_the_last_checkpoint_and_the_next_start_sends_what_was_left() {
    let edge = Edge::new("edge_stop").await;
    let mut daemon = edge.whole("").await;
    // Everything that goes to SQS is swallowed, and the connections stay open.
    edge.queues.keep_requests(&[]);
    let before: u64 = edge.db.pg.value("SELECT pg_current_wal_insert_lsn() - '0/0'").await.parse().unwrap();
    edge.db.pg.execute(&format!("{} INSERT INTO item VALUES (1, 'a')", insert("user", 1))).await;
    eventually(Duration::from_secs(30), async || {
        match edge.db.ch.try_query("SELECT count() FROM item").await?.as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    edge.queues.has_kept(1).await;
    let ceiling = "SELECT ceiling - greatest(lsn, queue_lsn) FROM _checkpoint ORDER BY revision DESC LIMIT 1";
    let ahead: u64 = edge.db.ch.query(ceiling).await.parse().unwrap();
    assert!(ahead > 1 << 29, "a row was sent, for which so much was reserved: {ahead}");
    assert_eq!(daemon.sigterm(Duration::from_secs(30)).await.code(), Some(0));
    assert!(daemon.log().contains("events that are not sent yet are left to the next start"), "{}", daemon.log());
    // The very last checkpoint takes back what was reserved and not used, so that a planned failover is no gap.
    let ahead: u64 = edge.db.ch.query(ceiling).await.parse().unwrap();
    assert!(ahead < 1 << 20, "{ahead} bytes are still reserved");
    let checkpoint = stored(&edge.db.ch, &edge.db.name).await.unwrap().unwrap();
    assert!(checkpoint <= before, "{checkpoint} is past an event that was not sent, {before}");
    assert_eq!(confirmed(&edge.db.pg, &edge.db.name).await.unwrap(), Some(checkpoint));
    edge.mend();
    daemon.start();
    wait_handled(&daemon, "audit", "done", 1).await;
    drop(daemon);
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_queue_that_does_not_answer_and_what_was_handled_has_one_effect() {
    let edge = Edge::new("edge_last_words").await;
    let mut daemon = edge.whole("").await;
    edge.queues.keep_requests(&["AmazonSQS.DeleteMessageBatch"]);
    edge.write().await;
    wait_handled(&daemon, "audit", "done", 1).await;
    edge.queues.has_kept(1).await;
    assert_eq!(daemon.sigterm(Duration::from_secs(30)).await.code(), Some(0), "{}", daemon.log());
    let told = "SQS does not answer; messages that were handled come again, which changes nothing";
    assert!(daemon.log().contains(told), "{}", daemon.log());
    edge.mend();
    daemon.start();
    wait_handled(&daemon, "audit", "done", 1).await;
    assert_eq!(edge.audited().await.1, "1");
    drop(daemon);
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_panics_ends_the_process_with_an_error_and_the_next_start_goes_on() {
    let edge = Edge::new("edge_panic").await;
    let mut daemon = edge.whole("").await;
    daemon.kill9();
    edge.warehouse.ask_instead("EXISTS TABLE audit_log", NO_ANSWER);
    daemon.start();
    let (code, log) = daemon.wait_exit(Duration::from_secs(60)).await;
    assert_eq!(code, 1, "{log}");
    for text in
        ["a worker has panicked, which is a mistake in walhouse; it stops", "walhouse: a part of walhouse has panicked"]
    {
        assert!(log.contains(text), "no {text:?} in:\n{log}");
    }
    edge.mend();
    daemon.start();
    edge.write().await;
    wait_handled(&daemon, "audit", "done", 1).await;
    drop(daemon);
    edge.db.cleanup().await;
}
