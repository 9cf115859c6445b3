//! The API: who may, what each request does, and that the audit log hears of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::queue::{LOGIN, prefix};
use crate::support::{Daemon, Sqs, TestDb, assert_equal, eventually, exchange, walhouse};

const VIEWER: &str = "canary-token-of-a-viewer";
const OPERATOR: &str = "canary-token-of-an-operator";
const SOON: Duration = Duration::from_secs(60);

/// An answer.
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

/// A daemon with its API.
struct Api {
    db: TestDb,
    sqs: Arc<Sqs>,
    daemon: Daemon,
    document: Value,
}

impl Api {
    /// With tokens, workers and queues, and the tables a and b, which are copied.
    async fn new(label: &str) -> Self {
        let (db, sqs) = (TestDb::new(label).await, Sqs::shared());
        db.pg.execute("CREATE TABLE a (id int8 PRIMARY KEY); CREATE TABLE b (id int8 PRIMARY KEY)").await;
        db.pg.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)").await;
        let tokens =
            format!("[http]\nviewer_token = \"{VIEWER}\"\noperator_token_file = \"{}\"\n", file(&db).display());
        std::fs::write(file(&db), format!("{OPERATOR}\n")).unwrap();
        let mut daemon = Daemon::spawn(&db, &(tokens + &Sqs::handled(sqs.port(), &prefix(&db))));
        daemon.wait_ready().await;
        assert_equal(&db, "a").await;
        let document = document();
        Self { db, sqs, daemon, document }
    }

    /// Sends a request, and holds what comes back to the document.
    async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let answer = send(self.daemon.port(), method, &format!("/api/v1{path}"), headers, body).await;
        let bare = path.split('?').next().unwrap();
        let template = bare.split('/').enumerate().map(|(at, part)| match (bare.starts_with("/dlq/"), at) {
            (true, 2) => "{queue}",
            (true, 3) if part != "redrive" => "{event}",
            _ => part,
        });
        let template = template.collect::<Vec<_>>().join("/");
        if let Some(operation) = self.document["paths"][&template].get(method.to_lowercase()) {
            let known = operation["responses"].get(answer.status.to_string()).is_some();
            assert!(known, "{method} {path} answers {}, which the document does not know", answer.status);
        }
        for header in ["x-content-type-options: nosniff", "cache-control: no-store"] {
            assert!(answer.head.contains(header), "{method} {path}: {}", answer.head);
        }
        let whole = format!("{}{}", answer.head, answer.body);
        assert!(!whole.contains("canary"), "{method} {path}: {whole}");
        answer
    }

    async fn get(&self, path: &str, token: &str) -> Answer {
        self.ask("GET", path, &bearer(token), "").await
    }

    async fn post(&self, path: &str, token: &str, body: &Value) -> Answer {
        let headers = format!("{}Content-Type: application/json\r\nX-Walhouse-Actor: ana@desk\r\n", bearer(token));
        self.ask("POST", path, &headers, &body.to_string()).await
    }

    /// What an operator gets who asks for this.
    async fn accepted(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, OPERATOR, &body).await;
        assert_eq!(answer.status, 202, "{path} {body}: {}", answer.body);
        assert_eq!(answer.body["asked_by"], "ana@desk");
        answer.body
    }

    /// The rows of the audit log of one type, as soon as there are so many.
    async fn audited(&self, event_type: &str, count: usize) -> Vec<Value> {
        let sql = format!(
            "SELECT event_id, acting_user_id, target_resource, outcome, details FROM audit_log FINAL
             WHERE event_type = '{event_type}' ORDER BY event_timestamp FORMAT JSONEachRow"
        );
        eventually(SOON, async || {
            let found = self.db.ch.try_query(&sql).await?;
            let rows: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            if rows.len() == count { Ok(rows) } else { Err(format!("{event_type}: {rows:?}")) }
        })
        .await
    }

    async fn state(&self, table: &str, wanted: &str) {
        eventually(SOON, async || {
            let answer = self.get("/tables", VIEWER).await;
            let tables = answer.body["tables"].as_array().cloned().unwrap_or_default();
            let state = tables.into_iter().find(|one| one["table"] == table).map(|one| one["state"].clone());
            if state == Some(json!(wanted)) { Ok(()) } else { Err(format!("{table}: {}", answer.body)) }
        })
        .await;
    }
}

fn file(db: &TestDb) -> PathBuf {
    db.directory.join("operator_token")
}

fn document() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/api/openapi.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn bearer(token: &str) -> String {
    if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") }
}

async fn send(port: u16, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
    let head = format!("{method} {path} HTTP/1.1\r\n{host}{headers}Content-Length: {}\r\n\r\n", body.len());
    let (status, head, body) = exchange(port, &head, body).await.unwrap();
    Answer { status, head: head.to_lowercase(), body: serde_json::from_str(&body).unwrap_or(Value::String(body)) }
}

fn error(answer: &Answer) -> &str {
    answer.body["error"].as_str().unwrap_or_else(|| panic!("{}: {}", answer.status, answer.body))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_what_is_its_own_and_no_token_is_shown_anywhere() {
    let api = Api::new("api_roles").await;
    for path in ["/status", "/tables", "/queues", "/dlq/audit-log", "/openapi.json"] {
        assert_eq!(api.get(path, VIEWER).await.status, 200, "{path}");
        assert_eq!(api.get(path, OPERATOR).await.status, 200, "{path}");
    }
    assert_eq!(api.get("/openapi.json", VIEWER).await.body, api.document);
    let none = api.get("/status", "").await;
    assert_eq!(none.status, 401);
    assert!(none.head.contains("www-authenticate: bearer") && error(&none).contains("Authorization"), "{}", none.head);
    assert_eq!(api.get("/status", "canary-token-of-nobody").await.status, 401);
    assert_eq!(api.get("/nothing", "").await.status, 401, "who has no token learns of no path");
    assert_eq!(api.get("/nothing", VIEWER).await.status, 404);
    // A letter shows data.
    assert_eq!(api.get("/dlq/audit-log/x", VIEWER).await.status, 403);
    assert_eq!(api.get("/dlq/audit-log/x", OPERATOR).await.status, 404);
    let viewer = api.post("/pause", VIEWER, &json!({})).await;
    assert!(viewer.status == 403 && error(&viewer).contains("http.operator_token"), "{}", viewer.body);
    assert_eq!(api.post("/pause", "canary-token-of-nobody", &json!({})).await.status, 401);
    // Neither did anything, and both are known.
    let rows = api.audited("walhouse.pause", 2).await;
    let who: Vec<_> = rows.iter().map(|row| (row["acting_user_id"].as_str(), row["outcome"].as_str())).collect();
    assert!(who.contains(&(Some("viewer"), Some("failure"))) && who.contains(&(Some("unknown"), Some("failure"))));
    assert!(rows.iter().all(|row| row["details"].to_string().contains("ana@desk")), "{rows:?}");
    assert_eq!(api.db.ch.query("SELECT count() FROM _pauses").await, "0");

    for args in [vec!["config"], vec!["config", "--json"], vec!["status"]] {
        let exit = walhouse(api.daemon.config(), &args).await;
        assert!(!format!("{exit:?}").contains("canary"), "{args:?}: {exit:?}");
    }
    assert!(!api.daemon.log().contains("canary"), "{}", api.daemon.log());
    // What needs no token still does not.
    assert_eq!(api.daemon.get("/metrics").await.unwrap().status, 200);
    assert_eq!(api.daemon.get("/healthz").await.unwrap().status, 200);
    api.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_asks_for_is_done_as_the_commands_do_it_and_audited() {
    let api = Api::new("api_acts").await;
    let status = walhouse(api.daemon.config(), &["status", "--json"]).await;
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    let served = api.get("/status", VIEWER).await.body;
    for part in ["slot", "workers"] {
        assert_eq!(served[part], status[part]);
    }
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&served), keys(&status));

    let paused = api.accepted("/pause", json!({"reason": "moving house", "workers": ["data-sync"]})).await;
    assert_eq!(paused["held"][0]["subject"], "data-sync");
    let paused = api.accepted("/pause", json!({"reason": "moving house"})).await;
    assert_eq!((&paused["held"][0]["paused"], &paused["held"][0]["before"]), (&json!(true), &json!(false)));
    eventually(SOON, async || {
        let ready = api.daemon.get("/readyz").await?.body;
        if ready.contains("by ana@desk: moving house") { Ok(()) } else { Err(ready) }
    })
    .await;
    api.accepted("/resume", json!({})).await;
    api.accepted("/resume", json!({"workers": ["data-sync"]})).await;
    api.db.pg.execute("INSERT INTO a VALUES (2)").await;
    assert_equal(&api.db, "a").await;

    let tables = api.accepted("/pause", json!({"tables": ["public.b"], "reason": "why"})).await;
    assert_eq!(tables["tables"], json!(["public.b"]));
    api.state("public.b", "paused").await;
    api.db.pg.execute("INSERT INTO b VALUES (2)").await;
    api.accepted("/resume", json!({"tables": ["public.*"]})).await;
    api.state("public.b", "streaming").await;
    assert_equal(&api.db, "b").await;

    api.db.ch.query("ALTER TABLE a DELETE WHERE 1 SETTINGS mutations_sync = 2").await;
    assert_eq!(api.accepted("/resync", json!({"tables": ["public.a"]})).await["tables"], json!(["public.a"]));
    assert_equal(&api.db, "a").await;

    let rows = api.audited("walhouse.pause", 3).await;
    assert!(rows.iter().all(|row| row["acting_user_id"] == "ana@desk" && row["outcome"] == "success"), "{rows:?}");
    let targets: Vec<_> = rows.iter().map(|row| row["target_resource"].as_str().unwrap()).collect();
    assert_eq!(targets, ["worker data-sync", "pipeline", "public.b"]);
    assert_eq!(rows[1]["event_id"], paused["audit_event_id"]);
    assert_eq!(api.audited("walhouse.resume", 3).await.len() + api.audited("walhouse.resync", 1).await.len(), 4);
    // What fails after it was allowed is told twice.
    assert_eq!(api.post("/resync", OPERATOR, &json!({"tables": ["public.none"]})).await.status, 404);
    let rows = api.audited("walhouse.resync", 3).await;
    let outcomes: Vec<_> = rows.iter().map(|row| row["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["success", "success", "failure"]);
    api.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_in_the_documentation_do_what_they_say() {
    let api = Api::new("api_examples").await;
    api.db.pg.execute("CREATE TABLE sales_order (id int8 PRIMARY KEY)").await;
    api.db.pg.execute("INSERT INTO sales_order VALUES (1)").await;
    assert_equal(&api.db, "sales_order").await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("## The API\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let examples: Vec<&str> = section.lines().filter(|line| line.starts_with("curl ")).collect();
    assert!(examples.len() >= 10, "{examples:?}");
    for example in examples {
        let line = example.replace(":9464", &format!(":{}", api.daemon.port()));
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &line]).env("VIEWER", VIEWER).env("OPERATOR", OPERATOR);
        let output = tokio::task::block_in_place(|| shell.output()).unwrap();
        let said: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        assert!(output.status.success() && said.is_some(), "{example}: {output:?}");
        assert!(!example.contains("ana") || example.contains("dry_run") || said.unwrap()["asked_by"] == "ana");
    }
    assert_eq!(api.audited("walhouse.pause", 2).await[0]["acting_user_id"], "ana");
    api.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_shown_to_operators_and_sent_home() {
    let api = Api::new("api_dlq").await;
    let dead = format!("{}audit-log-dlq", prefix(&api.db));
    let ids: Vec<String> = (0..3).map(|_| uuid::Uuid::from_u128(rand::random()).to_string()).collect();
    for id in &ids {
        let login: Value = serde_json::from_str(LOGIN).unwrap();
        let body = json!({"metadata": {
            "eventId": id, "eventTimestamp": "2026-01-01T00:00:00Z", "eventType": "SecurityEventOccurred",
            "eventVersion": "1.0", "correlationId": "c", "sourceService": "shop"
        }, "payload": login});
        api.sqs.send_with(&dead, &body.to_string(), &[("deadLetterReason", "a full moon")], None).await;
    }
    let listed = api.get("/dlq/audit-log?limit=2", VIEWER).await.body;
    let letters = listed["queues"][0]["letters"].as_array().unwrap();
    assert_eq!((&listed["queues"][0]["count"], letters.len()), (&json!(3), 2));
    assert!(letters.iter().all(|letter| letter["reason"] == "a full moon"), "{listed}");
    assert_eq!(api.get("/dlq/none", VIEWER).await.status, 404);
    assert_eq!(api.get("/dlq/audit-log?limit=many", VIEWER).await.status, 400);
    let shown = api.get(&format!("/dlq/audit-log/{}", ids[0]), OPERATOR).await;
    assert_eq!((shown.status, &shown.body["body"]["metadata"]["eventId"]), (200, &json!(ids[0])));
    assert_eq!(api.audited("walhouse.dlq.show", 1).await[0]["outcome"], "success");

    let dry = api.post("/dlq/audit-log/redrive", OPERATOR, &json!({"dry_run": true})).await;
    assert_eq!((dry.status, &dry.body["letters"]), (200, &json!(3)), "{}", dry.body);
    let filter = json!({"filter": {"event_id": ids[1]}, "rate": 100});
    api.accepted("/dlq/audit-log/redrive", filter).await;
    let came = async |id: &str| {
        let sql = format!("SELECT count() FROM audit_log FINAL WHERE event_id = '{id}'");
        eventually(SOON, async || {
            let count = api.db.ch.try_query(&sql).await?;
            if count == "1" { Ok(()) } else { Err(format!("{id}: {count}")) }
        })
        .await;
    };
    came(&ids[1]).await;
    eventually(SOON, async || {
        let answer = api.post("/dlq/audit-log/redrive", OPERATOR, &json!({"filter": {"reason": "moon"}})).await;
        if answer.status == 202 { Ok(()) } else { Err(answer.body.to_string()) }
    })
    .await;
    came(&ids[0]).await;
    came(&ids[2]).await;
    api.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_request_is_said_and_nothing_is_done() {
    let api = Api::new("api_bad").await;
    for (path, body, part) in [
        ("/pause", json!({"table": ["public.a"]}), "unknown field `table`"),
        ("/pause", json!({"workers": ["audits"]}), "data-sync"),
        ("/pause", json!({"reason": "two\nlines"}), "one line"),
        ("/resync", json!({}), "missing field `tables`"),
        ("/resync", json!({"tables": []}), "name at least one"),
        ("/resync", json!({"tables": ["a"]}), "public."),
        ("/dlq/audit-log/redrive", json!({"rate": 0}), "1 to 1000"),
    ] {
        let answer = api.post(path, OPERATOR, &body).await;
        assert!(answer.status == 400 && error(&answer).contains(part), "{path} {body}: {}", answer.body);
    }
    let operator = bearer(OPERATOR);
    let answer = api.ask("POST", "/pause", &operator, "{}").await;
    assert!(answer.status == 415 && error(&answer).contains("Content-Type: application/json"), "{}", answer.body);
    let form = format!("{operator}Content-Type: text/plain\r\n");
    assert_eq!(api.ask("POST", "/pause", &form, "{}").await.status, 415);
    let json = format!("{operator}Content-Type: application/json; charset=utf-8\r\n");
    let long = format!("{{\"reason\": \"{}\"}}", "x".repeat(70_000));
    let answer = api.ask("POST", "/pause", &json, &long).await;
    assert!(answer.status == 413 && error(&answer).contains("65536"), "{}", answer.body);
    let deep = format!("{{\"reason\": {}1{}}}", "[".repeat(20_000), "]".repeat(20_000));
    assert_eq!(api.ask("POST", "/pause", &json, &deep).await.status, 400);
    assert_eq!(api.ask("POST", "/pause", &json, "{\"reason\": ").await.status, 400);
    let actor = format!("{json}X-Walhouse-Actor: {}\r\n", "x".repeat(129));
    let answer = api.ask("POST", "/pause", &actor, "{}").await;
    assert!(answer.status == 400 && error(&answer).contains("x-walhouse-actor"), "{}", answer.body);
    let answer = api.ask("GET", "/pause", &operator, "").await;
    assert!(answer.status == 405 && error(&answer).contains("takes POST"), "{}", answer.body);
    for table in ["_pauses", "_requests", "audit_log"] {
        assert_eq!(api.db.ch.query(&format!("SELECT count() FROM {table}")).await, "0", "{table}");
    }
    api.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_that_the_audit_log_can_not_be_told_of() {
    let api = Api::new("api_unseen").await;
    let queue = format!("{}audit-log-queue", prefix(&api.db));
    let url = api.sqs.url(&queue).await;
    api.sqs.client().delete_queue().queue_url(url).send().await.unwrap();
    let answer = api.post("/pause", OPERATOR, &json!({})).await;
    assert!(
        answer.status == 503 && error(&answer).starts_with("nothing was done, since the audit log"),
        "{}",
        answer.body
    );
    assert!(answer.head.contains("retry-after: "), "{}", answer.head);
    assert_eq!(api.db.ch.query("SELECT count() FROM _pauses").await, "0");
    api.db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_this_machine_may_look_and_nobody_may_act() {
    let db = TestDb::new("api_open").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let look = async |headers: &str| send(daemon.port(), "GET", "/api/v1/status", headers, "").await;
    assert_eq!(look("").await.status, 200);
    assert_eq!(look("Host: 127.0.0.1:1234\r\n").await.status, 200);
    let foreign = look("Host: rebound.example\r\n").await;
    assert!(foreign.status == 403 && error(&foreign).contains("Host"), "{}", foreign.body);
    let json = "Content-Type: application/json\r\n";
    let answer = send(daemon.port(), "POST", "/api/v1/pause", json, "{}").await;
    assert!(answer.status == 403 && error(&answer).contains("set it, or http.operator_token_file"), "{}", answer.body);
    // There is no queue: the log has it.
    daemon.wait_log("walhouse.pause", 1).await;
    // Without [queue] there are no queues, and no tables that it has not.
    let queues = send(daemon.port(), "GET", "/api/v1/queues", "", "").await;
    assert_eq!((queues.status, &queues.body["queues"]), (200, &json!([])));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_an_address_that_others_reach_nothing_is_open_without_a_token() {
    let db = TestDb::new("api_reached").await;
    let port = crate::support::free_port();
    let daemon = Daemon::spawn(&db, &format!("[http]\nlisten = \"0.0.0.0:{port}\"\n"));
    eventually(SOON, async || {
        if crate::support::get(port, "/healthz").await?.status == 200 { Ok(()) } else { Err("not up".to_owned()) }
    })
    .await;
    let answer = send(port, "GET", "/api/v1/status", "", "").await;
    assert!(answer.status == 403 && error(&answer).contains("http.viewer_token"), "{}", answer.body);
    assert_eq!(crate::support::get(port, "/metrics").await.unwrap().status, 200);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_are_sent_away_and_metrics_do_not_wait_for_them() {
    let api = Api::new("api_rate").await;
    let port = api.daemon.port();
    let stop = tokio_util::sync::CancellationToken::new();
    let hammers: Vec<_> = (0..8)
        .map(|hammer| {
            let stop = stop.clone();
            let headers = bearer(if hammer % 2 == 0 { VIEWER } else { "a-wrong-token-of-nobody" });
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !stop.is_cancelled() {
                    let answer = send(port, "GET", "/api/v1/status", &headers, "").await;
                    assert!(answer.status != 429 || answer.head.contains("retry-after: "), "{}", answer.head);
                    seen.push(answer.status);
                }
                seen
            })
        })
        .collect();
    // Others build on this machine: a round that is slow is none of the daemon's.
    eventually(SOON, async || {
        let mut times = Vec::new();
        for _ in 0..21 {
            let begun = Instant::now();
            assert_eq!(api.daemon.get("/metrics").await?.status, 200);
            times.push(begun.elapsed());
        }
        times.sort();
        if times[10] < Duration::from_millis(50) { Ok(()) } else { Err(format!("{times:?}")) }
    })
    .await;
    // Whoever guesses uses up nobody else's share.
    let operator = api.get("/status", OPERATOR).await.status;
    stop.cancel();
    let mut seen = Vec::new();
    for hammer in hammers {
        seen.extend(hammer.await.unwrap());
    }
    assert_eq!(operator, 200);
    let count = |status| seen.iter().filter(|one| **one == status).count();
    assert!(count(200) > 0 && count(401) > 0 && count(429) > 0, "{} {} {}", count(200), count(401), count(429));
    assert_eq!(count(200) + count(401) + count(429), seen.len(), "{seen:?}");
    api.db.cleanup().await;
}
