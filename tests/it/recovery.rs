//! `docs/recovery.md` and `docs/events.md`: what they tell one to do, done.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::queue::{LOGIN, prefix, with_outbox};
use crate::support::{Daemon, Sqs, TestDb, eventually};

const RECOVERY: &str = include_str!("../../docs/recovery.md");
const EVENTS: &str = include_str!("../../docs/events.md");

/// The code of a page in one language, in its order.
pub(crate) fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.trim())).collect()
}

/// A command of the page, with the test's own configuration and program.
pub(crate) fn command(line: &str, daemon: &Daemon) -> Command {
    let config = daemon.config().display().to_string();
    let program = Path::new(env!("CARGO_BIN_EXE_walhouse"));
    let folder = program.parent().expect("it is in a folder").display();
    let mut command = Command::new("bash");
    command
        .args(["-c", &format!("exec env {}", line.replace("/etc/walhouse.toml", &config))])
        .env("PATH", format!("{folder}:{}", std::env::var("PATH").unwrap_or_default()))
        .stdin(Stdio::null());
    command
}

pub(crate) fn done(mut command: Command) -> Output {
    let output = tokio::task::block_in_place(|| command.output()).expect("bash can be started");
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
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
