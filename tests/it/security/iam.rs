//! The policies of docker/ecs/iam.tf are what walhouse calls, no less and no more: every request of a full run, and of each
//! command, is noted on its way to the emulator, and both lists are compared both ways.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::queue::{LOGIN, prefix, with_outbox};
use crate::reports::{ask, ended};
use crate::support::{
    Daemon, Deed, Recorder, Sqs, TestDb, eventually, free_port, put, settled, walhouse, write_config,
};

const IAM: &str = include_str!("../../../docker/ecs/iam.tf");
const REPORTS: &str = "[reports.lines]
sql = \"SELECT number, repeat('x', 90) AS x FROM numbers({rows:UInt64}) WHERE {merchant:String} != ''\"
parameters = { rows = \"UInt64\" }
[reports.slow]
sql = \"SELECT number, sleepEachRow(0.1) AS s FROM numbers({rows:UInt64}) WHERE {merchant:String} != ''\"
parameters = { rows = \"UInt64\" }
[operation]
max_rows = 200_000
max_time = \"4s\"
[workers.operation]
retry_delay = \"1s\"
[workers.audit]
retry_delay = \"100ms\"
";

/// What a policy of `iam.tf` allows, each action with what it may be done to.
fn allowed(policy: &str) -> BTreeSet<Deed> {
    let begin = format!("data \"aws_iam_policy_document\" \"{policy}\" {{");
    let body = IAM.split(&begin).nth(1).and_then(|rest| rest.split("\n}\n").next()).expect("the policy is there");
    let mut all = BTreeSet::new();
    for statement in body.split("actions").skip(1) {
        let (actions, rest) = statement.split_once(']').expect("a list");
        let resources = rest.split("resources").nth(1).and_then(|rest| rest.lines().next()).expect("resources");
        let kinds: &[&str] = match resources {
            of if of.contains("every_arn") => &["live", "dead"],
            of if of.contains("live_arns") => &["live"],
            of if of.contains("dead_arns") => &["dead"],
            of if of.contains("/*\"") => &["object"],
            of if of.contains(":s3:::") => &["bucket"],
            other => panic!("{other}"),
        };
        for action in actions.split('"').skip(1).step_by(2) {
            all.extend(kinds.iter().map(|kind| (action.to_owned(), *kind)));
        }
    }
    assert!(all.len() >= 4, "{policy}: {all:?}");
    all
}

/// What somebody has called, against what the policy gives.
#[track_caller]
fn assert_exactly(policy: &str, seen: &BTreeSet<Deed>) {
    let mut allowed = allowed(policy);
    // No request has this name: with it S3 says of an object that is not there that it is not there.
    allowed.remove(&("s3:ListBucket".to_owned(), "bucket"));
    let (missing, idle): (Vec<_>, Vec<_>) = (seen.difference(&allowed).collect(), allowed.difference(seen).collect());
    assert!(missing.is_empty(), "{policy} does not allow what is called: {missing:?}");
    assert!(idle.is_empty(), "{policy} allows what nobody calls: {idle:?}");
}

struct Account {
    db: TestDb,
    bucket: String,
}

impl Account {
    async fn new() -> Self {
        let db = with_outbox("iam").await;
        let bucket = db.name.replace('_', "-");
        assert_eq!(put(Sqs::shared().port(), &format!("/{bucket}"), "").await.expect("an S3").status, 200);
        Self { db, bucket }
    }

    /// By way of a recorder, and as on AWS: the queues are there, and nobody but `provision` makes any.
    fn config(&self, recorder: &Recorder) -> String {
        let port = recorder.port();
        format!(
            "{}[objects]\nurl = \"s3://{}/some\"\nendpoint_url = \"http://127.0.0.1:{port}\"\nregion = \"eu-central-1\"\n{REPORTS}",
            Sqs::handled(port, &prefix(&self.db)),
            self.bucket,
        )
    }

    fn file(&self, recorder: &Recorder, name: &str) -> PathBuf {
        write_config(&self.db, &self.config(recorder), free_port(), name)
    }

    async fn count(&self, queue: &str, wanted: u64) {
        let queue = format!("{}{queue}", prefix(&self.db));
        eventually(Duration::from_secs(90), async || match Sqs::shared().count(&queue).await {
            count if count >= wanted => Ok(()),
            count => Err(format!("{count} messages in {queue}")),
        })
        .await;
    }
}

/// Everything that a running walhouse does with queues and objects.
async fn run(account: &Account, recorder: &Recorder) {
    let db = &account.db;
    let mut daemon = Daemon::spawn(db, &account.config(recorder));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    // Handled; refused by their schema; too large for a queue.
    for payload in [LOGIN, r#"{"eventType": "login"}"#] {
        db.pg
            .execute(&format!(
                "INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{payload}')"
            ))
            .await;
    }
    db.pg
        .execute(
            "INSERT INTO outbox_event (event_type, payload) SELECT 'SecurityEventOccurred', jsonb_build_object(
             'eventType', 'large', 'actingUserId', 'u', 'outcome', 'success', 'details', jsonb_build_object('x', repeat('x', 1200000)))",
        )
        .await;
    account.count("audit-log-dlq", 1).await;
    // Small, in parts, given up on the way, and tried again.
    for (report, rows, status) in [
        ("lines", 10, "succeeded"),
        ("lines", 130_000, "succeeded"),
        ("lines", 1_000_000, "failed"),
        ("slow", 100, "failed"),
    ] {
        let id = ask(db, "reportGeneration", "1", json!({"report": report, "rows": rows})).await;
        let row = ended(&db.ch, &id).await;
        assert_eq!(row["status"], status, "{row}");
    }
    eventually(Duration::from_secs(60), async || {
        match db.ch.query("SELECT arraySort(groupArray(event_type)) FROM audit_log FINAL").await.as_str() {
            "['large','login']" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    // A payload that is gone.
    let absent = json!({
        "metadata": {
            "eventId": uuid::Uuid::from_u128(7).to_string(), "eventTimestamp": "2026-01-01T00:00:00.000Z",
            "eventType": "SecurityEventOccurred", "eventVersion": "1.0", "correlationId": "c", "sourceService": "shop"
        },
        "payloadReference": {
            "location": format!("s3://{}/some/payloads/2026-01-01/x.json", account.bucket), "bytes": 10, "sha256": "0".repeat(64)
        }
    });
    Sqs::shared().send(&format!("{}audit-log-queue", prefix(db)), &absent.to_string()).await;
    // A row that its table refuses is a letter of data-sync.
    db.ch.query("ALTER TABLE item ADD CONSTRAINT short CHECK length(v) < 3").await;
    db.pg.execute("INSERT INTO item VALUES (1, 'too long')").await;
    settled(db).await;
    account.count("data-sync-dlq", 1).await;
    let metrics = async || daemon.metric("walhouse_dlq_messages", "").await;
    eventually(Duration::from_secs(60), async || match metrics().await {
        letters if letters >= 1.0 => Ok(()),
        letters => Err(format!("{letters} letters are counted")),
    })
    .await;
    assert!(daemon.sigterm(Duration::from_secs(25)).await.success(), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policies_are_exactly_what_is_called() {
    let (account, emulator) = (Account::new().await, Sqs::shared().port());
    // provision: it creates, and puts right what somebody has changed.
    let provision = Recorder::to(emulator).await;
    let config = account.file(&provision, "provision.toml");
    let made = walhouse(&config, &["provision"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    for queue in ["audit-log-queue", "audit-log-dlq"] {
        let name = aws_sdk_sqs::types::QueueAttributeName::MessageRetentionPeriod;
        Sqs::shared().set(&format!("{}{queue}", prefix(&account.db)), name, "60").await;
    }
    let mended = walhouse(&config, &["provision"]).await;
    assert_eq!(mended.code, Some(0), "{mended:?}");
    assert_exactly("provision", &provision.seen());

    // run, and what only looks.
    let task = Recorder::to(emulator).await;
    run(&account, &task).await;
    let config = account.file(&task, "task.toml");
    for arguments in [["check"].as_slice(), &["status"], &["verify"], &["config"]] {
        let exit = walhouse(&config, arguments).await;
        assert!(exit.code.is_some_and(|code| code < 2), "{exit:?}");
    }
    assert_exactly("task", &task.seen());

    // dlq: shown, sent home, thrown away.
    let letters = Recorder::to(emulator).await;
    let config = account.file(&letters, "letters.toml");
    for arguments in [
        ["dlq", "list"].as_slice(),
        &["dlq", "list", "--queue", "audit-log", "--json"],
        &["dlq", "redrive", "--queue", "data-sync"],
        &["dlq", "redrive", "--queue", "audit-log", "--limit", "1"],
        &["dlq", "purge", "--queue", "audit-log", "--yes"],
    ] {
        let exit = walhouse(&config, arguments).await;
        assert!(exit.code == Some(0), "{arguments:?}: {exit:?}");
    }
    // One with a large payload, which is shown whole.
    shown(&account, &config).await;
    assert_exactly("dead_letters", &letters.seen());
    account.db.cleanup().await;
}

/// A letter whose payload is in the store: put there by a walhouse whose requests are nobody's here.
async fn shown(account: &Account, config: &std::path::Path) {
    let (db, sqs) = (&account.db, Sqs::shared());
    let sender = Recorder::to(sqs.port()).await;
    let quiet = format!("{}[workers]\nenabled = false\n", account.config(&sender));
    let mut daemon = Daemon::spawn(db, &quiet);
    daemon.wait_ready().await;
    db.pg
        .execute(
            "INSERT INTO outbox_event (id, event_type, payload) SELECT '00000000-0000-4000-8000-000000000009', 'SecurityEventOccurred',
             jsonb_build_object('eventType', 1, 'details', jsonb_build_object('x', repeat('x', 1200000)))",
        )
        .await;
    account.count("audit-log-dlq", 1).await;
    let arguments = ["dlq", "show", "--queue", "audit-log", "00000000-0000-4000-8000-000000000009", "--payload"];
    let exit = walhouse(config, &arguments).await;
    assert!(exit.code == Some(0), "{exit:?}");
    assert!(daemon.sigterm(Duration::from_secs(25)).await.success());
}
