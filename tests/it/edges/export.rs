//! From the queue to an object, with what the audit log and `async_operations` hear of it.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use serde_json::{Value, json};

use super::{Edge, handled, once, twice_and_once, wait_handled};
use crate::support::{Daemon, TestDb, settled};

const ROWS: usize = 1000;

fn objects(edge: &Edge) -> PathBuf {
    edge.db.directory.join("objects")
}

async fn exporter(edge: &Edge) -> Daemon {
    let report = "sql = \"SELECT number AS n, {merchant:String} AS merchant FROM numbers({rows:UInt64})\"\nexport = true\n\
        parameters = { rows = \"UInt64\" }\n";
    let objects = objects(edge);
    edge.whole(&format!("[objects]\nurl = \"file://{}\"\n[reports.numbers]\n{report}", objects.display())).await
}

/// An application asks for an export; returns the request's id.
async fn ask(db: &TestDb) -> String {
    let payload = json!({
        "operationType": "dataExport", "userId": "u1", "merchantAccountId": "m1",
        "parameters": {"report": "numbers", "rows": ROWS, "format": "csv"}
    });
    db.pg
        .value(&format!(
            "INSERT INTO outbox_event (event_type, payload) VALUES ('AsynchronousOperationRequested', '{payload}') RETURNING id"
        ))
        .await
}

/// Status and attempt, as a reader has them, and how many rows these are for it.
async fn operation(edge: &Edge) -> (String, u64, usize) {
    let rows = edge.db.ch.query("SELECT status, attempt FROM async_operations FINAL FORMAT JSONEachRow").await;
    let row: Value = serde_json::from_str(rows.lines().next().expect("a row")).expect("JSON");
    let status = row["status"].as_str().expect("a status").to_owned();
    (status, row["attempt"].as_u64().expect("a number"), rows.lines().count())
}

/// The one object that there is, whole, and when it was written.
fn object(edge: &Edge, id: &str) -> (String, SystemTime) {
    let path = objects(edge).join("m1").join(format!("{id}.csv"));
    assert_eq!(names(path.parent().expect("a directory")).expect("it can be read"), [format!("{id}.csv")]);
    let text = fs::read_to_string(&path).expect("the object is there");
    assert_eq!(text.lines().count(), ROWS + 1);
    (text, fs::metadata(&path).and_then(|file| file.modified()).expect("it has a time"))
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_an_export_and_the_deletion_of_its_message_does_nothing_again() {
    let edge = Edge::new("edge_exported").await;
    let mut daemon = exporter(&edge).await;
    edge.queues.keep_requests(&["AmazonSQS.DeleteMessageBatch", "async-operations-queue"]);
    let id = ask(&edge.db).await;
    edge.queues.has_kept(1).await;
    wait_handled(&daemon, "operation", "done", 1).await;
    wait_handled(&daemon, "audit", "done", 1).await;
    edge.has("audit-log-queue", 0).await;
    settled(&edge.db).await;
    let written = object(&edge, &id);
    daemon.kill9();
    edge.mend();
    edge.has("async-operations-queue", 1).await;
    daemon.start();
    // The handler runs a second time, and finds that it has answered.
    wait_handled(&daemon, "operation", "done", 1).await;
    edge.has("async-operations-queue", 0).await;
    daemon.wait_log("a request has come again that was answered already", 1).await;
    assert_eq!(object(&edge, &id), written, "it was written a second time");
    assert_eq!(operation(&edge).await, ("succeeded".to_owned(), 1, 1));
    assert_eq!((edge.audited().await, handled(&daemon, "audit", "done").await), (once(), 0));
    drop(daemon);
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_before_an_export_is_noted_as_done_writes_the_same_object_again_and_tells_the_audit_log_once() {
    let edge = Edge::new("edge_noted").await;
    let mut daemon = exporter(&edge).await;
    // Compressed, but what is there for the first time is there as it is.
    edge.warehouse.keep_requests(&["INSERT+INTO+async_operations", "succeeded"]);
    let id = ask(&edge.db).await;
    edge.warehouse.has_kept(1).await;
    wait_handled(&daemon, "audit", "done", 1).await;
    edge.has("audit-log-queue", 0).await;
    settled(&edge.db).await;
    let (text, first) = object(&edge, &id);
    assert_eq!((operation(&edge).await, edge.audited().await), (("running".to_owned(), 1, 1), once()));
    daemon.kill9();
    edge.mend();
    daemon.start();
    // Nothing says that it was done, so the handler does all of it once more; and the audit log is told by the same event.
    wait_handled(&daemon, "operation", "done", 1).await;
    wait_handled(&daemon, "audit", "done", 1).await;
    let (again, second) = object(&edge, &id);
    assert!(again == text && second > first, "the same object, written anew");
    assert_eq!(operation(&edge).await, ("succeeded".to_owned(), 2, 1));
    assert_eq!(edge.audited().await, twice_and_once());
    edge.has("async-operations-queue", 0).await;
    drop(daemon);
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_an_object_and_what_the_audit_log_hears_of_it_tells_the_audit_log() {
    let edge = Edge::new("edge_told").await;
    let mut daemon = exporter(&edge).await;
    edge.queues.keep_requests(&["AmazonSQS.SendMessageBatch", "audit-log-queue"]);
    let id = ask(&edge.db).await;
    edge.queues.has_kept(1).await;
    settled(&edge.db).await;
    let (text, _) = object(&edge, &id);
    // Nobody is told that it has succeeded before the audit log is.
    assert_eq!(operation(&edge).await, ("running".to_owned(), 1, 1));
    daemon.kill9();
    edge.mend();
    daemon.start();
    wait_handled(&daemon, "operation", "done", 1).await;
    wait_handled(&daemon, "audit", "done", 1).await;
    assert_eq!(object(&edge, &id).0, text);
    assert_eq!((operation(&edge).await, edge.audited().await), (("succeeded".to_owned(), 2, 1), once()));
    drop(daemon);
    edge.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_clickhouse_answers_an_export_leaves_nothing_and_the_next_process_does_it() {
    let edge = Edge::new("edge_reading").await;
    let mut daemon = exporter(&edge).await;
    edge.warehouse.keep_answers(&["FROM numbers({rows:UInt64})"]);
    let id = ask(&edge.db).await;
    edge.warehouse.has_kept(1).await;
    settled(&edge.db).await;
    assert_eq!(operation(&edge).await, ("running".to_owned(), 1, 1));
    daemon.kill9();
    edge.mend();
    assert!(names(&objects(&edge).join("m1")).unwrap_or_default().is_empty(), "nothing was answered");
    daemon.start();
    // Of two runs the first one came to nothing.
    wait_handled(&daemon, "operation", "done", 1).await;
    wait_handled(&daemon, "audit", "done", 1).await;
    object(&edge, &id);
    assert_eq!((operation(&edge).await, edge.audited().await), (("succeeded".to_owned(), 2, 1), once()));
    drop(daemon);
    edge.db.cleanup().await;
}
