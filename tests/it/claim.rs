//! Events that are too large for SQS: they arrive whole, once, and nothing else is read because a message says so.

mod away;
mod letters;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use walhouse::event::schema::{Shape, check_message};

use crate::queue::{prefix, with_outbox};
use crate::support::{Daemon, Proxy, Sqs, TestDb, eventually, get, put, settled};

const READY: &str = "events that are written into the outbox table are sent from now on";
/// What SQS takes at once.
const LIMIT: usize = 1 << 20;

/// An event whose details have so many bytes, and a little more.
fn large(key: &str, number: usize, bytes: usize) -> String {
    format!(
        "INSERT INTO outbox_event (aggregate_id, event_type, payload) SELECT '{key}', 'SecurityEventOccurred', jsonb_build_object(
        'eventType', 'login', 'actingUserId', 'u', 'outcome', 'success',
        'details', jsonb_build_object('n', {number}, 'x', repeat('x', {bytes})));"
    )
}

fn objects(db: &TestDb) -> PathBuf {
    db.directory.join("objects")
}

/// Every file below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let below = entries.flatten().flat_map(|entry| match entry.path() {
        path if path.is_dir() => files(&path),
        path => vec![path],
    });
    below.collect()
}

async fn started(db: &TestDb, config: &str) -> Daemon {
    let mut daemon = Daemon::spawn(db, config);
    daemon.wait_ready().await;
    daemon.wait_log(READY, 1).await;
    daemon
}

/// Another process, with another configuration.
async fn goes_on(db: &TestDb, mut before: Daemon, config: &str) -> Daemon {
    before.kill9();
    let mut daemon = Daemon::spawn(db, config);
    daemon.wait_ready().await;
    daemon
}

/// Waits until the audit log has each event of the outbox once, with the details that were written.
async fn audited(db: &TestDb) {
    let sql = "SELECT string_agg(id || ' ' || md5((payload->'details')::text), ',' ORDER BY id::text COLLATE \"C\") FROM outbox_event";
    let written = db.pg.value(sql).await;
    let sql = "SELECT arrayStringConcat(arraySort(groupArray(concat(toString(event_id), ' ', lower(hex(MD5(details)))))), ',') \
        FROM audit_log FINAL";
    eventually(Duration::from_secs(120), async || match db.ch.try_query(sql).await? {
        there if there == written => Ok(()),
        there => Err(format!("{} and not {}", there.split(',').count(), written.split(',').count())),
    })
    .await;
}

/// A message as it is in a queue, to the byte.
struct Raw {
    body: String,
    attributes: Vec<(String, String)>,
}

impl Raw {
    fn size(&self) -> usize {
        let attributes = self.attributes.iter().map(|(name, value)| name.len() + "String".len() + value.len());
        self.body.len() + attributes.sum::<usize>()
    }
}

/// Takes messages, and removes them.
async fn raw(sqs: &Sqs, queue: &str, count: usize) -> Vec<Raw> {
    let (client, url, mut taken) = (sqs.client(), sqs.url(queue).await, Vec::new());
    eventually(Duration::from_secs(60), async || {
        let request =
            client.receive_message().queue_url(&url).max_number_of_messages(10).message_attribute_names("All");
        let answer = request.wait_time_seconds(1).send().await.map_err(|error| format!("{error:?}"))?;
        for message in answer.messages.unwrap_or_default() {
            let receipt = message.receipt_handle.expect("a receipt");
            client.delete_message().queue_url(&url).receipt_handle(receipt).send().await.expect("it is deleted");
            let attributes = message.message_attributes.unwrap_or_default().into_iter();
            let attributes = attributes.map(|(name, value)| (name, value.string_value.unwrap_or_default())).collect();
            taken.push(Raw { body: message.body.unwrap_or_default(), attributes });
        }
        if taken.len() < count { Err(format!("{} of {count}", taken.len())) } else { Ok(()) }
    })
    .await;
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn events_around_the_limit_of_sqs_arrive_whole_and_so_do_larger_ones() {
    let (db, sqs) = (with_outbox("claim_limit").await, Sqs::shared());
    let queue = format!("{}audit-log-queue", prefix(&db));
    let daemon = started(&db, &Sqs::config(sqs.port(), &prefix(&db))).await;
    db.pg.execute(&large("k", 10, 1000)).await;
    let beside = raw(&sqs, &queue, 1).await.remove(0).size() - 1000;
    let mut all: String = (0..9).map(|more| large("k", 11 + more, LIMIT - beside + more - 4)).collect();
    all.push_str(&large("other", 20, 3_000_000));
    // What SQS takes only as escapes, and what JSON has in more than one form.
    all.push_str(
        "INSERT INTO outbox_event (event_type, payload) SELECT 'SecurityEventOccurred', jsonb_build_object('eventType', 'login',
        'actingUserId', 'u', 'outcome', 'success', 'details', jsonb_build_object('n', 21, 'amount', 12345678901234567890.10, 'x',
        repeat(E'\\U0001F600\\u0001\"\\\\ü', 200000)));",
    );
    db.pg.execute(&all).await;
    let messages = raw(&sqs, &queue, 11).await;
    let mut whole = 0;
    for message in &messages {
        assert!(message.size() <= LIMIT, "{}", message.size());
        let bytes = message.attributes.iter().find(|(name, _)| name == "payloadBytes").map(|(_, value)| value.as_str());
        let body: Value = serde_json::from_str(&message.body).expect("JSON");
        match check_message(&message.body).expect("it has the shape of an event") {
            Shape::Whole(_) => {
                assert_eq!(bytes, None);
                whole += 1;
            }
            Shape::Reference(_) => {
                let location = body["payloadReference"]["location"].as_str().expect("a location");
                let path = location.strip_prefix("file://").expect("a file");
                let (id, text) =
                    (body["metadata"]["eventId"].as_str().expect("an id"), fs::read_to_string(path).unwrap());
                assert_eq!(bytes, Some(&*text.len().to_string()));
                assert_eq!(
                    db.pg.value(&format!("SELECT payload::text FROM outbox_event WHERE id = '{id}'")).await,
                    text
                );
            }
        }
    }
    // Those up to the limit, and no other.
    assert_eq!((whole, messages.len() - whole, files(&objects(&db)).len()), (5, 6, 6));
    settled(&db).await;
    let daemon = goes_on(&db, daemon, &Sqs::handled(sqs.port(), &prefix(&db))).await;
    for message in &messages {
        sqs.send(&queue, &message.body).await;
    }
    db.pg.execute("DELETE FROM outbox_event WHERE payload->'details'->>'n' = '10'").await;
    audited(&db).await;
    assert_eq!(sqs.count(&format!("{}audit-log-dlq", prefix(&db))).await, 0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_event_that_is_sent_twice_is_one_object_and_one_effect_and_comes_before_the_next_of_its_key() {
    let (db, sqs) = (with_outbox("claim_kill").await, Sqs::shared());
    let queue = format!("{}audit-log-queue", prefix(&db));
    let proxy = Proxy::to(sqs.port()).await;
    let mut daemon = started(&db, &Sqs::config(proxy.port(), &prefix(&db))).await;
    // SQS has taken the first, and nobody hears of it.
    proxy.cut_after("payloadReference");
    for number in 0..3 {
        db.pg.execute(&large("k", number, if number == 1 { 10 } else { 1_500_000 })).await;
    }
    proxy.is_cut().await;
    assert_eq!(files(&objects(&db)).len(), 1, "the third waits for the first, and is not stored yet");
    daemon.kill9();
    proxy.mend();
    daemon.start();
    daemon.wait_ready().await;
    let messages = raw(&sqs, &queue, 4).await;
    let ids = db.pg.query("SELECT id::text FROM outbox_event ORDER BY (payload->'details'->>'n')::int").await;
    let place = |message: &Raw| {
        let body: Value = serde_json::from_str(&message.body).expect("JSON");
        ids.iter().position(|id| id[0].as_deref() == body["metadata"]["eventId"].as_str()).expect("one of these")
    };
    let mut places: Vec<_> = messages.iter().map(place).collect();
    places.sort_unstable();
    assert_eq!(places, [0, 0, 1, 2], "one was sent twice");
    assert_eq!(files(&objects(&db)).len(), 2);
    settled(&db).await;
    let daemon = goes_on(&db, daemon, &Sqs::handled(sqs.port(), &prefix(&db))).await;
    for message in &messages {
        sqs.send(&queue, &message.body).await;
    }
    audited(&db).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_has_the_payloads_under_its_prefix_and_one_that_is_away_is_waited_for() {
    let (db, sqs) = (with_outbox("claim_s3").await, Sqs::shared());
    let bucket = db.name.replace('_', "-");
    assert_eq!(put(sqs.port(), &format!("/{bucket}"), "").await.expect("an S3").status, 200);
    let proxy = Proxy::to(sqs.port()).await;
    let config = format!(
        "{}[objects]\nurl = \"s3://{bucket}/some/place\"\nendpoint_url = \"http://127.0.0.1:{}\"\nregion = \"eu-central-1\"\n",
        Sqs::handled(sqs.port(), &prefix(&db)),
        proxy.port()
    );
    let daemon = started(&db, &config).await;
    // One request, and an upload in parts.
    for (number, bytes) in [(0, 1_500_000), (1, 12_000_000)] {
        db.pg.execute(&large("k", number, bytes)).await;
    }
    audited(&db).await;
    let id = db.pg.value("SELECT id FROM outbox_event WHERE payload->'details'->>'n' = '1'").await;
    let list = get(sqs.port(), &format!("/{bucket}?list-type=2&prefix=some/place/payloads/")).await.expect("a list");
    assert!(list.body.contains(&id), "{}", list.body);
    proxy.cut_after("PUT /");
    db.pg.execute(&large("k", 2, 1_500_000)).await;
    daemon.wait_log("can not be put into the object store; it waits, and so does the slot", 1).await;
    proxy.mend();
    audited(&db).await;
    // A bucket that is not there is no bucket that has lost an object.
    let daemon = goes_on(&db, daemon, &config.replace(&format!("s3://{bucket}"), "s3://no-such-bucket")).await;
    let queue = format!("{}audit-log-queue", prefix(&db));
    sqs.send(&queue, &reference(&id, &format!("s3://no-such-bucket/some/place/payloads/2026-01-01/{id}.json"), 7))
        .await;
    daemon.wait_log("events whose payload is in the object store wait", 1).await;
    daemon.wait_log("s3://no-such-bucket/some/place/ is not there: create it", 1).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_under_load_leave_each_event_once_and_whole_whatever_its_size() {
    let (db, sqs) = (with_outbox("claim_kills").await, Sqs::shared());
    let config = format!("{}[workers.audit]\ntimeout = \"20s\"\n", Sqs::handled(sqs.port(), &prefix(&db)));
    let mut daemon = started(&db, &config).await;
    for number in 0..80 {
        let bytes = if number % 4 == 0 { 1_000_000 + number * 40_000 } else { 100 };
        db.pg.execute(&large(&format!("key {}", number % 5), number, bytes)).await;
        if number % 16 == 15 {
            // Wherever it is: an object half written, a message without an answer, a handler at work.
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..1500))).await;
            daemon.kill9();
            daemon.start();
        }
    }
    audited(&db).await;
    settled(&db).await;
    let there = files(&objects(&db)).iter().filter(|file| !file.display().to_string().contains('#')).count();
    // One of these is just small enough.
    let large = db.pg.value("SELECT count(*) FROM outbox_event WHERE length(payload::text) > 1048000").await;
    assert_eq!(there.to_string(), large);
    assert_eq!(sqs.count(&format!("{}audit-log-dlq", prefix(&db))).await, 0);
    drop(daemon);
    db.cleanup().await;
}

/// A message that refers to a payload.
fn reference(id: &str, location: &str, bytes: u64) -> String {
    json!({
        "metadata": {
            "eventId": id, "eventTimestamp": "2026-01-01T00:00:00Z", "eventType": "SecurityEventOccurred",
            "eventVersion": "1.0", "correlationId": "c", "sourceService": "shop"
        },
        "payloadReference": {"location": location, "bytes": bytes, "sha256": "0".repeat(64)}
    })
    .to_string()
}
