//! Dead letters that are too large for their queue, and references that are not followed.

use std::fs;
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::{Value, json};

use super::{LIMIT, audited, files, goes_on, large, objects, raw, reference, started};
use crate::queue::{prefix, with_outbox};
use crate::support::{Daemon, Received, Sqs, assert_equal, eventually, settled, walhouse};

fn attribute<'a>(letter: &'a Received, name: &str) -> &'a str {
    letter.attributes.get(name).map(String::as_str).unwrap_or_default()
}

/// What a letter refers to.
fn object(letter: &Received, field: &str) -> String {
    let location = letter.body[field]["location"].as_str().unwrap_or_else(|| panic!("{letter:?}"));
    fs::read_to_string(location.strip_prefix("file://").expect("a file")).expect("an object")
}

async fn dlq(daemon: &Daemon, arguments: &[&str]) -> String {
    let exit = walhouse(daemon.config(), &[&["dlq"], arguments].concat()).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    exit.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_and_too_large_is_a_dead_letter_with_all_that_was_written() {
    let (db, sqs) = (with_outbox("claim_misfits").await, Sqs::shared());
    let daemon = started(&db, &Sqs::handled(sqs.port(), &prefix(&db))).await;
    db.pg
        .execute(
            "INSERT INTO outbox_event (event_type, payload) SELECT 'OrderPlaced', jsonb_build_object('x', repeat('x', 2000000));
            INSERT INTO outbox_event (event_type, correlation_id, payload)
            SELECT 'SecurityEventOccurred', repeat('c', 2000000), '{\"eventType\": \"login\", \"actingUserId\": \"u\", \"outcome\": \"success\"}'",
        )
        .await;
    let dead = format!("{}audit-log-dlq", prefix(&db));
    let letters = sqs.take(&dead, 2).await;
    let of = |field: &str| letters.iter().find(|letter| letter.body.get(field).is_some()).expect("it is there");
    let misfit = of("payloadReference");
    assert!(attribute(misfit, "deadLetterReason").contains("there is no event of that type"), "{misfit:?}");
    let written = db.pg.value("SELECT payload::text FROM outbox_event WHERE event_type = 'OrderPlaced'").await;
    assert_eq!(object(misfit, "payloadReference"), written);
    // Where it is not the payload that is too large, the whole of it is there.
    let long = of("eventReference");
    assert!(attribute(long, "deadLetterReason").starts_with("/metadata/correlationId: "), "{long:?}");
    let whole: Value = serde_json::from_str(&object(long, "eventReference")).expect("JSON");
    assert_eq!(whole["metadata"]["correlationId"].as_str().map(str::len), Some(2_000_000));
    assert_eq!(whole["payload"]["actingUserId"], "u");

    // A message that has no room for the marks of a letter: of a version that is not understood.
    let body = |bytes: usize| {
        let mut event: Value =
            serde_json::from_str(&reference("018f3b5e-7c1a-8000-8000-0123456789ab", "", 1)).expect("JSON");
        event["metadata"]["eventVersion"] = json!("2.0");
        event["metadata"]["tenant"] = json!("a field of its own");
        event.as_object_mut().expect("an object").remove("payloadReference");
        event["payload"] = json!({"x": "x".repeat(bytes)});
        event.to_string()
    };
    let body = body(LIMIT - 20 - body(0).len());
    sqs.send(&format!("{}audit-log-queue", prefix(&db)), &body).await;
    let letter = sqs.take(&dead, 1).await.remove(0);
    assert_eq!(attribute(&letter, "deadLetterReason"), "its version is 2.0, and only 1.x is understood");
    let sent: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (&letter.body["metadata"], object(&letter, "payloadReference")),
        (&sent["metadata"], sent["payload"].to_string())
    );
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_that_leads_elsewhere_and_an_object_that_was_changed_are_dead_letters_at_once() {
    let (db, sqs) = (with_outbox("claim_forged").await, Sqs::shared());
    let queue = format!("{}audit-log-queue", prefix(&db));
    let daemon = started(&db, &Sqs::config(sqs.port(), &prefix(&db))).await;
    db.pg.execute(&large("k", 1, 1_200_000)).await;
    let sent = raw(&sqs, &queue, 1).await.remove(0);
    settled(&db).await;
    let daemon = goes_on(&db, daemon, &Sqs::handled(sqs.port(), &prefix(&db))).await;
    let secret = db.directory.join("secret.json");
    fs::write(&secret, r#"{"eventType": "login", "actingUserId": "canary", "outcome": "success"}"#).expect("a file");
    let base = format!("file://{}", db.directory.display());
    let forged = [
        format!("{base}/secret.json"),
        format!("{base}/objects/payloads/../../secret.json"),
        "s3://somebody-elses/payloads/2026-01-01/x.json".to_owned(),
        "file:///etc/passwd".to_owned(),
    ];
    for (number, location) in forged.iter().enumerate() {
        let id = uuid::Uuid::from_u128(number as u128 + 1).to_string();
        sqs.send(&queue, &reference(&id, location, fs::metadata(&secret).expect("a file").len())).await;
    }
    let object = files(&objects(&db)).remove(0);
    let text = fs::read_to_string(&object).expect("an object");
    fs::write(&object, text.replacen("\"success\"", "\"failure\"", 1)).expect("it can be written");
    sqs.send(&queue, &sent.body).await;
    let dead = format!("{}audit-log-dlq", prefix(&db));
    let letters = sqs.take(&dead, forged.len() + 1).await;
    for location in &forged {
        let letter = letters.iter().find(|letter| attribute(letter, "deadLetterReason").contains(location.as_str()));
        let letter = letter.unwrap_or_else(|| panic!("{location}: {letters:?}"));
        assert!(
            attribute(letter, "deadLetterReason").contains("no payload in the configured objects.url"),
            "{letter:?}"
        );
        assert_eq!(attribute(letter, "deadLetterTries"), "1");
    }
    let tampered = letters.iter().find(|letter| attribute(letter, "deadLetterReason").contains("tampered"));
    let tampered = tampered.unwrap_or_else(|| panic!("{letters:?}"));
    assert!(attribute(tampered, "deadLetterReason").contains(&object.display().to_string()), "{tampered:?}");
    assert_eq!(attribute(tampered, "deadLetterTries"), "1");
    assert_eq!(db.ch.query("SELECT count() FROM audit_log").await, "0");
    assert!(!daemon.log().contains("canary"), "{}", daemon.log());
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_is_gone_is_a_dead_letter_after_the_last_try_and_finds_home_once_it_is_back() {
    let (db, sqs) = (with_outbox("claim_gone").await, Sqs::shared());
    let workers = "[workers.audit]\nretry_delay = \"100ms\"\n";
    let daemon = started(&db, &Sqs::config(sqs.port(), &prefix(&db))).await;
    db.pg.execute(&large("k", 1, 1_200_000)).await;
    settled(&db).await;
    let object = files(&objects(&db)).remove(0);
    let (aside, location) = (db.directory.join("aside"), format!("file://{}", object.display()));
    fs::rename(&object, &aside).expect("it can be moved");
    let daemon = goes_on(&db, daemon, &(Sqs::handled(sqs.port(), &prefix(&db)) + workers)).await;
    let dead = format!("{}audit-log-dlq", prefix(&db));
    eventually(Duration::from_secs(60), async || match sqs.count(&dead).await {
        1 => Ok(()),
        other => Err(format!("{other} letters")),
    })
    .await;
    let id = db.pg.value("SELECT id FROM outbox_event").await;
    let list = dlq(&daemon, &["list", "--queue", "audit-log"]).await;
    assert!(list.contains(&format!("given up after 4 tries: its payload is not there: {location}")), "{list}");
    fs::rename(&aside, &object).expect("it can be moved");
    let written = db.pg.value("SELECT payload::text FROM outbox_event").await;
    let list = dlq(&daemon, &["list", "--queue", "audit-log", "--json"]).await;
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let letter = &list["queues"][0]["letters"][0];
    assert_eq!((&letter["payload_location"], &letter["payload_bytes"]), (&json!(location), &json!(written.len())));
    let shown = dlq(&daemon, &["show", "--queue", "audit-log", &id]).await;
    assert!(shown.contains(&location) && shown.contains("--payload") && !shown.contains(&written), "{shown}");
    let shown = dlq(&daemon, &["show", "--queue", "audit-log", &id, "--payload"]).await;
    assert!(shown.contains(&written) && shown.contains(&location));
    let shown = dlq(&daemon, &["show", "--queue", "audit-log", &id, "--payload", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["body"]["payload"], serde_json::from_str::<Value>(&written).expect("JSON"));
    dlq(&daemon, &["redrive", "--queue", "audit-log"]).await;
    audited(&db).await;
    assert_eq!(sqs.count(&dead).await, 0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_row_that_its_table_refuses_is_a_dead_letter_that_finds_home() {
    let (db, sqs) = (with_outbox("claim_lost").await, Sqs::shared());
    let daemon = started(&db, &Sqs::handled(sqs.port(), &prefix(&db))).await;
    db.ch.query("ALTER TABLE item ADD CONSTRAINT small CHECK id < 1000").await;
    let dead = format!("{}data-sync-dlq", prefix(&db));
    // Less than SQS allows, which is found out by sending.
    sqs.set(&dead, QueueAttributeName::MaximumMessageSize, "262144").await;
    db.pg
        .execute(
            "INSERT INTO item SELECT i, repeat(chr(64 + i % 60), CASE WHEN i < 2004 THEN 1500000 WHEN i < 2006 THEN 10 ELSE 300000 END)
            FROM generate_series(2000, 2007) i",
        )
        .await;
    settled(&db).await;
    eventually(Duration::from_secs(60), async || match sqs.count(&dead).await {
        8 => Ok(()),
        other => Err(format!("{other} letters")),
    })
    .await;
    assert_eq!(files(&objects(&db)).len(), 6);
    let list = dlq(&daemon, &["list", "--queue", "data-sync"]).await;
    assert_eq!(list.matches("(payload of ").count(), 6, "{list}");
    db.ch.query("ALTER TABLE item DROP CONSTRAINT small").await;
    dlq(&daemon, &["redrive", "--queue", "data-sync"]).await;
    eventually(Duration::from_secs(60), async || match db.ch.query("SELECT count() FROM item FINAL").await.as_str() {
        "8" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    assert_equal(&db, "item").await;
    assert_eq!(sqs.count(&dead).await, 0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_is_larger_than_a_worker_takes_is_a_dead_letter_until_it_takes_more() {
    let (db, sqs) = (with_outbox("claim_most").await, Sqs::shared());
    let config = Sqs::handled(sqs.port(), &prefix(&db));
    let daemon = started(&db, &format!("{config}[workers]\nmax_payload = \"1MiB\"\n")).await;
    db.pg.execute(&large("k", 1, 1_500_000)).await;
    let dead = format!("{}audit-log-dlq", prefix(&db));
    eventually(Duration::from_secs(60), async || match sqs.count(&dead).await {
        1 => Ok(()),
        other => Err(format!("{other} letters")),
    })
    .await;
    let list = dlq(&daemon, &["list", "--queue", "audit-log"]).await;
    assert!(list.contains("is larger than workers.max_payload, 1048576 bytes: raise that"), "{list}");
    settled(&db).await;
    let daemon = goes_on(&db, daemon, &config).await;
    dlq(&daemon, &["redrive", "--queue", "audit-log"]).await;
    audited(&db).await;
    assert_eq!(sqs.count(&dead).await, 0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_change_of_a_published_table_comes_by_reference_in_the_order_of_its_row() {
    let (db, sqs) = (with_outbox("claim_published").await, Sqs::shared());
    let publish = "[tables.\"public.item\"]\npublish = true\n";
    let daemon = started(&db, &(Sqs::config(sqs.port(), &prefix(&db)) + publish)).await;
    let long = "repeat('x', 1500000)";
    db.pg.execute(&format!("INSERT INTO item SELECT 1, {long}")).await;
    db.pg.execute("UPDATE item SET v = 'short' WHERE id = 1").await;
    db.pg.execute(&format!("UPDATE item SET v = {long} WHERE id = 1; DELETE FROM item WHERE id = 1")).await;
    db.pg.execute(&format!("INSERT INTO item SELECT 2, {long}")).await;
    let queue = format!("{}data-sync-queue", prefix(&db));
    let messages = raw(&sqs, &queue, 5).await;
    let bodies: Vec<Value> =
        messages.iter().map(|message| serde_json::from_str(&message.body).expect("JSON")).collect();
    let of = |row: &str| {
        let told = bodies.iter().map(|body| match body.get("payload") {
            Some(payload) => payload.clone(),
            None => {
                let location = body["payloadReference"]["location"].as_str().expect("a location");
                let text = fs::read_to_string(location.strip_prefix("file://").expect("a file")).expect("an object");
                serde_json::from_str(&text).expect("JSON")
            }
        });
        let of_row =
            told.filter(|payload: &Value| [&payload["before"]["id"], &payload["after"]["id"]].contains(&&json!(row)));
        let length = |payload: Value| payload["after"]["v"].as_str().map_or(0, str::len);
        of_row.map(length).collect::<Vec<_>>()
    };
    assert_eq!((of("1"), of("2")), (vec![1_500_000, 5, 1_500_000, 0], vec![1_500_000]));
    assert_eq!(
        messages.iter().filter(|message| message.attributes.iter().any(|(name, _)| name == "payloadBytes")).count(),
        3
    );
    settled(&db).await;
    let daemon = goes_on(&db, daemon, &(Sqs::handled(sqs.port(), &prefix(&db)) + publish)).await;
    for message in &messages {
        sqs.send(&queue, &message.body).await;
    }
    eventually(Duration::from_secs(60), async || match sqs.count(&queue).await {
        0 => Ok(()),
        left => Err(format!("{left} messages are left")),
    })
    .await;
    assert_equal(&db, "item").await;
    assert_eq!(sqs.count(&format!("{}data-sync-dlq", prefix(&db))).await, 0);
    drop(daemon);
    db.cleanup().await;
}
