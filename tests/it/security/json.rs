//! JSON from anybody, very deep and very large: refused with a reason, in bounded time and memory, and the others go on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::queue::{LOGIN, prefix, with_outbox};
use crate::reports::{ask, ended};
use crate::support::{Daemon, Sqs, assert_settled_equal, eventually, exchange, settled, walhouse};

const DEEP: usize = 3000;
const OPERATOR: &str = "a-token-of-an-operator";
const REPORTS: &str = "[reports.echo]
sql = \"SELECT {merchant:String} AS merchant, {text:String} AS text\"
parameters = { text = \"String\" }
";

fn deep(levels: usize) -> String {
    format!("{}1{}", "[".repeat(levels), "]".repeat(levels))
}

async fn post(daemon: &Daemon, path: &str, body: &str) -> (u16, String) {
    let head = format!(
        "POST /api/v1{path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {OPERATOR}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let (status, _, body) = exchange(daemon.port(), &head, body).await.expect("an answer");
    (status, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_is_deep_or_large_costs_nobody_else_anything() {
    let (db, sqs) = (with_outbox("json").await, Sqs::shared());
    db.pg.execute("CREATE TABLE doc (id int PRIMARY KEY, b jsonb, j json)").await;
    let config =
        format!("{}[http]\noperator_token = \"{OPERATOR}\"\n{REPORTS}", Sqs::handled(sqs.port(), &prefix(&db)));
    let mut daemon = Daemon::spawn(&db, &config);
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let idle = daemon.rss_bytes();

    // Columns: JSON is a text like any other.
    db.pg.execute(&format!("INSERT INTO doc VALUES (1, '{}', NULL)", deep(DEEP))).await;
    db.pg
        .execute(&format!(
            "INSERT INTO doc SELECT 2, jsonb_build_object('x', repeat('x', 20000000)), (repeat('[', {DEEP}) || repeat(']', {DEEP}))::json"
        ))
        .await;
    assert_settled_equal(&db, &["doc"]).await;

    // Events by both ways, and messages that anybody with the queue's address may send.
    let nested =
        format!(r#"{{"eventType": "login", "actingUserId": "u", "outcome": "success", "details": {}}}"#, deep(DEEP));
    db.pg
        .execute(&format!(
            "INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{nested}')"
        ))
        .await;
    for message in [
        format!(r#"{{"eventType": "SecurityEventOccurred", "payload": {nested}}}"#),
        deep(DEEP),
        "[".repeat(1_000_000),
        format!(r#"{{"eventType": {}}}"#, deep(DEEP)),
    ] {
        db.pg.execute(&format!("SELECT pg_logical_emit_message(true, 'walhouse.outbox', '{message}')")).await;
    }
    let queues = ["audit-log", "async-operations", "data-sync"];
    for queue in queues {
        let queue = format!("{}{queue}-queue", prefix(&db));
        for body in
            [deep(DEEP), "{\"a\":".repeat(100_000), format!(r#"{{"metadata": {}, "payload": {{}}}}"#, deep(DEEP))]
        {
            sqs.send(&queue, &body).await;
        }
    }
    for parameters in [
        json!({"report": "echo", "text": serde_json::from_str::<Value>(&deep(100)).expect("JSON")}),
        json!({"report": "echo", "text": "x".repeat(500_000)}),
    ] {
        let row = ended(&db.ch, &ask(&db, "reportGeneration", "1", parameters).await).await;
        assert!(["failed", "succeeded"].iter().any(|status| row["status"] == *status), "{row}");
    }

    // The API: a body is 64 KiB, and none of it is followed into its depths.
    for (path, body, status) in [
        ("/resync", format!(r#"{{"tables": {}}}"#, deep(30_000)), 400),
        ("/resync", "[".repeat(60_000), 400),
        ("/pause", format!(r#"{{"reason": {}}}"#, deep(20_000)), 400),
        ("/dlq/audit-log/redrive", format!(r#"{{"filter": {}}}"#, deep(20_000)), 400),
        ("/resync", format!(r#"{{"tables": ["{}"]}}"#, "x".repeat(70_000)), 413),
    ] {
        let begun = Instant::now();
        let (found, said) = post(&daemon, path, &body).await;
        assert_eq!(found, status, "{path}: {said}");
        assert!(said.len() < 2000, "{path}: an answer as long as the question: {said}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{path}");
    }

    // All of them are letters, which can be listed, shown and sent home; those who fit have come through.
    db.pg
        .execute(&format!("INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{LOGIN}')"))
        .await;
    settled(&db).await;
    eventually(Duration::from_secs(60), async || {
        match db.ch.query("SELECT count() FROM audit_log FINAL").await.as_str() {
            "0" => Err("the event that fits has not come".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    for queue in queues {
        eventually(Duration::from_secs(60), async || match sqs.count(&format!("{}{queue}-dlq", prefix(&db))).await {
            letters if letters >= 3 => Ok(()),
            letters => Err(format!("{queue}: {letters} letters")),
        })
        .await;
        for arguments in [["dlq", "list", "--queue", queue, "--json"].as_slice(), &["dlq", "redrive", "--queue", queue]]
        {
            let exit = walhouse(daemon.config(), arguments).await;
            assert_eq!(exit.code, Some(0), "{arguments:?}: {exit:?}");
            assert!(exit.stdout.len() < 100_000, "{arguments:?}: {} bytes", exit.stdout.len());
        }
    }
    assert!(daemon.ended_by_itself().is_none(), "{}", daemon.log());
    // The row of 20 MB is let through alone; it is not kept.
    let grown = daemon.rss_bytes().saturating_sub(idle);
    assert!(grown < 300 << 20, "{grown} bytes more");
    assert!(daemon.log().lines().all(|line| line.len() < 4000), "a line of the log as long as what it is about");
    assert_eq!(daemon.streams(), 1);
    drop(daemon);
    db.cleanup().await;
}
