//! Each event that was committed has its effect, and that once; nothing else has one.
//!
//! With workers the effect is a row of the audit log, which a reader with FINAL sees once. Without them it is a message in the
//! queue: perhaps several, of one id, which a worker takes for one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::sleep;

use crate::oracle::{PATIENCE, Verdict, number};
use crate::support::{Sqs, TestDb};

/// The events that were committed so far, in order.
pub(crate) async fn committed(db: &TestDb) -> Vec<String> {
    let rows = db.pg.query("SELECT event_id FROM emitted").await;
    let mut committed: Vec<String> = rows.into_iter().flatten().flatten().collect();
    committed.sort_unstable();
    committed
}

/// Compares what was committed with what came of it. `prefix` is that of the queues. Of events that were committed `early`,
/// before walhouse said that it listens, some may have had no effect.
pub(crate) async fn events(
    db: &TestDb,
    sqs: &Sqs,
    prefix: &str,
    early: &[String],
    workers: bool,
    verdict: &mut Verdict,
) {
    let committed = committed(db).await;
    let due: Vec<String> = committed.iter().filter(|id| early.binary_search(id).is_err()).cloned().collect();
    verdict.events += due.len() as u64;
    let done = if workers { audited(db, &due, verdict).await } else { sent(sqs, prefix, &due, verdict).await };
    let lost = missing(&due, &done);
    let unasked = missing(&done, &committed);
    if lost + unasked > 0 {
        verdict.lost += lost;
        verdict.wrong(unasked, format!("events: {lost} had no effect, {unasked} were never committed"));
    }
    let dead = sqs.count(&format!("{prefix}audit-log-dlq")).await;
    if dead > 0 {
        verdict.wrong(dead, format!("{dead} dead letters of events that nothing is wrong with"));
    }
}

/// What the audit log has, in order, once all that is due is there.
async fn audited(db: &TestDb, due: &[String], verdict: &mut Verdict) -> Vec<String> {
    // Its payload names its event too.
    let sql = "SELECT toString(event_id) FROM audit_log FINAL WHERE acting_user_id = concat('u-', toString(event_id))
        AND outcome = 'success' ORDER BY ALL";
    let deadline = Instant::now() + PATIENCE;
    let audited = loop {
        let audited: Vec<String> = db.ch.query(sql).await.lines().map(str::to_owned).collect();
        if missing(due, &audited) == 0 || Instant::now() > deadline {
            break audited;
        }
        sleep(Duration::from_millis(200)).await;
    };
    let twice = audited.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64;
    let others = number(db, "SELECT count() FROM audit_log FINAL").await - audited.len() as u64;
    if twice + others > 0 {
        verdict.wrong(
            twice + others,
            format!("audit log: {twice} events are there twice, {others} rows are none of them"),
        );
    }
    audited
}

/// What is in the queue, in order, once all that is due is there. Nothing is on its way to it any more.
async fn sent(sqs: &Sqs, prefix: &str, due: &[String], verdict: &mut Verdict) -> Vec<String> {
    let (client, url) = (sqs.client(), sqs.url(&format!("{prefix}audit-log-queue")).await);
    let (mut sent, deadline) = (BTreeMap::<String, Value>::new(), Instant::now() + PATIENCE);
    let mut differ = 0;
    loop {
        // What is taken is out of sight for longer than this goes on; and nothing is waited for.
        let request = client.receive_message().queue_url(&url).max_number_of_messages(10).visibility_timeout(600);
        let request = request.wait_time_seconds(0);
        let messages = request.send().await.expect("messages can be received").messages.unwrap_or_default();
        let is_empty = messages.is_empty();
        for message in messages {
            let body: Value = serde_json::from_str(&message.body.unwrap_or_default()).unwrap_or_default();
            let id = body["metadata"]["eventId"].as_str().unwrap_or_default().to_owned();
            let is_its_own = body["payload"]["actingUserId"] == format!("u-{id}");
            // However often it is sent, it is the same event.
            let is_same = sent.get(&id).is_none_or(|before| *before == body);
            differ += u64::from(!is_its_own || !is_same);
            sent.insert(id, body);
        }
        let is_all = due.iter().all(|id| sent.contains_key(id));
        if is_empty && (is_all || Instant::now() > deadline) {
            break;
        }
        if is_empty {
            sleep(Duration::from_millis(50)).await;
        }
    }
    if differ > 0 {
        verdict.wrong(differ, format!("{differ} messages are not what was written"));
    }
    sent.into_keys().collect()
}

/// How many of these the others lack; those are in order.
fn missing(wanted: &[String], there: &[String]) -> u64 {
    wanted.iter().filter(|id| there.binary_search(id).is_err()).count() as u64
}
