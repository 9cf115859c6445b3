//! `walhouse check` with `[queue]`: what events and their workers need, looked at, and nothing of it made.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::Value;

use crate::queue::{prefix, with_outbox};
use crate::support::{Daemon, Exit, Sqs, TestDb, assert_equal, free_port, put, walhouse, write_config};

/// What was found, by area and name: how it came out, and what is said of it, with the remedy.
fn found(exit: &Exit) -> BTreeMap<String, (String, String)> {
    let report: Value = serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{error}: {exit:?}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let checks = report["checks"].as_array().expect("checks").iter();
    let line = |check: &Value| {
        let name = format!("{} {}", text(&check["area"]), text(&check["name"]));
        (name, (text(&check["outcome"]), format!("{}; {}", text(&check["what"]), text(&check["remedy"]))))
    };
    checks.map(line).collect()
}

async fn checked(db: &TestDb, extra: &str) -> (Option<i32>, BTreeMap<String, (String, String)>) {
    let exit = walhouse(&write_config(db, extra, free_port(), "check.toml"), &["check", "--json"]).await;
    (exit.code, found(&exit))
}

/// How a line came out, which has this in it.
#[track_caller]
fn is(found: &BTreeMap<String, (String, String)>, name: &str, outcome: &str, words: &[&str]) {
    let (is, what) = found.get(name).unwrap_or_else(|| panic!("no {name}: {found:#?}"));
    assert!(is == outcome && words.iter().all(|word| what.contains(word)), "{name}: {is}, {what}");
}

fn objects(db: &TestDb) -> String {
    format!("[objects]\nurl = \"file://{}/objects\"\n", db.directory.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_run_would_halt_is_said_before_it_does() {
    let db = TestDb::new("check_position").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY)").await;
    let (code, first) = checked(&db, "").await;
    assert_eq!(code, Some(0), "{first:#?}");
    is(&first, "PostgreSQL slot", "ok", &["will be created"]);
    assert!(!first.contains_key("PostgreSQL position"), "{first:#?}");
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO item VALUES (1)").await;
    assert_equal(&db, "item").await;
    let (code, going) = checked(&db, "").await;
    assert_eq!(code, Some(0), "{going:#?}");
    is(&going, "PostgreSQL slot", "warning", &["in use by"]);
    is(&going, "PostgreSQL position", "ok", &["run goes on from "]);
    assert_eq!(daemon.sigterm(Duration::from_secs(20)).await.code(), Some(0));

    // Somebody has advanced the slot, and then dropped it, and then made it anew.
    db.pg.execute("INSERT INTO item VALUES (2)").await;
    let slot = &db.name;
    let anew = ["walhouse run halts", "beyond the checkpoint", "walhouse provision --new-epoch --dry-run"];
    let gone = ["walhouse run halts", "is gone, though everything up to", "walhouse provision --new-epoch --dry-run"];
    for (sql, line, words) in [
        (format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"), "PostgreSQL position", anew),
        (format!("SELECT pg_drop_replication_slot('{slot}')"), "PostgreSQL slot", gone),
        (format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"), "PostgreSQL position", anew),
    ] {
        db.pg.query(&sql).await;
        let (code, found) = checked(&db, "").await;
        assert_eq!(code, Some(1), "{found:#?}");
        is(&found, line, "failed", &words);
        daemon.start();
        let (code, log) = daemon.wait_exit(Duration::from_secs(60)).await;
        assert!(code == 3 && log.contains(words[1]), "{code}: {log}");
    }
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_events_need_is_looked_at_and_nothing_is_made() {
    let (db, sqs) = (with_outbox("check_queue").await, Sqs::shared());
    let extra = format!("{}{}", Sqs::handled(sqs.port(), &prefix(&db)), objects(&db));
    let (code, first) = checked(&db, &extra).await;
    assert_eq!(code, Some(0), "{first:#?}");
    let queue = format!("queue {}audit-log-queue", prefix(&db));
    is(&first, "queue SQS", "ok", &["http://127.0.0.1:"]);
    is(&first, &queue, "ok", &["will be created"]);
    is(&first, "PostgreSQL outbox", "ok", &["will be published"]);
    is(&first, "workers tables", "ok", &["will be created"]);
    is(&first, "objects store", "ok", &["objects will be created"]);
    is(&first, "reports the built-in ones", "ok", &["[warehouse] enabled = true"]);
    assert_eq!(first.keys().filter(|name| name.starts_with("queue ")).count(), 7);
    assert_eq!(sqs.queues(&prefix(&db)).await, Vec::<String>::new());
    assert!(db.ch.try_query("SELECT 1").await.is_err() && !db.directory.join("objects").exists());

    let config = write_config(&db, &extra, free_port(), "provision.toml");
    assert_eq!(walhouse(&config, &["provision"]).await.code, Some(0));
    sqs.set(&format!("{}audit-log-queue", prefix(&db)), QueueAttributeName::VisibilityTimeout, "7").await;
    fs::create_dir(db.directory.join("objects")).expect("a directory can be made");
    let (code, then) = checked(&db, &extra).await;
    assert_eq!(code, Some(0), "{then:#?}");
    is(&then, &queue, "ok", &["will be corrected: VisibilityTimeout is 7, and should be 35"]);
    is(&then, &queue.replace("-queue", "-dlq"), "ok", &["as it should be"]);
    is(&then, "workers tables", "ok", &["all are there"]);
    is(&then, "objects store", "ok", &["can be written"]);
    assert_eq!(fs::read_dir(db.directory.join("objects")).expect("it is there").count(), 0);

    // Without workers nothing of theirs is needed, and without a queue nothing at all.
    let (_, without) = checked(&db, &Sqs::config(sqs.port(), &prefix(&db))).await;
    assert!(without.contains_key("queue SQS") && !without.contains_key("workers tables"), "{without:#?}");
    let (_, without) = checked(&db, "").await;
    assert!(!without.keys().any(|name| name.starts_with("queue") || name == "PostgreSQL outbox"), "{without:#?}");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_events_lack_is_named_with_what_to_do() {
    let db = TestDb::new("check_lacks").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY)").await;
    let file = db.directory.join("file");
    fs::write(&file, "").expect("a file can be written");
    let queues = Sqs::handled(free_port(), &prefix(&db));
    let extra = format!("{queues}[objects]\nurl = \"file://{}/objects\"\n", file.display());
    let (code, lacks) = checked(&db, &extra).await;
    assert_eq!(code, Some(1));
    is(&lacks, "queue SQS", "failed", &["can not be reached", "queue.endpoint_url"]);
    is(&lacks, "PostgreSQL outbox", "warning", &["is not there", "psql -f migrations/postgres/0002_outbox_event.sql"]);
    is(&lacks, "objects store", "failed", &["can not be written", "set objects.url to another directory"]);

    db.pg.execute("CREATE TABLE outbox_event (id int8, payload jsonb)").await;
    is(&checked(&db, &extra).await.1, "PostgreSQL outbox", "failed", &["has no event_type", "0002_outbox_event.sql"]);
    db.pg.execute("ALTER TABLE outbox_event ADD event_type text").await;
    is(&checked(&db, &extra).await.1, "PostgreSQL outbox", "failed", &["is int8", "would be a dead letter"]);
    db.pg.execute("ALTER TABLE outbox_event DROP id, ADD id uuid").await;
    let said = ["no usable replica identity", "ALTER TABLE public.outbox_event ADD PRIMARY KEY (id)"];
    is(&checked(&db, &extra).await.1, "PostgreSQL outbox", "failed", &said);
    let role = format!("{}_role", db.name);
    db.pg
        .execute(&format!(
            "ALTER TABLE outbox_event ADD PRIMARY KEY (id); CREATE ROLE {role} LOGIN REPLICATION;
            CREATE PUBLICATION walhouse FOR TABLE item WITH (publish_via_partition_root = true)"
        ))
        .await;
    let other = format!("[source]\nurl = \"{}\"\n{extra}", db.pg.url_as(&role));
    let said = ["does not own it", "ALTER PUBLICATION \"walhouse\" ADD TABLE \"public\".\"outbox_event\""];
    is(&checked(&db, &other).await.1, "PostgreSQL outbox", "failed", &said);
    db.pg.execute("ALTER PUBLICATION walhouse ADD TABLE outbox_event").await;
    is(&checked(&db, &other).await.1, "PostgreSQL outbox", "ok", &["is published"]);
    let pg = crate::support::Pg::new(db.postgres.clone(), "postgres");
    db.cleanup().await;
    pg.execute(&format!("DROP ROLE {role}")).await;
}

const OWN: &str = r#"
[reports.good]
sql = "SELECT id, {from:Date}, {n:Decimal(4, 4)} FROM item WHERE id = {merchant:String} AND at > {at:DateTime('UTC')} AND u = {u:UUID} AND {b:Bool}"
parameters = { from = "Date", n = "Decimal(4, 4)", at = "DateTime('UTC')", u = "UUID", b = { type = "Bool", default = true } }
[reports.column]
sql = "SELECT nothing FROM item WHERE id = {merchant:String}"
[reports.syntax]
sql = "SELECT id FROM item WHERE WHERE id = {merchant:String}"
[reports.function]
sql = "SELECT no_such(id) FROM item WHERE id = {merchant:String}"
[reports.table]
sql = "SELECT id FROM not_yet WHERE id = {merchant:String}"
[reports.value]
sql = "SELECT id FROM item WHERE u = toUUID({merchant:String})"
[reports.write]
sql = "INSERT INTO item (id) SELECT {merchant:String}"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_clickhouse_can_not_run_is_named_before_anybody_asks_for_it() {
    let (db, sqs) = (with_outbox("check_reports").await, Sqs::shared());
    db.ch.create_database().await;
    db.ch.query("CREATE TABLE item (id String, at DateTime('UTC'), u UUID) ENGINE = MergeTree ORDER BY id").await;
    let bucket = db.name.replace('_', "-");
    let extra = format!(
        "{}[objects]\nurl = \"s3://{bucket}/some\"\nendpoint_url = \"http://127.0.0.1:{}\"\nregion = \"eu-central-1\"\n\
         [warehouse]\nenabled = true\n{OWN}",
        Sqs::handled(sqs.port(), &prefix(&db)),
        sqs.port()
    );
    let (code, found) = checked(&db, &extra).await;
    assert_eq!(code, Some(1));
    is(&found, "reports good", "ok", &["can be run"]);
    is(&found, "reports column", "failed", &["`nothing`", "correct reports.column.sql"]);
    is(&found, "reports syntax", "failed", &["Syntax error", "correct reports.syntax.sql"]);
    is(&found, "reports function", "failed", &["no_such", "correct reports.function.sql"]);
    is(&found, "reports table", "warning", &["not_yet", "reports.table.sql"]);
    is(&found, "reports value", "warning", &["not known without its values"]);
    is(&found, "reports write", "failed", &["correct reports.write.sql"]);
    is(&found, "reports best_customers", "ok", &["waits for the star schema"]);
    is(&found, "workers star schema", "ok", &["waits for customer_current"]);
    is(&found, "objects store", "failed", &["is not there: create it, or correct objects.url"]);
    assert_eq!(db.ch.query("SELECT count() FROM item").await, "0");
    assert_eq!(put(sqs.port(), &format!("/{bucket}"), "").await.expect("an S3").status, 200);
    is(&checked(&db, &extra).await.1, "objects store", "ok", &["can be written"]);
    db.cleanup().await;
}
