//! Canaries: secrets that are like no other text, and values of rows that are, while walhouse does all that it does and
//! much of it fails; then they are looked for in everything that it has ever said to anybody.
//!
//! Rows belong into ClickHouse's tables, into SQS by rule, into reports and into dead letters. Secrets belong nowhere.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Findings;
use crate::queue::{OUTBOX, prefix};
use crate::reports::ask;
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Pg, Postgres, PostgresOptions, Proxy, Sqs, TestDb, eventually, exchange,
    free_port, settled, stopped, user, write_config,
};
use crate::traces::Collector;

const POSTGRES: &str = "c4nary-of-postgres";
const CLICKHOUSE: &str = "c4nary-of-clickhouse";
const VIEWER: &str = "c4nary-of-the-viewer";
const OPERATOR: &str = "c4nary-of-the-operator";
const SALT: &str = "c4nary-of-the-salt-of-hashes";
const AWS: &str = "c4nary-of-aws";
const SESSION: &str = "c4nary-of-a-session";
const TRACES: &str = "c4nary-of-traces";
/// In every value of every row and event, as text and as a number.
const ROW: &str = "r0wcanary";
/// In every key, which `verify` may name.
const KEY: &str = "k3ycanary";
/// In what reports are asked for. ClickHouse itself writes it into the text of a statement that has parameters.
const ASKED: &str = "p4rameter";
const NUMBER: &str = "777000777";
const SOON: Duration = Duration::from_secs(90);
const READY: &str = "events that are written into the outbox table are sent from now on";

const TABLES: &str = "
    CREATE TABLE person (id text PRIMARY KEY, email text, phone text, notes text, amount numeric(20, 4), day date, big text, doc jsonb);
    ALTER TABLE person ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE narrow (id int8 PRIMARY KEY, amount numeric, v text);
    CREATE TABLE refused (id int8 PRIMARY KEY, v text);
    CREATE TABLE shown (id int8 PRIMARY KEY, v text);
    CREATE TABLE keyless (v text, n int8); ALTER TABLE keyless REPLICA IDENTITY FULL;";

/// Every secret that there is, also in the forms that go over a wire.
fn secrets() -> Vec<String> {
    let mut all: Vec<String> =
        [POSTGRES, CLICKHOUSE, VIEWER, OPERATOR, SALT, AWS, SESSION, TRACES].map(str::to_owned).to_vec();
    // What HMAC makes of a salt, from which anybody makes the salt.
    for pad in [0x36, 0x5c] {
        all.push(SALT.bytes().map(|byte| format!("{:02x}", byte ^ pad)).collect());
    }
    all
}

fn rows() -> Vec<String> {
    [ROW, NUMBER].map(str::to_owned).to_vec()
}

/// Whether this is only ever about a row: masked and excluded, it may not even be in ClickHouse.
fn hidden() -> Vec<String> {
    vec![format!("{ROW}-hidden")]
}

struct House {
    db: TestDb,
    sqs: Arc<Sqs>,
    queues: Proxy,
    collector: Collector,
    role: String,
}

impl House {
    async fn new() -> Self {
        let postgres = Postgres::private(PostgresOptions {
            hba: vec!["host all canary 127.0.0.1/32 scram-sha-256".to_owned()],
            settings: vec![("log_statement", "all".to_owned())],
            ..Default::default()
        });
        let clickhouse = ClickHouse::private(ClickHouseOptions {
            users: user("walhouse", CLICKHOUSE, &["GRANT ALL ON *.*"]),
            settings: "<query_log><database>system</database><table>query_log</table>
                <flush_interval_milliseconds>500</flush_interval_milliseconds></query_log>"
                .to_owned(),
            ..ClickHouseOptions::default()
        });
        let db = TestDb::on(postgres, clickhouse, "canaries").await;
        let role = "canary".to_owned();
        db.pg
            .execute(&format!(
                "CREATE ROLE {role} SUPERUSER REPLICATION LOGIN PASSWORD '{POSTGRES}'; {OUTBOX}; {TABLES}"
            ))
            .await;
        let sqs = Sqs::private();
        let queues = Proxy::to(sqs.port()).await;
        Self { db, sqs, queues, collector: Collector::start().await, role }
    }

    fn config(&self) -> String {
        let directory = self.db.directory.display();
        fs::write(self.db.directory.join("operator"), format!("{OPERATOR}\n")).expect("a file");
        fs::write(self.db.directory.join("salt"), SALT).expect("a file");
        let url = self.db.pg.url_as(&format!("{}:{POSTGRES}", self.role));
        format!(
            "[source]\nurl = \"{url}\"\n[clickhouse]\nuser = \"walhouse\"\npassword = \"{CLICKHOUSE}\"\n{}
            [http]\nviewer_token = \"{VIEWER}\"\noperator_token_file = \"{directory}/operator\"\n
            [masking]\nsalt_file = \"{directory}/salt\"\n[log]\nlevel = \"trace\"\n{}
            [workers.audit]\nretry_delay = \"100ms\"\n[workers.operation]\nretry_delay = \"1s\"\n
            [tables.\"public.person\"]\npublish = true\nmask = {{ email = \"hash\", phone = \"null\" }}\nexclude_columns = [\"notes\"]\n
            [tables.\"public.narrow\"]\ncolumn_types = {{ amount = \"Decimal(9, 2)\" }}\n
            [reports.echo]\nsql = \"SELECT {{merchant:String}} AS merchant, {{text:String}} AS text\"\nparameters = {{ text = \"String\" }}\n
            [reports.fails]\nsql = \"SELECT throwIf({{merchant:String}} != '', {{text:String}}) AS text\"\nparameters = {{ text = \"String\" }}\n",
            Sqs::handled(self.queues.port(), &prefix(&self.db)),
            self.collector.config(1.0),
        )
    }

    fn environment(&self, format: &str) -> Vec<(String, String)> {
        let all = [
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", AWS),
            ("AWS_SESSION_TOKEN", SESSION),
            ("OTEL_EXPORTER_OTLP_HEADERS", &format!("x-api-key={TRACES}")),
            ("WALHOUSE__LOG__FORMAT", format),
            ("RUST_BACKTRACE", "1"),
        ];
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    async fn get(&self, daemon: &Daemon, path: &str, token: &str) -> String {
        let head = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
        let (status, head, body) = exchange(daemon.port(), &head, "").await.expect("an answer");
        format!("{status} {head} {body}")
    }

    async fn post(&self, daemon: &Daemon, path: &str, body: &str) -> String {
        let head = format!(
            "POST {path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {OPERATOR}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let (status, head, body) = exchange(daemon.port(), &head, body).await.expect("an answer");
        format!("{status} {head} {body}")
    }
}

/// Rows of every kind, each with canaries, changed in every way.
async fn change(pg: &Pg, round: u32) {
    let hidden = format!("{ROW}-hidden");
    let n = round * 1000;
    pg.execute(&format!(
        "INSERT INTO person SELECT '{KEY} ' || i, '{hidden}', '{hidden}', '{hidden}', {NUMBER}.5, '2024-01-01', repeat('{ROW}', 900),
            '{{\"{ROW}\": {NUMBER}}}' FROM generate_series({n}, {n} + 50) i;
        UPDATE person SET amount = amount + 1; UPDATE person SET id = id || '!' WHERE id LIKE '%7';
        DELETE FROM person WHERE id LIKE '%5';
        INSERT INTO shown SELECT i, '{ROW}' FROM generate_series({n}, {n} + 20) i; UPDATE shown SET v = v || '{NUMBER}';
        INSERT INTO keyless SELECT '{ROW}', {NUMBER} FROM generate_series(1, 5); DELETE FROM keyless WHERE ctid = (SELECT max(ctid) FROM keyless)"
    ))
    .await;
}

/// What PostgreSQL, ClickHouse, the queues and the workers refuse, each with canaries in it.
async fn provoke(house: &House, daemon: &Daemon) {
    let (db, sqs) = (&house.db, &house.sqs);
    // Rows that do not fit; such as ClickHouse refuses; an array that is none; a change of shape that can not be followed.
    db.ch.query("ALTER TABLE refused ADD CONSTRAINT short CHECK length(v) < 20").await;
    db.pg
        .execute(&format!(
            "INSERT INTO person VALUES ('{KEY} endless', '{ROW}-hidden', NULL, NULL, 1, 'infinity', NULL, NULL);
             INSERT INTO narrow VALUES (1, {NUMBER}777000777, '{ROW}'), (2, 'NaN', '{ROW}');
             INSERT INTO refused SELECT i, repeat('{ROW}', 1 + i % 2 * 5) FROM generate_series(1, 10) i;
             ALTER TABLE shown ALTER v TYPE varchar(100); ALTER TABLE shown ADD COLUMN w int8[];
             INSERT INTO shown VALUES (-1, '{ROW}', ARRAY[[{NUMBER}], [1]]);
             ALTER TABLE narrow ALTER amount TYPE text"
        ))
        .await;
    // Messages that anybody may write.
    for (name, text) in [
        ("walhouse.ddl", format!("{{\"{ROW}\": ")),
        ("walhouse.outbox", format!("{{\"eventType\": \"SecurityEventOccurred\", \"payload\": {{\"{ROW}\": ")),
        ("walhouse.outbox", format!("{{\"eventType\": 1, \"payload\": \"{ROW}\"}}")),
        ("walhouse.outbox", format!("\"{ROW}\"")),
    ] {
        db.pg.execute(&format!("SELECT pg_logical_emit_message(true, '{name}', '{text}')")).await;
    }
    // Events: good ones, and those that fit no schema.
    let payload = format!(
        r#"{{"eventType": "login", "actingUserId": "{ROW}", "outcome": "success", "details": {{"{ROW}": {NUMBER}}}}}"#
    );
    let refused = payload.replace("login", "refused");
    db.ch.query("ALTER TABLE audit_log ADD CONSTRAINT nobody CHECK throwIf(event_type = 'refused', 'no') = 0").await;
    for (event, payload) in [
        ("SecurityEventOccurred", payload.as_str()),
        ("SecurityEventOccurred", refused.as_str()),
        ("SecurityEventOccurred", &format!(r#"{{"eventType": "{ROW}", "outcome": "{ROW}"}}"#)),
        ("AsynchronousOperationRequested", &format!(r#"{{"userId": "{ROW}"}}"#)),
        ("AsynchronousOperationRequested", &format!(r#"["{ROW}"]"#)),
    ] {
        db.pg.execute(&format!("INSERT INTO outbox_event (event_type, payload) VALUES ('{event}', '{payload}')")).await;
    }
    for (operation, parameters) in [
        ("reportGeneration", json!({"report": "echo", "text": ASKED})),
        ("reportGeneration", json!({"report": "fails", "text": ASKED})),
        ("reportGeneration", json!({"report": "echo", "text": ASKED, "format": format!("{ASKED}.xlsx")})),
        ("dataExport", json!({"report": "echo", "text": {"deep": ASKED}})),
    ] {
        ask(db, operation, "1", parameters).await;
    }
    for queue in ["audit-log-queue", "async-operations-queue", "data-sync-queue"] {
        let queue = format!("{}{queue}", prefix(db));
        for body in [ROW.to_owned(), format!("{{\"metadata\": {{}}, \"payload\": \"{ROW}\"}}"), payload.clone()] {
            sqs.send(&queue, &body).await;
        }
    }
    // One worker away for a while, and ClickHouse too.
    house.queues.cut_after("AmazonSQS.SendMessageBatch");
    db.pg
        .execute(&format!(
            "INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{payload}')"
        ))
        .await;
    house.queues.is_cut().await;
    house.queues.mend();
    db.clickhouse.freeze();
    db.pg.execute(&format!("INSERT INTO shown VALUES (-2, '{ROW}'), (-3, '{ROW}')")).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    db.clickhouse.resume();
    // An operation on a table that stopped.
    let _ = house.post(daemon, "/api/v1/resync", "{\"tables\": [\"public.narrow\"]}").await;
    let _ = house.post(daemon, "/api/v1/resync", &format!("{{\"tables\": [\"{ROW}")).await;
}

/// Everything that answers.
async fn asked(house: &House, daemon: &Daemon, all: &mut Findings) {
    let document =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/api/openapi.json")).expect("a file");
    let document: serde_json::Value = serde_json::from_str(&document).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    let looks = paths.iter().filter(|(path, of)| of.get("get").is_some() && !path.ends_with("{event}"));
    let mut pages: Vec<String> =
        ["/", "/metrics", "/healthz", "/readyz", "/nothing", "/page/page.js"].map(str::to_owned).to_vec();
    for (path, _) in looks {
        for queue in ["audit-log", "async-operations", "data-sync"] {
            pages.push(format!("/api/v1{}", path.replace("{queue}", queue)));
        }
    }
    pages.sort();
    pages.dedup();
    for page in &pages {
        for token in [VIEWER, OPERATOR, "c4nary of nobody"] {
            all.add(&format!("GET {page}"), house.get(daemon, page, token).await);
            // Twenty in a second are answered.
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }
    for arguments in [
        vec!["status"],
        vec!["status", "--json"],
        vec!["check"],
        vec!["check", "--json"],
        vec!["config"],
        vec!["config", "--json"],
        vec!["verify", "--timeout", "20s"],
        vec!["verify", "--json", "--timeout", "20s"],
        vec!["health"],
        vec!["provision", "--dry-run", "--json"],
        vec!["dlq", "list"],
        vec!["dlq", "list", "--json"],
        vec!["dlq", "list", "--queue", "audit-log", "--json"],
        vec!["dlq", "list", "--queue", "data-sync"],
        vec!["dlq", "redrive", "--queue", "async-operations"],
        vec!["resync", "public.nothing"],
        vec!["pause", "--worker", "nobody"],
        vec!["replay", "--from-lsn", "0/1"],
    ] {
        command(house, daemon.config(), &arguments, all).await;
    }
}

/// A command in the daemon's environment.
async fn command(house: &House, config: &Path, arguments: &[&str], all: &mut Findings) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_walhouse"));
    command.arg("--config").arg(config).args(arguments).envs(house.environment("text"));
    let output = tokio::task::block_in_place(|| command.output()).expect("walhouse can be started");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    all.add(&format!("walhouse {}", arguments.join(" ")), said.join("\n"));
}

/// Credentials that are wrong, and servers that can not be trusted or are not there: what is said of them quotes neither.
async fn refused(house: &House, all: &mut Findings) {
    let right = house.config();
    for (place, wrong) in [
        ("a wrong password", right.replace(POSTGRES, &format!("{POSTGRES}x"))),
        ("a wrong password of ClickHouse", right.replace(CLICKHOUSE, &format!("{CLICKHOUSE}x"))),
        ("a port where nobody is", right.replace(&format!(":{}/", house.db.postgres.port()), ":1/")),
        ("no TLS there", right.replace("\"\n[clickhouse]", "?sslmode=verify-full\"\n[clickhouse]")),
        ("a URL that is none", right.replace("@127.0.0.1", "@@127.0.0.1")),
        ("a parameter that is none", right.replace("\"\n[clickhouse]", "?nonsense=c4nary-of-postgres\"\n[clickhouse]")),
        ("TOML that is none", right.replace(&format!("\"{CLICKHOUSE}\""), &format!("\"{CLICKHOUSE}"))),
        ("a number for a password", right.replace(&format!("\"{VIEWER}\""), &format!("[\"{VIEWER}\"]"))),
        ("a token that is too short", right.replace(&format!("\"{VIEWER}\""), "\"c4nary\"")),
        ("two secrets", right.replace("[masking]\n", &format!("[masking]\nsalt = \"{SALT}\"\n"))),
        ("a key of another section", right.replace("[masking]\n", &format!("[masking]\npassword = \"{SALT}\"\n"))),
    ] {
        let config = write_config(&house.db, &wrong, free_port(), "wrong.toml");
        for arguments in [["check"].as_slice(), &["status", "--json"], &["config"], &["verify", "--json"]] {
            let mut said = Findings::default();
            command(house, &config, arguments, &mut said).await;
            said.said.into_values().for_each(|text| all.add(&format!("{place}: {}", arguments[0]), text));
        }
    }
}

/// What ClickHouse keeps of statements, by column; a canary is in the texts of no statement of walhouse's.
async fn remembered(house: &House, all: &mut Findings) {
    let ch = &house.db.ch;
    ch.query("SYSTEM FLUSH LOGS").await;
    let columns = ch.query("SELECT groupArray(name) FROM system.columns WHERE database = 'system' AND table = 'query_log' AND name LIKE '%quer%'").await;
    assert!(columns.contains("'query'"), "{columns}");
    let own = "user = 'walhouse'";
    let count: u64 =
        ch.query(&format!("SELECT count() FROM system.query_log WHERE {own}")).await.parse().expect("a number");
    assert!(count > 100, "{count} statements");
    let kept = format!(
        "SELECT * EXCEPT (ProfileEvents, exception) FROM system.query_log WHERE {own} ORDER BY event_time_microseconds FORMAT JSONEachRow"
    );
    all.add("system.query_log", ch.query(&kept).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_value_of_a_row_is_in_anything_that_is_said() {
    let house = House::new().await;
    let (db, mut all) = (&house.db, Findings::default());
    change(&db.pg, 1).await;
    let mut daemon = Daemon::spawn(db, &house.config());
    daemon.kill9();
    daemon.set_environment(house.environment("text"));
    daemon.start();
    daemon.wait_ready().await;
    daemon.wait_log(READY, 1).await;
    change(&db.pg, 2).await;
    // A value that the stream leaves out, of which ClickHouse knows nothing either.
    settled(db).await;
    db.ch.query(&format!("DELETE FROM person WHERE id LIKE '%{KEY}%3'")).await;
    db.pg.execute("UPDATE person SET amount = amount + 2 WHERE id LIKE '%3'").await;
    provoke(&house, &daemon).await;
    settled(db).await;
    // Every kind has come to its end.
    eventually(SOON, async || {
        let letters = |name: &str| format!("{}{name}-dlq", prefix(db));
        let (audit, operations) =
            (house.sqs.count(&letters("audit-log")).await, house.sqs.count(&letters("async-operations")).await);
        if audit >= 5 && operations >= 5 { Ok(()) } else { Err(format!("{audit} and {operations} letters")) }
    })
    .await;
    eprintln!("stopped: {:?}", stopped(db).await);
    db.ch.query("INSERT INTO shown SELECT * REPLACE (_version + 1 AS _version, concat(v, '?') AS v) FROM shown FINAL WHERE id = -2").await;
    asked(&house, &daemon, &mut all).await;
    refused(&house, &mut all).await;
    // Once more from the beginning of its life, in JSON.
    daemon.kill9();
    daemon.set_environment(house.environment("json"));
    daemon.start();
    daemon.wait_ready().await;
    change(&db.pg, 3).await;
    settled(db).await;
    assert!(daemon.sigterm(Duration::from_secs(20)).await.success(), "{}", daemon.log());

    remembered(&house, &mut all).await;
    all.add("the log", daemon.log());
    all.add("traces", house.collector.everything());
    for queue in house.sqs.queues(&prefix(db)).await {
        for letter in house.sqs.drain(&queue, usize::MAX, Duration::from_millis(300)).await {
            all.add("attributes of messages", format!("{:?}\n", letter.attributes));
        }
    }
    assert!(all.said["the log"].contains("TRACE") || all.said["the log"].contains("DEBUG"), "a log of everything");
    assert!(house.collector.heads().contains(TRACES), "the collector was sent its key");
    let mut found = all.of(&secrets());
    found.extend(all.of(&rows()));
    // It asks for the rows that differ by their keys.
    all.said.retain(|place, _| !place.starts_with("walhouse verify") && place != "system.query_log");
    found.extend(all.of(&[KEY.to_owned()]));
    found.extend(all.of(&[ASKED.to_owned()]));
    let log = fs::read_to_string(db.postgres.directory().with_extension("log")).expect("PostgreSQL's log");
    assert!(log.contains("walhouse.mask_inner"), "statements are in PostgreSQL's log");
    let mut postgres = Findings::default();
    postgres.add("PostgreSQL's log", log.replace(&format!("PASSWORD '{POSTGRES}'"), ""));
    found.extend(postgres.of(&secrets()));
    let mut stored = Findings::default();
    for table in ["person", "_dead_letters"] {
        stored.add(table, db.ch.query(&format!("SELECT * FROM {table} FORMAT JSONEachRow")).await);
    }
    found.extend(stored.of(&hidden()));
    assert!(found.is_empty(), "{}", found.join("\n\n"));
    drop(daemon);
    house.db.cleanup().await;
}
