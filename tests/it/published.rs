//! Changes of rows in data-sync-queue: of tables that are published, and of rows that their tables did not take.

use std::time::Duration;

use serde_json::{Value, json};
use walhouse::event::{Lsn, schema};

use crate::queue::prefix;
use crate::support::{
    Daemon, Received, Sqs, TestDb, assert_equal, assert_settled_equal, eventually, settled, walhouse,
};

const PUBLISHED: &str = "[tables.\"public.contact\"]\npublish = true\nexclude_columns = [\"secret\"]\nmask = { email = { fixed = \"(masked)\" } }\n";

async fn contacts(label: &str) -> TestDb {
    let db = TestDb::new(label).await;
    db.pg
        .execute(
            "CREATE TABLE contact (id int PRIMARY KEY, email text, secret text, big text, amount numeric(20, 4));
            ALTER TABLE contact ALTER big SET STORAGE EXTERNAL;
            CREATE TABLE silent (id int PRIMARY KEY, v text)",
        )
        .await;
    db
}

fn queue(db: &TestDb) -> String {
    format!("{}data-sync-queue", prefix(db))
}

fn dead(db: &TestDb) -> String {
    format!("{}data-sync-dlq", prefix(db))
}

fn position(event: &Received) -> (Lsn, Lsn) {
    let position = &event.body["metadata"]["position"];
    let lsn = |name: &str| position[name].as_str().expect("a position").parse().expect("an LSN");
    (lsn("commitLsn"), lsn("recordLsn"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_a_published_table_is_sent_without_what_is_hidden() {
    let (db, sqs) = (contacts("published").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &format!("{}{PUBLISHED}", Sqs::config(sqs.port(), &prefix(&db))));
    daemon.wait_ready().await;
    db.pg
        .execute(
            "INSERT INTO silent VALUES (1, 'x');
            INSERT INTO contact VALUES (1, 'a@b', 'canary', repeat('x', 5000), 12345678901234.5678), (2, NULL, NULL, NULL, NULL);
            BEGIN; SELECT pg_logical_emit_message(true, 'walhouse.correlation', 'request 7');
            UPDATE contact SET amount = 1 WHERE id = 1; UPDATE contact SET id = 3 WHERE id = 2; DELETE FROM contact WHERE id = 3; COMMIT;
            BEGIN; INSERT INTO contact (id) VALUES (9); ROLLBACK",
        )
        .await;
    let mut events = sqs.take(&queue(&db), 5).await;
    events.sort_by_key(position);
    for event in &events {
        schema::check_event(&event.body.to_string()).expect("it has the shape of its type");
        assert_eq!(event.attributes["routingKey"], "cdc.contact");
        assert!(!event.body.to_string().contains("canary") && !event.body.to_string().contains("a@b"), "{event:?}");
    }
    let payloads: Vec<Value> = events.iter().map(|event| event.body["payload"].clone()).collect();
    let [first, second, updated, moved, gone] = &payloads[..] else { panic!("five events") };
    assert_eq!(
        (&first["operation"], &first["after"]["amount"], &first["after"]["email"]),
        (&json!("insert"), &json!("12345678901234.5678"), &json!("(masked)"))
    );
    assert_eq!(first["after"]["big"].as_str().map(str::len), Some(5000));
    assert_eq!(second["after"], json!({"id": "2", "email": null, "big": null, "amount": null}));
    // What an update leaves alone is not in the WAL.
    assert_eq!(updated["after"], json!({"id": "1", "email": "(masked)", "amount": "1.0000"}));
    assert_eq!((&updated["operation"], &updated["before"]), (&json!("update"), &json!({"id": "1"})));
    assert_eq!((&moved["before"]["id"], &moved["after"]["id"]), (&json!("2"), &json!("3")));
    assert_eq!(gone, &json!({"tableName": "contact", "operation": "delete", "before": {"id": "3"}, "after": null}));
    let correlations: Vec<_> = events.iter().map(|event| event.body["metadata"]["correlationId"].clone()).collect();
    assert!(correlations[0] == correlations[1] && correlations[2..].iter().all(|id| id == "request 7"));
    assert_settled_equal(&db, &["silent"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_come_once_more_by_the_queue_change_nothing() {
    let (db, sqs) = (contacts("published_twice").await, Sqs::shared());
    let published = "[tables.\"public.contact\"]\npublish = true\n";
    let mut daemon = Daemon::spawn(&db, &format!("{}{published}", Sqs::handled(sqs.port(), &prefix(&db))));
    daemon.wait_ready().await;
    for round in 0..10 {
        db.pg
            .execute(&format!(
                "INSERT INTO contact SELECT n, 'a', 'b', repeat('x', n % 3 * 3000), n FROM generate_series({round} * 100 + 1, {round} * 100 + 100) n;
                UPDATE contact SET amount = amount + 0.5, big = big || 'y' WHERE id % 3 = {round} % 3;
                UPDATE contact SET id = -id WHERE id % 7 = {round} AND id > 0; DELETE FROM contact WHERE id % 11 = {round}"
            ))
            .await;
        if round == 5 {
            daemon.kill9();
            daemon.start();
        }
    }
    // One that came before a TRUNCATE comes back after it.
    db.pg.execute("TRUNCATE contact; INSERT INTO contact VALUES (1, 'after', NULL, NULL, 1)").await;
    settled(&db).await;
    eventually(Duration::from_secs(90), async || match sqs.count(&queue(&db)).await {
        0 => Ok(()),
        left => Err(format!("{left} messages are left")),
    })
    .await;
    assert_equal(&db, "contact").await;
    assert!(daemon.metric("walhouse_events_handled_total", "worker=\"data_sync\",outcome=\"done\"").await > 100.0);
    drop(daemon);
    db.cleanup().await;
}

/// Sends what is in the queue of dead letters to the queue that it is of.
async fn redrive(db: &TestDb, sqs: &Sqs, count: usize) -> Vec<Received> {
    let letters = sqs.take(&dead(db), count).await;
    for letter in &letters {
        sqs.send(&queue(db), &letter.body.to_string()).await;
    }
    letters
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_clickhouse_refuses_is_in_the_queue_of_dead_letters_and_finds_home() {
    let (db, sqs) = (contacts("letters_queue").await, Sqs::shared());
    db.pg.execute("INSERT INTO silent VALUES (0, 'copied')").await;
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    db.ch.query("ALTER TABLE silent ADD CONSTRAINT small CHECK id < 1000").await;
    db.pg.execute("INSERT INTO silent VALUES (1, 'a'), (2000, 'b'), (3000, 'c'), (4000, 'd')").await;
    settled(&db).await;
    eventually(Duration::from_secs(20), async || match sqs.count(&dead(&db)).await {
        3 => Ok(()),
        other => Err(format!("{other} letters")),
    })
    .await;
    // One row goes on, one is gone, and one is as it was.
    db.ch.query("ALTER TABLE silent DROP CONSTRAINT small").await;
    db.pg.execute("UPDATE silent SET v = 'later' WHERE id = 3000; DELETE FROM silent WHERE id = 4000").await;
    settled(&db).await;
    let letters = redrive(&db, &sqs, 3).await;
    for letter in &letters {
        let attribute = |name: &str| letter.attributes[name].as_str();
        assert_eq!((attribute("deadLetterHandler"), attribute("deadLetterTries")), ("clickhouse", "1"));
        let reason = &letter.attributes["deadLetterReason"];
        assert!(reason.contains("VIOLATED_CONSTRAINT") && !reason.contains("2000"), "{reason}");
        assert_eq!(letter.attributes["routingKey"], "cdc.silent");
        schema::check_event(&letter.body.to_string()).expect("it has the shape of its type");
    }
    assert_equal(&db, "silent").await;
    // A letter is sent once, also by the next process.
    daemon.sigterm(Duration::from_secs(20)).await;
    daemon.start();
    daemon.wait_ready().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(sqs.count(&dead(&db)).await, 0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_copy_or_a_truncate_has_overtaken_does_not_come_back() {
    let (db, sqs) = (contacts("letters_old").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    let small = "ADD CONSTRAINT small CHECK id < 1000";
    for table in ["silent", "contact"] {
        db.ch.query(&format!("ALTER TABLE {table} {small}")).await;
    }
    db.pg.execute("INSERT INTO silent VALUES (2000, 'old'); INSERT INTO contact (id) VALUES (2000)").await;
    settled(&db).await;
    eventually(Duration::from_secs(20), async || match sqs.count(&dead(&db)).await {
        2 => Ok(()),
        other => Err(format!("{other} letters")),
    })
    .await;
    for table in ["silent", "contact"] {
        db.ch.query(&format!("ALTER TABLE {table} DROP CONSTRAINT small")).await;
    }
    // The copy has a later state of the row, with the lowest version of all.
    db.pg.execute("UPDATE silent SET v = 'new' WHERE id = 2000; TRUNCATE contact").await;
    settled(&db).await;
    let exit = walhouse(daemon.config(), &["resync", "public.silent"]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert_settled_equal(&db, &["silent"]).await;
    redrive(&db, &sqs, 2).await;
    eventually(Duration::from_secs(20), async || match sqs.count(&queue(&db)).await {
        0 => Ok(()),
        left => Err(format!("{left} messages are left")),
    })
    .await;
    assert_eq!(daemon.metric("walhouse_events_handled_total", "worker=\"data_sync\",outcome=\"done\"").await, 2.0);
    assert_equal(&db, "silent").await;
    assert_equal(&db, "contact").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_can_not_be_landed_says_what_brings_its_row_home() {
    let (db, sqs) = (contacts("letters_never").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO silent VALUES (1, 'x')").await;
    settled(&db).await;
    let stored = db.ch.query("SELECT max(lsn) FROM _checkpoint").await.parse().expect("a number");
    let change = |table: &str, after: Value| {
        let position = json!({"epoch": 0, "commitLsn": Lsn(stored).to_string(), "recordLsn": Lsn(stored).to_string()});
        json!({
            "metadata": {
                "eventId": uuid::Uuid::from_u128(rand::random()).to_string(), "eventTimestamp": "2026-01-01T00:00:00Z",
                "eventType": "DatabaseChangeCaptured", "eventVersion": "1.0", "correlationId": "c", "sourceService": "shop",
                "position": position
            },
            "payload": {"tableName": table, "operation": "update", "before": {"id": "1"}, "after": after}
        })
        .to_string()
    };
    for (table, after, why) in [
        ("silent", json!({"id": "1"}), "no value for column v: walhouse resync public.silent"),
        ("silent", json!({"id": "one", "v": "x"}), "public.silent: column id: "),
        ("nowhere", json!({"id": "1", "v": "x"}), "replicates no table nowhere"),
    ] {
        sqs.send(&queue(&db), &change(table, after)).await;
        let letters = sqs.take(&dead(&db), 1).await;
        let reason = &letters[0].attributes["deadLetterReason"];
        assert!(reason.contains(why), "{why}: {reason}");
        assert_eq!(letters[0].attributes["deadLetterHandler"], "data_sync");
    }
    assert_equal(&db, "silent").await;
    drop(daemon);
    db.cleanup().await;
}
