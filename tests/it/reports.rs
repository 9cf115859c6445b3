//! Reports and exports: what somebody asked for in a transaction becomes an object, whole, once, and of their own rows alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::queue::{prefix, with_outbox};
use crate::support::{Ch, Daemon, Sqs, TestDb, eventually, get, put, settled};

/// The demo's own tables, without their rows.
const SHOP: &str = include_str!("../../docker/demo/shop.sql");

/// Two merchants, of which each has its own customers, products and orders.
pub(crate) const ROWS: &str = "
    INSERT INTO customer (id, merchant_account_id, email, name, region)
    SELECT md5('c' || c)::uuid, 1 + c % 2, 'c', 'c', CASE WHEN c % 3 > 0 THEN 'north' END FROM generate_series(0, 21) c;
    INSERT INTO product (id, merchant_account_id, sku, name, description, price)
    SELECT p, 1 + p % 2, 'P-' || p, E'A \"product\",\\n' || p, 'd', p FROM generate_series(0, 23) p;
    INSERT INTO order_item (sales_order_id, line_number, merchant_account_id, product_sku, quantity, unit_price)
    SELECT o, line, 1 + o % 2, CASE WHEN o = 31 THEN 'gone' ELSE 'P-' || o % 2 + 2 * ((o + line) % 10) END, line, o + line * 0.25
    FROM generate_series(1, 200) o, generate_series(1, 1 + o % 3) line;
    INSERT INTO sales_order (id, merchant_account_id, customer_id, status, channel, total_amount, placed_at, shipped_on)
    SELECT o, 1 + o % 2, md5('c' || o % 2 + 2 * (o % 10))::uuid, (enum_range(NULL::order_status))[1 + o % 6],
        (ARRAY['web', 'app', 'store'])[1 + o % 3],
        CASE WHEN o % 17 > 0 THEN (SELECT sum(quantity * unit_price) FROM order_item WHERE sales_order_id = o) END,
        timestamptz '2026-01-01 10:00+00' + o * interval '7 hours', CASE WHEN o % 6 >= 3 THEN date '2026-03-01' END
    FROM generate_series(1, 200) o;";

/// What happens to them while they are replicated.
const CHANGES: &str = "
    UPDATE sales_order SET status = 'delivered', total_amount = total_amount + 0.5 WHERE id % 5 = 0;
    DELETE FROM order_item WHERE sales_order_id % 7 = 0;
    DELETE FROM sales_order WHERE id % 7 = 0;
    UPDATE product SET sku = sku || '-new' WHERE id = 3;
    DELETE FROM customer WHERE id = md5('c3')::uuid;";

const SLOW: &str = "[reports.slow]
sql = \"SELECT number AS n, repeat('x', 90) AS x, sleepEachRow(0.00004) AS s FROM numbers({rows:UInt64}) WHERE {merchant:String} != ''\"
parameters = { rows = \"UInt64\" }
[reports.echo]
sql = \"SELECT {merchant:String} AS merchant, {text:String} AS text\"
parameters = { text = \"String\" }
[reports.by_channel]
sql = \"SELECT merchant_account_id, order_key FROM fact_orders WHERE merchant_account_id = {merchant:String} AND channel = {channel:String}\"
parameters = { channel = \"String\" }
";

/// The demo's tables alone.
pub(crate) fn schema() -> &'static str {
    let (from, to) = (SHOP.find("CREATE TYPE").unwrap(), SHOP.find("INSERT INTO").unwrap());
    SHOP[from..to].trim().trim_end_matches(';')
}

async fn shop(label: &str) -> TestDb {
    let db = with_outbox(label).await;
    db.pg.execute(schema()).await;
    db.pg.execute(ROWS).await;
    db
}

fn objects(db: &TestDb) -> PathBuf {
    db.directory.join("objects")
}

fn config(db: &TestDb, extra: &str) -> String {
    let objects = objects(db).display().to_string();
    format!(
        "{}[objects]\nurl = \"file://{objects}\"\n[warehouse]\nenabled = true\n{SLOW}{extra}",
        Sqs::handled(Sqs::shared().port(), &prefix(db))
    )
}

async fn running(db: &TestDb, extra: &str) -> Daemon {
    let mut daemon = Daemon::spawn(db, &config(db, extra));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    daemon
}

/// Asks as an application does, and returns the event's id.
pub(crate) async fn ask(db: &TestDb, operation: &str, merchant: &str, parameters: Value) -> String {
    let payload = json!({
        "operationType": operation, "userId": "u1", "merchantAccountId": merchant, "parameters": parameters
    });
    let payload = payload.to_string().replace('\'', "''");
    db.pg
        .value(&format!(
            "INSERT INTO outbox_event (event_type, payload) VALUES ('AsynchronousOperationRequested', '{payload}') RETURNING id"
        ))
        .await
}

/// The row of `async_operations`, as soon as `is` holds for it.
async fn operation(ch: &Ch, id: &str, is: impl Fn(&Value) -> bool) -> Value {
    let sql = format!("SELECT * FROM async_operations FINAL WHERE event_id = '{id}' FORMAT JSONEachRow");
    eventually(Duration::from_secs(120), async || {
        let row = ch.try_query(&sql).await?;
        let row: Value = serde_json::from_str(&row).map_err(|_| format!("{id} is not there: {row}"))?;
        if is(&row) { Ok(row) } else { Err(row.to_string()) }
    })
    .await
}

pub(crate) async fn ended(ch: &Ch, id: &str) -> Value {
    operation(ch, id, |row| ["succeeded", "failed"].iter().any(|end| row["status"] == *end)).await
}

fn path_of(row: &Value) -> PathBuf {
    let location = row["location"].as_str().expect("a location");
    PathBuf::from(location.strip_prefix("file://").unwrap_or_else(|| panic!("{row}")))
}

/// Every file below a directory.
fn files(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let below = entries.flatten().flat_map(|entry| match entry.path() {
        path if path.is_dir() => files(&path),
        path => vec![path.display().to_string()],
    });
    below.collect()
}

/// A report, its columns as ClickHouse reads them back, and the same asked of PostgreSQL.
const REPORTS: [(&str, &str, &str); 5] = [
    (
        "sales_by_day_and_channel",
        "day Date, channel String, currency String, orders UInt64, amount Decimal(38, 2)",
        "SELECT (placed_at AT TIME ZONE 'UTC')::date, channel, currency, count(*), sum(coalesce(total_amount, 0.00))
         FROM ordered WHERE status <> 'draft' GROUP BY 1, 2, 3",
    ),
    (
        "best_customers",
        "customer_id UUID, region String, currency String, orders UInt64, amount Decimal(38, 2), last_order_at DateTime64(6, 'UTC')",
        "SELECT customer_id, coalesce((SELECT region FROM customer c WHERE c.id = customer_id), ''), currency, count(*),
            sum(coalesce(total_amount, 0.00)), to_char(max(placed_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')
         FROM ordered WHERE status NOT IN ('draft', 'returned') GROUP BY 1, 3",
    ),
    (
        "product_performance",
        "sku String, name String, orders UInt64, pieces Int64, amount Decimal(38, 2)",
        "SELECT coalesce(p.sku, s.product_sku), replace(coalesce(p.name, ''), E'\\n', '\\n'), coalesce(s.orders, 0), coalesce(s.pieces, 0), coalesce(s.amount, 0.00)
         FROM (SELECT * FROM product WHERE merchant_account_id = 1) p
         FULL JOIN (SELECT product_sku, count(DISTINCT id) AS orders, sum(quantity) AS pieces, sum(quantity * unit_price) AS amount
            FROM ordered JOIN order_item ON sales_order_id = id WHERE status NOT IN ('draft', 'returned') GROUP BY 1) s ON s.product_sku = p.sku",
    ),
    (
        "order_funnel",
        "position UInt8, status String, orders UInt64, share Decimal(6, 4), amount Decimal(38, 2)",
        "SELECT step, (enum_range(NULL::order_status))[step], count(*) FILTER (WHERE reached >= step),
            round(count(*) FILTER (WHERE reached >= step)::numeric / count(*), 4), coalesce(sum(total) FILTER (WHERE reached >= step), 0.00)
         FROM (SELECT least(array_position(enum_range(NULL::order_status), status), 5) AS reached, coalesce(total_amount, 0.00) AS total FROM ordered) o,
            generate_series(1, 5) step GROUP BY step",
    ),
    (
        "merchant_orders",
        "order_id Int64, customer_id UUID, status String, channel String, currency String, total_amount Decimal(38, 2), \
         placed_at DateTime64(6, 'UTC'), shipped_on Nullable(Date32)",
        "SELECT id, customer_id, status, channel, currency, coalesce(total_amount, 0.00),
            to_char(placed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), shipped_on FROM ordered",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_report_is_what_postgresql_says_in_every_format() {
    let db = shop("reports").await;
    let daemon = running(&db, "").await;
    db.pg.execute(CHANGES).await;
    settled(&db).await;
    daemon.wait_log("the star schema is there", 1).await;
    for (report, columns, expected) in REPORTS {
        let sql = format!(
            "WITH ordered AS (SELECT * FROM sales_order WHERE merchant_account_id = 1
             AND (placed_at AT TIME ZONE 'UTC')::date BETWEEN '2026-01-05' AND '2026-02-20') {expected}"
        );
        let rows = db.pg.query(&sql).await;
        let line = |row: &Vec<Option<String>>| {
            row.iter().map(|value| value.as_deref().unwrap_or("\\N")).collect::<Vec<_>>().join("\t")
        };
        let mut expected: Vec<String> = rows.iter().map(line).collect();
        expected.sort();
        assert!(expected.len() > 4, "{report}: {expected:?}");
        let operation = if report == "merchant_orders" { "dataExport" } else { "reportGeneration" };
        for (format, of_clickhouse) in [("csv", "CSVWithNames"), ("parquet", "Parquet"), ("jsonl", "JSONEachRow")] {
            let parameters = json!({"report": report, "format": format, "from": "2026-01-05", "to": "2026-02-20"});
            let id = ask(&db, operation, "1", parameters).await;
            let row = ended(&db.ch, &id).await;
            assert_eq!(row["status"], "succeeded", "{row}");
            let path = path_of(&row);
            assert!(path.ends_with(format!("1/{id}.{format}")), "{row}");
            let there = db
                .ch
                .query(&format!(
                    "SELECT * FROM file('{}', '{of_clickhouse}', $${columns}$$) FORMAT TSV SETTINGS date_time_input_format = 'best_effort'",
                    path.display()
                ))
                .await;
            let mut there: Vec<&str> = there.lines().collect();
            there.sort_unstable();
            assert_eq!(there, expected, "{report} as {format}");
            let size = fs::metadata(&path).unwrap().len();
            let told = |name: &str| row[name].to_string().replace('"', "");
            assert_eq!((told("rows"), told("bytes")), (expected.len().to_string(), size.to_string()), "{row}");
            assert_eq!((told("attempt"), told("report"), told("format")), ("1".into(), report.into(), format.into()));
        }
    }
    // Of each export the audit log has heard, and of nothing else.
    let exports = "SELECT acting_user_id, merchant_account_id, outcome, count() FROM audit_log FINAL WHERE event_type = 'data_export' AND \
        target_resource IN (SELECT location FROM async_operations FINAL) GROUP BY ALL";
    eventually(Duration::from_secs(20), async || match db.ch.query(exports).await.as_str() {
        "u1\t1\tsuccess\t3" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    assert_eq!(db.ch.query("SELECT count() FROM audit_log FINAL").await, "3");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_star_schema_waits_for_its_tables_and_takes_nobodys_name() {
    let db = TestDb::new("star").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "[warehouse]\nenabled = true\n");
    daemon.wait_ready().await;
    daemon.wait_log("the star schema waits for tables", 1).await;
    let views = "SELECT count() FROM system.tables WHERE database = currentDatabase() AND match(name, '^(dim|fact)_') AND engine = 'View'";
    assert_eq!(db.ch.query(views).await, "0", "in a database that has none of its tables nothing is made");
    db.pg.execute("CREATE TABLE fact_orders (id int PRIMARY KEY); INSERT INTO fact_orders VALUES (7)").await;
    eventually(Duration::from_secs(30), async || match db.ch.try_query("SELECT id FROM fact_orders").await?.as_str() {
        "7" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    db.pg.execute(schema()).await;
    daemon.wait_log("the star schema is not made: there is a table of that name", 1).await;
    assert_eq!(db.ch.query("SELECT id FROM fact_orders FINAL WHERE _is_deleted = 0").await, "7");
    // Without the one that is in its way it is made, and once more at each start.
    db.pg.execute("ALTER TABLE fact_orders RENAME TO something").await;
    drop(daemon);
    db.ch.query("DROP TABLE fact_orders SYNC").await;
    db.ch.query("DROP VIEW fact_orders_current SYNC").await;
    let mut daemon = Daemon::spawn(&db, "[source]\nexclude = [\"public.something\"]\n[warehouse]\nenabled = true\n");
    daemon.wait_log("the star schema is there", 1).await;
    daemon.kill9();
    daemon.start();
    daemon.wait_log("the star schema is there", 2).await;
    assert_eq!(db.ch.query(views).await, "5");
    assert_eq!(
        db.ch.query("SELECT count(), max(full_date), any(date_key) > 0 FROM dim_dates").await,
        "18263\t2049-12-31\t1"
    );
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_parameter_reaches_the_rows_of_another_merchant() {
    let db = shop("scope").await;
    let daemon = running(&db, "").await;
    daemon.wait_log("the star schema is there", 1).await;
    settled(&db).await;
    let report = "reportGeneration";
    // What would be another merchant, or a setting, is a parameter that no report has.
    for name in [
        "merchant",
        "merchantAccountId",
        "merchant_account_id",
        "param_merchant",
        "readonly",
        "channel&param_merchant",
        "' OR 1=1",
    ] {
        let mut parameters = json!({"report": "by_channel", "channel": "web"});
        parameters[name] = json!("2");
        let row = ended(&db.ch, &ask(&db, report, "1", parameters).await).await;
        assert_eq!(row["status"], "failed", "{row}");
        assert!(row["error"].as_str().unwrap().starts_with("by_channel takes no parameter"), "{row}");
    }
    // What would change the statement is a text that no channel is like.
    for channel in
        ["web' OR '1'='1", "web\\' OR 1=1 --", "' UNION ALL SELECT 1, 2 --", "{merchant:String}", "\t\n\\N", "2"]
    {
        let row =
            ended(&db.ch, &ask(&db, report, "1", json!({"report": "by_channel", "channel": channel})).await).await;
        assert_eq!(
            (&row["status"], row["rows"].to_string().replace('"', "").as_str()),
            (&json!("succeeded"), "0"),
            "{row}"
        );
    }
    for merchant in ["1' OR '1'='1", "1\\", "%", "../2", "..", "/2", "%2e%2e/2", "2/.", "1 OR 2", "\t1", "01", "0"] {
        let row =
            ended(&db.ch, &ask(&db, report, merchant, json!({"report": "by_channel", "channel": "web"})).await).await;
        assert_eq!(
            (&row["status"], row["rows"].to_string().replace('"', "").as_str()),
            (&json!("succeeded"), "0"),
            "{row}"
        );
        let path = path_of(&row).canonicalize().unwrap();
        assert!(
            path.starts_with(objects(&db).canonicalize().unwrap()) && !path.parent().unwrap().ends_with("2"),
            "{row}"
        );
    }
    // And what is bound arrives as it was written.
    let text = "it's \"{merchant:String}\" \\N \\' \t\n\r \u{142}\u{20AC} ?; -- /*";
    let merchant = "m'\\\"\t1";
    let row =
        ended(&db.ch, &ask(&db, report, merchant, json!({"report": "echo", "text": text, "format": "jsonl"})).await)
            .await;
    assert_eq!(row["status"], "succeeded", "{row}");
    let echo: Value = serde_json::from_str(&fs::read_to_string(path_of(&row)).unwrap()).unwrap();
    assert_eq!(echo, json!({"merchant": merchant, "text": text}));
    // The one that is asked for has rows.
    let row = ended(&db.ch, &ask(&db, report, "1", json!({"report": "by_channel", "channel": "web"})).await).await;
    let text = fs::read_to_string(path_of(&row)).unwrap();
    assert!(text.lines().skip(1).count() > 20 && text.lines().skip(1).all(|line| line.starts_with("\"1\",")), "{text}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_answered_is_a_dead_letter_and_has_failed_with_the_reason() {
    let (db, sqs) = (shop("refused").await, Sqs::shared());
    let limits = "[operation]\nmax_rows = 1000\nmax_time = \"2s\"\n[workers.operation]\nretry_delay = \"1s\"\n";
    let daemon = running(&db, limits).await;
    let (report, export) = ("reportGeneration", "dataExport");
    let cases = [
        (report, json!({"report": "no_such_report"}), "there is no report \"no_such_report\""),
        (export, json!({"report": "no_such_report"}), "there is no report \"no_such_report\""),
        (report, json!({"report": "merchant_orders"}), "operationType is dataExport"),
        (
            report,
            json!({"report": "best_customers", "limit": "canary"}),
            "parameters.limit: it takes a whole number (UInt32)",
        ),
        (report, json!({"report": "slow"}), "parameters.rows is missing"),
        (report, json!({"report": "best_customers", "format": "xlsx"}), "it takes csv, parquet or jsonl"),
        (report, json!({"report": "slow", "rows": 1001}), "is larger than 1000 rows or 4GiB"),
        (report, json!({"report": "slow", "rows": 10_000_000}), "TIMEOUT_EXCEEDED"),
    ];
    for (operation, parameters, reason) in &cases {
        let row = ended(&db.ch, &ask(&db, operation, "1", parameters.clone()).await).await;
        assert_eq!(row["status"], "failed", "{row}");
        assert!(row["error"].as_str().unwrap().contains(reason), "{reason}: {row}");
        let attempts = if *reason == "TIMEOUT_EXCEEDED" { "3" } else { "1" };
        assert_eq!(row["attempt"].to_string(), attempts, "{row}");
    }
    let dead = sqs.take(&format!("{}async-operations-dlq", prefix(&db)), cases.len()).await;
    for (_, _, reason) in &cases {
        assert!(dead.iter().any(|letter| letter.attributes["deadLetterReason"].contains(reason)), "{reason}: {dead:?}");
    }
    assert!(!daemon.log().contains("canary"), "{}", daemon.log());
    // An export that failed is for the audit log too.
    let audited = "SELECT merchant_account_id, outcome, JSONExtractString(details, 'report') FROM audit_log FINAL";
    eventually(Duration::from_secs(20), async || match db.ch.query(audited).await.as_str() {
        "1\tfailure\tno_such_report" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    assert_eq!(files(&objects(&db)), Vec::<String>::new());
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_outlives_a_kill_and_is_there_once_and_whole() {
    const ROWS: u64 = 655_360;
    let (db, sqs) = (shop("report_kill").await, Sqs::shared());
    let mut daemon = running(&db, "").await;
    let id = ask(&db, "reportGeneration", "1", json!({"report": "slow", "rows": ROWS, "format": "jsonl"})).await;
    let row =
        operation(&db.ch, &id, |row| row["status"] == "running" && row["rows"].to_string().replace('"', "") != "0")
            .await;
    assert_eq!(row["location"], "");
    daemon.kill9();
    let left = files(&objects(&db));
    assert!(left.iter().all(|file| file.contains('#')), "nothing is there under its own name: {left:?}");
    daemon.start();
    let row = ended(&db.ch, &id).await;
    let told = |name: &str| row[name].to_string().replace('"', "");
    assert_eq!((told("status"), told("rows"), told("attempt")), ("succeeded".into(), ROWS.to_string(), "2".into()));
    let path = path_of(&row);
    assert_eq!(files(&objects(&db)), [path.display().to_string()]);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!((text.lines().count() as u64, text.len().to_string()), (ROWS, told("bytes")));
    // What has succeeded is not done again, also by another process.
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    daemon.kill9();
    daemon.start();
    let event = json!({
        "metadata": {
            "eventId": id, "eventTimestamp": "2026-01-01T00:00:00.000001Z", "eventType": "AsynchronousOperationRequested",
            "eventVersion": "1.0", "correlationId": "c", "sourceService": "shop"
        },
        "payload": {
            "operationType": "reportGeneration", "userId": "u1", "merchantAccountId": "1",
            "parameters": {"report": "slow", "rows": ROWS, "format": "jsonl"}
        }
    });
    sqs.send(&format!("{}async-operations-queue", prefix(&db)), &event.to_string()).await;
    daemon.wait_log("a request has come again that was answered already", 1).await;
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
    assert_eq!(db.ch.query("SELECT attempt FROM async_operations FINAL").await, "2");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_report_gives_it_back() {
    const ROWS: u64 = 1_048_576;
    let db = shop("report_stop").await;
    let mut daemon = running(&db, "").await;
    let id = ask(&db, "reportGeneration", "1", json!({"report": "slow", "rows": ROWS})).await;
    operation(&db.ch, &id, |row| row["status"] == "running").await;
    let status = daemon.sigterm(Duration::from_secs(20)).await;
    assert!(status.success(), "{status}");
    assert!(daemon.log().contains("an event is given back, since walhouse stops"), "{}", daemon.log());
    assert_eq!(files(&objects(&db)), Vec::<String>::new(), "what was begun is taken back");
    let reading = format!(
        "SELECT count() FROM system.processes WHERE current_database = '{}' AND query LIKE '%sleepEachRow%' AND NOT query LIKE '%processes%'",
        db.name
    );
    eventually(Duration::from_secs(20), async || match db.ch.query(&reading).await.as_str() {
        "0" => Ok(()),
        _ => Err("ClickHouse goes on with a report that nobody reads".to_owned()),
    })
    .await;
    daemon.start();
    let row = ended(&db.ch, &id).await;
    assert_eq!((&row["status"], row["rows"].to_string().replace('"', "")), (&json!("succeeded"), ROWS.to_string()));
    assert_eq!(files(&objects(&db)), [path_of(&row).display().to_string()]);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_has_the_objects_under_its_prefix_small_or_in_parts() {
    let (db, sqs) = (shop("report_s3").await, Sqs::shared());
    let bucket = db.name.replace('_', "-");
    let answer = put(sqs.port(), &format!("/{bucket}"), "").await.expect("an S3");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let s3 = format!(
        "{}[objects]\nurl = \"s3://{bucket}/some/reports/\"\nendpoint_url = \"http://127.0.0.1:{}\"\nregion = \"eu-central-1\"\n{SLOW}",
        Sqs::handled(sqs.port(), &prefix(&db)),
        sqs.port()
    );
    let mut daemon = Daemon::spawn(&db, &s3);
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    for rows in [10, 130_000] {
        let id = ask(&db, "reportGeneration", "1", json!({"report": "slow", "rows": rows})).await;
        let row = ended(&db.ch, &id).await;
        assert_eq!(row["location"], format!("s3://{bucket}/some/reports/1/{id}.csv"), "{row}");
        let object = get(sqs.port(), &format!("/{bucket}/some/reports/1/{id}.csv")).await.expect("an object");
        assert_eq!((object.status, object.body.lines().count()), (200, rows + 1));
        assert_eq!(row["bytes"].to_string().replace('"', ""), object.body.len().to_string());
    }
    drop(daemon);
    db.cleanup().await;
}
