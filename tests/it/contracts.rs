//! The events of each released version, as they were released: every later walhouse takes them, and refuses what it refused,
//! with the reason. The files of a version that was released are never changed; a new one gets a folder of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use walhouse::event::envelope::{Envelope, EventType, Queue};
use walhouse::event::schema::check_event;

use crate::queue::prefix;
use crate::support::{Daemon, Sqs, TestDb, eventually};

/// An event by the name of its file.
struct Fixture {
    name: String,
    text: String,
    /// Why it is refused; `None` if it is taken.
    reason: Option<String>,
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contracts").join(folder);
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files
}

fn name(path: &Path) -> String {
    path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned()
}

/// Those of all versions.
fn taken() -> Vec<Fixture> {
    let read = |path: &PathBuf| Fixture {
        name: name(path),
        text: fs::read_to_string(path).expect("it can be read"),
        reason: None,
    };
    ["1.0", "1.1"].iter().flat_map(|version| files(version).iter().map(read).collect::<Vec<_>>()).collect()
}

/// Each has the reason, and either the event, or the text that is none.
fn refused() -> Vec<Fixture> {
    let read = |path: &PathBuf| {
        let fixture: Value = serde_json::from_slice(&fs::read(path).expect("it can be read")).expect("JSON");
        let text = fixture["text"].as_str().map_or_else(|| fixture["event"].to_string(), str::to_owned);
        Fixture { name: name(path), text, reason: fixture["reason"].as_str().map(str::to_owned) }
    };
    files("refused").iter().map(read).collect()
}

#[test]
fn every_event_of_every_version_1_is_taken() {
    let mut by_type = BTreeMap::<EventType, usize>::new();
    for Fixture { name, text, .. } in taken() {
        let of = check_event(&text).unwrap_or_else(|misfit| panic!("{name}: {misfit}"));
        assert!(name.starts_with(of.name()), "{name} is a {of}");
        // And is read by what acts on it.
        serde_json::from_str::<Envelope>(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        *by_type.entry(of).or_default() += 1;
    }
    assert!(by_type.len() == 3 && by_type.values().all(|count| *count >= 4), "{by_type:?}");
}

#[test]
fn what_is_no_event_is_refused_with_the_reason_and_without_its_values() {
    let all = refused();
    assert!(all.len() > 60, "{}", all.len());
    for Fixture { name, text, reason } in all {
        let misfit = check_event(&text).expect_err(&name).to_string();
        let reason = reason.expect("a reason");
        assert!(misfit.starts_with(&reason), "{name}: {misfit}, and not {reason}");
        assert!(!misfit.contains("canary"), "{name}: {misfit}");
    }
}

/// A queue whose messages a worker handles.
struct Handled {
    queue: Queue,
    /// The ids of the events that had their effect, where that does not depend on more than the event.
    effects: Option<&'static str>,
}

/// Those that have a worker.
const HANDLED: [Handled; 3] = [
    Handled {
        queue: Queue::AuditLog,
        effects: Some("SELECT lower(toString(event_id)) FROM audit_log FINAL ORDER BY 1"),
    },
    // Of tables that are not there: what is taken fails, but not for its shape.
    Handled { queue: Queue::DataSync, effects: None },
    // They name no report that is there.
    Handled {
        queue: Queue::AsyncOperations,
        effects: Some("SELECT lower(toString(event_id)) FROM async_operations FINAL ORDER BY 1"),
    },
];

/// What is a reason of the schema, and of nobody else.
fn is_misfit(reason: &str) -> bool {
    ["/", "it is no JSON", "its version is", "it is no event"].iter().any(|start| reason.starts_with(start))
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_queue_each_event_has_its_effect_or_is_a_dead_letter_that_says_why() {
    let (db, sqs) = (TestDb::new("contracts").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    for Handled { queue, effects } in HANDLED {
        let main = format!("{}{}", prefix(&db), queue.name());
        let mut wanted = Vec::new();
        for Fixture { text, .. } in taken() {
            if check_event(&text).is_ok_and(|of| of.queue() == queue) {
                sqs.send(&main, &text).await;
                let event: Value = serde_json::from_str(&text).expect("JSON");
                wanted.push(event["metadata"]["eventId"].as_str().expect("an id").to_lowercase());
            }
        }
        let refused = refused();
        for Fixture { text, .. } in &refused {
            sqs.send(&main, text).await;
        }
        eventually(Duration::from_secs(90), async || match sqs.count(&main).await {
            0 => Ok(()),
            left => Err(format!("{left} messages are left in {main}")),
        })
        .await;
        let dead = format!("{}{}", prefix(&db), queue.dead_letters());
        let count = usize::try_from(sqs.count(&dead).await).expect("a small number");
        let dead = sqs.drain(&dead, count, Duration::from_secs(60)).await;
        let misfits = dead.iter().filter(|letter| is_misfit(&letter.attributes["deadLetterReason"])).count();
        assert_eq!(misfits, refused.len());
        for Fixture { name, text, reason } in &refused {
            let body = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()));
            let letters = dead.iter().filter(|letter| letter.body == body);
            let reasons: Vec<_> = letters.map(|letter| letter.attributes["deadLetterReason"].as_str()).collect();
            let reason = reason.as_deref().expect("a reason");
            assert!(reasons.iter().any(|said| said.starts_with(reason)), "{name}: {reasons:?}, and not {reason}");
        }
        if let Some(effects) = effects {
            wanted.sort();
            assert_eq!(db.ch.query(effects).await, wanted.join("\n"));
        }
    }
    assert!(!daemon.log().contains("canary"), "{}", daemon.log());
    drop(daemon);
    db.cleanup().await;
}
