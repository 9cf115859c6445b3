//! `walhouse dlq`: dead letters are looked at, sent home and removed, and none is lost or hidden by that.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::{Value, json};

use crate::queue::{LOGIN, prefix, with_outbox};
use crate::support::{Daemon, Exit, Proxy, Sqs, TestDb, eventually, free_port, signal, walhouse, write_config};

/// Queues of the test's own, and a configuration for commands.
struct Letters {
    db: TestDb,
    sqs: Arc<Sqs>,
    config: PathBuf,
    suffix: &'static str,
}

impl Letters {
    async fn new(label: &str) -> Self {
        Self::with(label, "").await
    }

    /// With more lines of `[queue]`.
    async fn with(label: &str, queue: &str) -> Self {
        let (db, sqs) = (TestDb::new(label).await, Sqs::shared());
        let extra = Sqs::config(sqs.port(), &prefix(&db)).replacen("[queue]\n", &format!("[queue]\n{queue}\n"), 1);
        let config = write_config(&db, &extra, free_port(), "walhouse.toml");
        let exit = walhouse(&config, &["provision"]).await;
        assert_eq!(exit.code, Some(0), "{exit:?}");
        Self { db, sqs, config, suffix: if queue.is_empty() { "" } else { ".fifo" } }
    }

    fn name(&self, which: &str) -> String {
        format!("{}audit-log-{which}{}", prefix(&self.db), self.suffix)
    }

    /// Puts letters into the queue, as a worker would; returns the ids of their events.
    async fn letters(&self, count: usize, reason: &str) -> Vec<String> {
        let mut ids = Vec::new();
        for number in 0..count {
            let id = uuid::Uuid::from_u128(rand::random()).to_string();
            let attributes = [
                ("eventType", "SecurityEventOccurred"),
                ("correlationId", "c"),
                ("deadLetterReason", reason),
                ("deadLetterHandler", "audit"),
                ("deadLetterTries", "4"),
                ("deadLetterTime", "2026-01-01T00:00:00.000Z"),
            ];
            let group = (!self.suffix.is_empty()).then(|| format!("group {}", number % 2));
            self.sqs.send_with(&self.name("dlq"), &event(&id), &attributes, group.as_deref()).await;
            ids.push(id);
        }
        ids
    }

    /// `walhouse dlq … --queue audit-log`.
    async fn dlq(&self, arguments: &[&str]) -> Exit {
        walhouse(&self.config, &[&["dlq"], arguments, &["--queue", "audit-log"]].concat()).await
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let exit = self.dlq(&[arguments, &["--json"]].concat()).await;
        serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{error}: {exit:?}"))
    }

    /// The ids of the events in the queue of dead letters, all of which are in sight.
    async fn listed(&self) -> BTreeSet<String> {
        let list = self.json(&["list"]).await;
        let letters = list["queues"][0]["letters"].as_array().expect("letters");
        letters.iter().map(|letter| letter["event_id"].as_str().expect("an id").to_owned()).collect()
    }
}

fn event(id: &str) -> String {
    let login: Value = serde_json::from_str(LOGIN).expect("JSON");
    json!({
        "metadata": {
            "eventId": id, "eventTimestamp": "2026-01-01T00:00:00Z", "eventType": "SecurityEventOccurred",
            "eventVersion": "1.0", "correlationId": "c", "sourceService": "shop"
        },
        "payload": login
    })
    .to_string()
}

fn set(ids: &[String]) -> BTreeSet<String> {
    ids.iter().cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_listed_and_shown_and_stay_in_sight() {
    let all = Letters::new("dlq_list").await;
    let mut ids = all.letters(12, "a full moon").await;
    all.sqs.send(&all.name("dlq"), "no JSON, canary").await;
    let list = all.json(&["list"]).await;
    assert_eq!(
        (list["queues"][0]["queue"].as_str(), &list["queues"][0]["count"]),
        (Some(&*all.name("dlq")), &json!(13))
    );
    let letters = list["queues"][0]["letters"].as_array().expect("letters");
    let letter = letters.iter().find(|letter| letter["event_id"] == ids[3].as_str()).expect("it is there");
    for (name, value) in [
        ("event_type", json!("SecurityEventOccurred")),
        ("event_version", json!("1.0")),
        ("reason", json!("a full moon")),
        ("handler", json!("audit")),
        ("tries", json!(4)),
        ("time", json!("2026-01-01T00:00:00.000Z")),
    ] {
        assert_eq!(letter[name], value, "{name}");
    }
    let people = all.dlq(&["list"]).await;
    assert!(people.stdout.contains(&format!("{}: 13 letters\n", all.name("dlq"))), "{people:?}");
    assert!(ids.iter().all(|id| people.stdout.contains(id)), "{people:?}");
    // Nothing of what they say inside, neither of an event nor of what is none.
    assert!(!people.stdout.contains("u1") && !people.stdout.contains("canary"), "{people:?}");
    assert!(people.stdout.contains("SQS has moved it"), "{people:?}");

    let few = all.json(&["list", "--limit", "2"]).await;
    assert_eq!(few["queues"][0]["letters"].as_array().map(Vec::len), Some(2));
    let exit = walhouse(&all.config, &["dlq", "list", "--json"]).await;
    let every: Value = serde_json::from_str(&exit.stdout).expect("JSON");
    assert_eq!(every["queues"].as_array().map(Vec::len), Some(3), "{every}");

    let shown = all.json(&["show", &ids[0]]).await;
    assert_eq!((&shown["body"]["payload"]["actingUserId"], &shown["reason"]), (&json!("u1"), &json!("a full moon")));
    let message = letter["message_id"].as_str().expect("an id").to_owned();
    assert_eq!(all.json(&["show", &message]).await["event_id"], ids[3].as_str());
    let absent = all.dlq(&["show", "nobody"]).await;
    assert!(absent.code == Some(1) && absent.stderr.contains("there is no dead letter nobody"), "{absent:?}");
    let whose = walhouse(&all.config, &["dlq", "redrive"]).await;
    assert!(whose.code == Some(2) && whose.stderr.contains("--queue"), "{whose:?}");
    // Whoever takes them now has them all.
    ids.sort();
    assert_eq!(all.sqs.take(&all.name("dlq"), 13).await.len(), 13);
    all.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_sends_home_what_fits_and_leaves_the_others_in_sight() {
    let all = Letters::new("dlq_filter").await;
    let (moon, sun) = (all.letters(25, "a full moon").await, all.letters(25, "too much sun").await);

    let dry = all.json(&["redrive", "--reason", "moon", "--dry-run"]).await;
    assert_eq!((&dry["letters"], &dry["passed_over"], &dry["dry_run"]), (&json!(25), &json!(25), &json!(true)));
    assert_eq!((all.sqs.count(&all.name("queue")).await, all.listed().await.len()), (0, 50));

    let begun = Instant::now();
    let done = all.json(&["redrive", "--reason", "moon", "--limit", "10", "--rate", "20"]).await;
    assert_eq!(done["letters"], json!(10));
    // Two at a time, and the last of them not before it is their turn.
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    let rest = all.json(&["redrive", "--reason", "moon"]).await;
    assert_eq!((&rest["letters"], &rest["passed_over"], &rest["stopped"]), (&json!(15), &json!(25), &json!(false)));
    assert_eq!(all.listed().await, set(&sun));
    let one = all.json(&["redrive", "--event-id", &sun[7]]).await;
    assert_eq!((&one["letters"], &one["passed_over"]), (&json!(1), &json!(24)));
    let absent = all.dlq(&["redrive", "--event-id", &sun[7]]).await;
    assert!(absent.code == Some(1) && absent.stderr.contains("there is no dead letter"), "{absent:?}");
    let none = all.json(&["redrive", "--type", "DatabaseChangeCaptured"]).await;
    assert_eq!((&none["letters"], &none["passed_over"]), (&json!(0), &json!(24)));

    let home = all.sqs.take(&all.name("queue"), 26).await;
    let ids: BTreeSet<_> = home.iter().filter_map(|one| one.body["metadata"]["eventId"].as_str()).collect();
    assert!(ids.len() == 26 && moon.iter().all(|id| ids.contains(id.as_str())) && ids.contains(sun[7].as_str()));
    for one in &home {
        // What made it a dead letter is gone, and the rest is as it was.
        assert_eq!(one.attributes.keys().collect::<Vec<_>>(), ["correlationId", "eventType", "redriven"]);
        assert_eq!(one.body.to_string(), event(one.body["metadata"]["eventId"].as_str().expect("an id")));
    }

    let asked = all.dlq(&["purge"]).await;
    assert!(asked.code == Some(2) && asked.stderr.contains("24 at the moment; to do it, say --yes"), "{asked:?}");
    assert_eq!(all.json(&["purge", "--event-id", &sun[0], "--yes"]).await["letters"], json!(1));
    assert_eq!(all.json(&["purge", "--dry-run"]).await["letters"], json!(23));
    assert_eq!(all.listed().await.len(), 23);
    let people = all.dlq(&["purge", "--yes"]).await;
    assert!(people.code == Some(0) && people.stdout.contains("23 removed for good"), "{people:?}");
    assert_eq!((all.sqs.count(&all.name("dlq")).await, all.sqs.count(&all.name("queue")).await), (0, 0));
    all.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifo_letters_go_home_in_the_order_of_their_group() {
    let all = Letters::with("dlq_fifo", "fifo = true").await;
    let ids = all.letters(12, "a full moon").await;
    assert!(all.dlq(&["list"]).await.stdout.contains("12 letters"));
    let done = all.json(&["redrive"]).await;
    assert_eq!(done["letters"], json!(12));
    let home = all.sqs.take(&all.name("queue"), 12).await;
    let of_group = |group: usize| {
        let own: BTreeSet<_> = ids.iter().skip(group).step_by(2).map(String::as_str).collect();
        let here = home.iter().filter_map(|one| one.body["metadata"]["eventId"].as_str());
        here.filter(|id| own.contains(id)).map(str::to_owned).collect::<Vec<_>>()
    };
    for group in [0, 1] {
        assert_eq!(of_group(group), ids.iter().skip(group).step_by(2).cloned().collect::<Vec<_>>());
    }
    all.db.cleanup().await;
}

/// A redrive that takes its time.
fn slowly(config: &Path) -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_walhouse"))
        .arg("--config")
        .arg(config)
        .args(["dlq", "redrive", "--queue", "audit-log", "--rate", "100", "--reason", "moon", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("walhouse can be started")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_that_is_cut_short_loses_nothing() {
    let all = Letters::new("dlq_cut").await;
    let (moon, sun) = (all.letters(300, "a full moon").await, all.letters(5, "too much sun").await);
    let some_are_home = async |least: u64| {
        eventually(Duration::from_secs(20), async || match all.sqs.count(&all.name("queue")).await {
            home if home >= least => Ok(()),
            home => Err(format!("{home} are home")),
        })
        .await;
    };
    // Ctrl-C: what was passed over, or not yet done, is in sight at once.
    let child = slowly(&all.config);
    some_are_home(5).await;
    signal("INT", &[child.id()]);
    let output = tokio::task::block_in_place(|| child.wait_with_output()).expect("it ends");
    let done: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &done["stopped"]), (Some(1), &json!(true)));
    let home = usize::try_from(all.sqs.count(&all.name("queue")).await).expect("few");
    assert_eq!(done["letters"], json!(home));
    assert_eq!(all.sqs.count(&all.name("dlq")).await, 305 - home as u64);

    // A crash: what was in hand comes back by itself.
    let mut child = slowly(&all.config);
    some_are_home(home as u64 + 5).await;
    child.kill().expect("it can be killed");
    child.wait().expect("it can be waited for");
    eventually(Duration::from_secs(60), async || {
        all.json(&["redrive", "--reason", "moon"]).await;
        match all.sqs.count(&all.name("dlq")).await {
            5 => Ok(()),
            left => Err(format!("{left} letters are left")),
        }
    })
    .await;
    assert_eq!(all.listed().await, set(&sun));
    let home = all.sqs.drain(&all.name("queue"), usize::MAX, Duration::from_secs(3)).await;
    let ids: BTreeSet<_> = home.iter().filter_map(|one| one.body["metadata"]["eventId"].as_str()).collect();
    assert!(ids.len() == 300 && moon.iter().all(|id| ids.contains(id.as_str())), "{} of 300", ids.len());
    // One batch was on its way at most, when it was killed.
    assert!(home.len() <= 310, "{}", home.len());
    all.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_whose_sending_is_not_confirmed_stay_and_a_fifo_queue_has_them_once() {
    // A FIFO queue has one of each of the two groups in a batch.
    for (queue, batch) in [("", 10), ("fifo = true", 2)] {
        let all = Letters::with("dlq_unknown", queue).await;
        let ids = all.letters(12, "a full moon").await;
        let proxy = Proxy::to(all.sqs.port()).await;
        let extra =
            Sqs::config(proxy.port(), &prefix(&all.db)).replacen("[queue]\n", &format!("[queue]\n{queue}\n"), 1);
        let config = write_config(&all.db, &extra, free_port(), "proxied.toml");
        // They arrive, and nobody hears of it.
        proxy.cut_after("AmazonSQS.SendMessageBatch");
        let cut = walhouse(&config, &["dlq", "redrive", "--queue", "audit-log"]).await;
        assert!(cut.code == Some(1) && cut.stderr.contains("Before that, 0 letters were done"), "{cut:?}");
        assert_eq!((all.sqs.count(&all.name("queue")).await, all.sqs.count(&all.name("dlq")).await), (batch, 12));
        // They could not be given back, and come back by themselves.
        let mut sent = 0;
        eventually(Duration::from_secs(60), async || {
            sent += all.json(&["redrive"]).await["letters"].as_u64().unwrap_or_default();
            if sent == 12 { Ok(()) } else { Err(format!("{sent} are sent")) }
        })
        .await;
        let home = all.sqs.drain(&all.name("queue"), usize::MAX, Duration::from_secs(3)).await;
        let found: BTreeSet<_> = home.iter().filter_map(|one| one.body["metadata"]["eventId"].as_str()).collect();
        assert_eq!(found, ids.iter().map(String::as_str).collect());
        assert_eq!(home.len(), if queue.is_empty() { 22 } else { 12 });
        assert_eq!(all.sqs.count(&all.name("dlq")).await, 0);
        all.db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_its_queue_does_not_take_stays_and_in_a_fifo_queue_its_group_behind_it() {
    for queue in ["", "fifo = true"] {
        let all = Letters::with("dlq_refused", queue).await;
        let mut ids = all.letters(4, "a full moon").await;
        let large = uuid::Uuid::from_u128(rand::random()).to_string();
        let body = event(&large).replace("u1", &"u".repeat(2000));
        let group = (!queue.is_empty()).then_some("group 0");
        all.sqs.send_with(&all.name("dlq"), &body, &[("deadLetterReason", "a full moon")], group).await;
        ids.extend(all.letters(6, "a full moon").await);
        all.sqs.set(&all.name("queue"), QueueAttributeName::MaximumMessageSize, "1024").await;
        let exit = all.dlq(&["redrive", "--json"]).await;
        let done: Value = serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{error}: {exit:?}"));
        // Of group 0 there are three behind it, whether they were taken with it or could not be taken.
        let behind: Vec<_> = if queue.is_empty() { Vec::new() } else { ids.iter().skip(4).step_by(2).collect() };
        assert_eq!((exit.code, &done["letters"], &done["refused"]), (Some(1), &json!(10 - behind.len()), &json!(1)));
        assert_eq!(done["refusal"], json!("InvalidParameterValue"));
        let stay = std::iter::once(&large).chain(behind.iter().copied()).cloned().collect::<BTreeSet<_>>();
        // Those behind it are not in sight while it is in hand.
        let (listed, count) = (all.listed().await, all.sqs.count(&all.name("dlq")).await);
        assert!(
            listed.contains(&large) && listed.is_subset(&stay) && count == stay.len() as u64,
            "{listed:?}, {count}"
        );
        let people = all.dlq(&["redrive"]).await;
        let said = "1 are not taken by their queue (InvalidParameterValue) and stay";
        assert!(people.code == Some(1) && people.stdout.contains(said), "{people:?}");

        // Once it takes it, all of them come, and the group in its order.
        all.sqs.set(&all.name("queue"), QueueAttributeName::MaximumMessageSize, "1048576").await;
        assert_eq!(all.json(&["redrive"]).await["letters"], json!(stay.len()));
        let home = all.sqs.take(&all.name("queue"), 11).await;
        let order: Vec<_> = home.iter().filter_map(|one| one.body["metadata"]["eventId"].as_str()).collect();
        if !queue.is_empty() {
            let own = [&ids[0], &ids[2], &large, &ids[4], &ids[6], &ids[8]].map(String::as_str);
            assert_eq!(order.iter().copied().filter(|id| own.contains(id)).collect::<Vec<_>>(), own);
        }
        all.db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_event_comes_home_once_its_cause_is_gone_and_is_left_alone_before() {
    let (db, sqs) = (with_outbox("dlq_home").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    // A column that somebody has added trips over an event.
    db.ch
        .query("ALTER TABLE audit_log ADD COLUMN day Date MATERIALIZED toDate(JSONExtractString(details, 'day'))")
        .await;
    let poison = LOGIN.replace('}', r#", "details": {"day": "someday"}}"#);
    db.pg
        .execute(&format!(
            "INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{poison}');
            INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{{\"eventType\": \"login\"}}')"
        ))
        .await;
    let dead = format!("{}audit-log-dlq", prefix(&db));
    let two = async || {
        eventually(Duration::from_secs(30), async || match sqs.count(&dead).await {
            2 => Ok(()),
            count => Err(format!("{count} letters")),
        })
        .await;
    };
    two().await;
    let list = walhouse(daemon.config(), &["dlq", "list", "--queue", "audit-log", "--json"]).await;
    let list: Value = serde_json::from_str(&list.stdout).expect("JSON");
    let letters = list["queues"][0]["letters"].as_array().expect("letters");
    let by = |handler: &str| letters.iter().find(|letter| letter["handler"] == handler).expect("there is one").clone();
    assert!(by("audit")["reason"].as_str().is_some_and(|why| why.contains("CANNOT_PARSE_DATE")), "{letters:?}");
    assert_eq!((&by("audit")["tries"], &by("outbox")["tries"]), (&json!(1), &json!(0)));
    assert!(by("outbox")["reason"].as_str().is_some_and(|why| why.contains("actingUserId")), "{letters:?}");
    assert!(by("outbox")["time"].is_string());

    assert_eq!(db.ch.query("SELECT count() FROM audit_log").await, "0");

    // Too early: both fail once more, and are not sent round and round.
    let arguments = ["dlq", "redrive", "--queue", "audit-log", "--json"];
    let early = walhouse(daemon.config(), &[&arguments[..], &["--limit", "50"]].concat()).await;
    let early: Value = serde_json::from_str(&early.stdout).expect("JSON");
    assert_eq!(early["letters"], json!(2), "{early}");
    two().await;

    db.ch.query("ALTER TABLE audit_log DROP COLUMN day").await;
    let id = by("audit")["event_id"].as_str().expect("an id").to_owned();
    let home = walhouse(daemon.config(), &[&arguments[..], &["--event-id", &id]].concat()).await;
    assert_eq!(home.code, Some(0), "{home:?}");
    eventually(Duration::from_secs(20), async || {
        match db.ch.try_query("SELECT toString(event_id) FROM audit_log FINAL").await? {
            found if found == id => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(sqs.count(&dead).await, 1);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_queues_the_letters_are_rows_of_clickhouse() {
    let db = TestDb::new("dlq_rows").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY, at timestamptz); INSERT INTO item VALUES (1, now())").await;
    let config = write_config(&db, "", free_port(), "walhouse.toml");
    let none = walhouse(&config, &["dlq", "list"]).await;
    assert!(none.code == Some(0) && none.stdout == "_dead_letters: 0 letters\n", "{none:?}");
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO item VALUES (2, 'infinity'), (3, '-infinity')").await;
    let list = eventually(Duration::from_secs(20), async || {
        let exit = walhouse(&config, &["dlq", "list", "--json"]).await;
        let list: Value = serde_json::from_str(&exit.stdout).map_err(|error| format!("{error}: {exit:?}"))?;
        if list["queues"][0]["count"] == 2 { Ok(list) } else { Err(list.to_string()) }
    })
    .await;
    let letter = &list["queues"][0]["letters"][0];
    assert_eq!((&letter["table"], &letter["operation"]), (&json!("public.item"), &json!("insert")));
    assert!(letter["reason"].as_str().is_some_and(|why| why.starts_with("column at: ")), "{letter}");
    assert!(letter["commit_lsn"].as_str().is_some_and(|lsn| lsn.contains('/')), "{letter}");
    let id = letter["id"].as_str().expect("an id");
    let shown = walhouse(&config, &["dlq", "show", id, "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|error| panic!("{error}: {shown:?}"));
    assert!(shown["envelope"]["new"]["at"].as_str().is_some_and(|at| at.contains("infinity")), "{shown}");
    let instead = walhouse(&config, &["dlq", "redrive"]).await;
    assert!(instead.code == Some(1) && instead.stderr.contains("walhouse resync public.item"), "{instead:?}");
    let people = walhouse(&config, &["dlq", "list", "--queue", "data-sync"]).await;
    assert!(people.stdout.contains("public.item: 2") && people.stdout.contains(id), "{people:?}");
    let other = walhouse(&config, &["dlq", "list", "--queue", "audit-log"]).await;
    assert!(other.code == Some(2) && other.stderr.contains("there is no [queue]"), "{other:?}");
    let asked = walhouse(&config, &["dlq", "purge", "--table", "public.item"]).await;
    assert!(asked.code == Some(2) && asked.stderr.contains("2 at the moment"), "{asked:?}");
    let one = walhouse(&config, &["dlq", "purge", "--event-id", id, "--yes"]).await;
    assert!(one.code == Some(0) && one.stdout == "_dead_letters: 1 removed for good\n", "{one:?}");
    assert_eq!(db.ch.query("SELECT count() FROM _dead_letters FINAL").await, "1");
    drop(daemon);
    db.cleanup().await;
}
