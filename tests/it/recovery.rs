//! `docs/recovery.md`, `docs/events.md` and `docs/reports.md`: what they tell one to do, done.

use std::time::Duration;

use crate::queue::{LOGIN, prefix, with_outbox};
use crate::reports::{ask, ended};
use crate::support::{Daemon, Sqs, TestDb, command, done, eventually, said};

const RECOVERY: &str = include_str!("../../docs/recovery.md");
const EVENTS: &str = include_str!("../../docs/events.md");
const REPORTS: &str = include_str!("../../docs/reports.md");

/// The code of a page in one language, in its order.
pub(crate) fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.trim())).collect()
}

async fn login(db: &TestDb, day: &str) {
    let payload = LOGIN.replace('}', &format!(r#", "details": {{"day": "{day}"}}}}"#));
    db.pg
        .execute(&format!(
            "INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{payload}')"
        ))
        .await;
}

async fn counted(db: &TestDb, sqs: &Sqs, wanted: (u64, u64, &str)) {
    eventually(Duration::from_secs(40), async || {
        let (queue, dead) = (format!("{}audit-log-queue", prefix(db)), format!("{}audit-log-dlq", prefix(db)));
        let audited = db.ch.try_query("SELECT uniqExact(event_id) FROM audit_log").await?;
        let found = (sqs.count(&queue).await, sqs.count(&dead).await, audited.as_str());
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recovery_procedure_is_what_its_page_says() {
    let (db, sqs) = (with_outbox("recovery").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let steps = blocks(RECOVERY, "sh");
    let [pause, list, show, check, dry_run, redrive, resume, look] = steps[..] else { panic!("{steps:?}") };

    // A mistake: a column that somebody has added, and that not every event fits.
    db.ch
        .query("ALTER TABLE audit_log ADD COLUMN day Date MATERIALIZED toDate(JSONExtractString(details, 'day'))")
        .await;
    for day in ["someday", "one day", "2026-01-01"] {
        login(&db, day).await;
    }
    counted(&db, &sqs, (0, 2, "1")).await;

    // 1. What comes from here on waits.
    done(command(pause, &daemon));
    login(&db, "yesterday").await;
    counted(&db, &sqs, (1, 2, "1")).await;

    // 2.
    let listed = said(&done(command(list, &daemon)));
    assert!(listed.contains("audit-log-dlq: 2 letters\n") && listed.contains("CANNOT_PARSE_DATE"), "{listed}");
    let line = listed.lines().find(|line| line.contains("SecurityEventOccurred")).expect("a letter");
    let event = line.split_whitespace().next().expect("its event");
    let mut one = command(show, &daemon);
    one.env("EVENT", event);
    let shown = said(&done(one));
    assert!(shown.contains(event) && shown.contains("actingUserId"), "{shown}");

    // 3.
    db.ch.query("ALTER TABLE audit_log DROP COLUMN day").await;
    assert!(said(&done(command(check, &daemon))).contains("✓ PostgreSQL"));

    // 4.
    let would = said(&done(command(dry_run, &daemon)));
    assert!(would.contains("2 would be sent home"), "{would}");
    counted(&db, &sqs, (1, 2, "1")).await;
    let home = said(&done(command(redrive, &daemon)));
    assert!(home.contains("2 sent home"), "{home}");
    counted(&db, &sqs, (3, 0, "1")).await;

    // 5.
    done(command(resume, &daemon));
    counted(&db, &sqs, (0, 0, "4")).await;
    let empty = said(&done(command(look, &daemon)));
    assert!(empty.ends_with("audit-log-dlq: 0 letters\n"), "{empty}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statements_of_the_page_on_events_write_events() {
    let (db, sqs) = (with_outbox("events_page").await, Sqs::shared());
    db.pg
        .execute("CREATE TABLE customer (id int PRIMARY KEY, role text); INSERT INTO customer VALUES (7, 'clerk')")
        .await;
    let mut daemon = Daemon::spawn(&db, &Sqs::config(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let statements = blocks(EVENTS, "sql");
    let [row, message, audited, correlated] = statements[..] else { panic!("{statements:?}") };
    for statement in [row, message, correlated] {
        db.pg.execute(statement).await;
    }
    let events = sqs.take(&format!("{}audit-log-queue", prefix(&db)), 2).await;
    assert!(events.iter().all(|event| event.body["metadata"]["correlationId"] == "request-4711"), "{events:?}");
    let request = sqs.take(&format!("{}async-operations-queue", prefix(&db)), 1).await;
    assert_eq!(request[0].body["metadata"]["correlationId"], "request-4712");
    assert_eq!(db.ch.query(audited).await, "");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_page_on_reports_asks_for_is_answered() {
    let (db, sqs) = (with_outbox("reports_page").await, Sqs::shared());
    db.pg.execute(crate::reports::schema()).await;
    db.pg.execute(crate::reports::ROWS).await;
    db.pg.execute("UPDATE customer SET region = '=1+1' WHERE region IS NULL").await;
    let configured = blocks(REPORTS, "toml");
    let [own, escape] = configured[..] else { panic!("{configured:?}") };
    let extra = format!(
        "{}[objects]\nurl = \"file://{}/objects\"\n[warehouse]\nenabled = true\n{escape}\n{own}\n",
        Sqs::handled(sqs.port(), &prefix(&db)),
        db.directory.display()
    );
    let mut daemon = Daemon::spawn(&db, &extra);
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    daemon.wait_log("the star schema is there", 1).await;
    let statements = blocks(REPORTS, "sql");
    let [wish, status, shortest] = statements[..] else { panic!("{statements:?}") };
    db.pg.execute(wish).await;
    db.pg.execute(shortest).await;
    let two = eventually(Duration::from_secs(60), async || {
        let rows = db.ch.try_query(status).await?;
        if rows.matches("succeeded").count() == 2 { Ok(rows) } else { Err(rows) }
    })
    .await;
    assert!(two.lines().all(|row| row.split('\t').nth(1).is_some_and(|rows| rows != "0")), "{two}");

    // Its own report, and what a spreadsheet would take for a formula.
    let name = own.split(['.', ']']).nth(1).expect("its name");
    let parameters = serde_json::json!({ "report": name, "from": "2026-01-01" });
    let row = ended(&db.ch, &ask(&db, "reportGeneration", "1", parameters).await).await;
    let path =
        row["location"].as_str().and_then(|place| place.strip_prefix("file://")).unwrap_or_else(|| panic!("{row}"));
    let file = std::fs::read_to_string(path).expect("a report");
    assert!(file.starts_with("\"region\",\"orders\"\n") && file.contains("\"'=1+1\","), "{file}");
    assert_eq!(row["bytes"].to_string().trim_matches('"'), file.len().to_string());
    drop(daemon);
    db.cleanup().await;
}
