//! What an application calls a request is in every log line that has to do with it, on its way to a queue and back, and in
//! ClickHouse's own log of what was asked for it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::queue::{LOGIN, OUTBOX, prefix};
use crate::support::{ClickHouse, ClickHouseOptions, Daemon, Postgres, Sqs, TestDb, eventually};

/// ClickHouse's own packages keep this table too.
const QUERY_LOG: &str = "<query_log><database>system</database><table>query_log</table>
    <flush_interval_milliseconds>500</flush_interval_milliseconds></query_log>";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const REPORT: &str = "[reports.one]\nsql = \"SELECT {merchant:String} AS merchant\"\n";

/// A message of one transaction, and the id of its event.
async fn emit(db: &TestDb, correlation: &str, event_type: &str, payload: &Value) -> String {
    let id = uuid::Uuid::from_u128(rand::random()).to_string();
    let message = json!({
        "eventType": event_type, "payload": payload, "correlationId": correlation, "eventId": id, "traceparent": TRACE
    });
    db.pg.value(&format!("SELECT pg_logical_emit_message(true, 'walhouse.outbox', '{message}')")).await;
    id
}

/// The first line of the log that says this, and that is meant.
async fn line(daemon: &Daemon, message: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually(Duration::from_secs(60), async || {
        let log = daemon.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["message"] == message && is(line)).ok_or_else(|| format!("no {message:?}: {log}"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_about_an_event_bears_its_correlation_and_so_does_a_reports_query() {
    let clickhouse =
        ClickHouse::private(ClickHouseOptions { settings: QUERY_LOG.to_owned(), ..ClickHouseOptions::default() });
    let db = TestDb::on(Postgres::shared(), clickhouse, "correlation").await;
    db.pg.execute(OUTBOX).await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY)").await;
    let extra = format!(
        "{}[log]\nlevel = \"info,walhouse::queue=debug\"\nformat = \"json\"\n[objects]\nurl = \"file://{}/objects\"\n{REPORT}",
        Sqs::handled(Sqs::shared().port(), &prefix(&db)),
        db.directory.display()
    );
    let mut daemon = Daemon::spawn(&db, &extra);
    daemon.wait_ready().await;
    // Somebody has added a column that not every event fits.
    db.ch
        .query("ALTER TABLE audit_log ADD COLUMN day Date MATERIALIZED toDate(JSONExtractString(details, 'day'))")
        .await;

    let wish = json!({
        "operationType": "reportGeneration", "userId": "u", "merchantAccountId": "m", "parameters": {"report": "one"}
    });
    let report = emit(&db, "request-1", "AsynchronousOperationRequested", &wish).await;
    let misfit = emit(&db, "request-2", "SecurityEventOccurred", &json!({"eventType": "login"})).await;
    let mut login: Value = serde_json::from_str(LOGIN).expect("JSON");
    login["details"] = json!({"day": "someday"});
    let poison = emit(&db, "request-3", "SecurityEventOccurred", &login).await;

    // On their way out.
    for (id, correlation, message) in [
        (&report, "request-1", "an event is sent"),
        (&misfit, "request-2", "an event is a dead letter"),
        (&poison, "request-3", "an event is sent"),
    ] {
        let line = line(&daemon, message, |line| line["event_id"] == id.as_str()).await;
        assert_eq!(line["correlation_id"], correlation, "{line}");
    }
    // And with whoever handles them.
    for (id, correlation, worker, message) in [
        (&report, "request-1", "operation", "a report runs"),
        (&report, "request-1", "operation", "a report is there"),
        (&poison, "request-3", "audit", "an event is a dead letter"),
    ] {
        let line = line(&daemon, message, |line| line["span"]["event_id"] == id.as_str()).await;
        let span = &line["span"];
        assert_eq!(
            (&span["correlation_id"], &span["worker"], &span["traceparent"]),
            (&json!(correlation), &json!(worker), &json!(TRACE)),
            "{line}"
        );
        assert!(span["message_id"].is_string() && span["event_type"].is_string(), "{line}");
    }
    let queries =
        "SELECT DISTINCT JSONExtractString(log_comment, 'event_id'), JSONExtractString(log_comment, 'traceparent')
        FROM system.query_log WHERE JSONExtractString(log_comment, 'correlation_id') = 'request-1'";
    eventually(Duration::from_secs(60), async || match db.ch.try_query(queries).await? {
        found if found == format!("{report}\t{TRACE}") => Ok(()),
        other => Err(other),
    })
    .await;
    drop(daemon);
    db.cleanup().await;
}
