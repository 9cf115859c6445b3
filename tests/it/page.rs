//! The status page, in a real browser.

mod controls;
mod letters;
mod roles;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::queue::{LOGIN, prefix, with_outbox};
use crate::support::{Browser, ClickHouse, ClickHouseOptions, Daemon, Postgres, Sqs, TestDb, assert_equal};

/// The rules of WCAG 2.1 that a machine can look after, of both levels.
const RULES: &str = r#"["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]"#;

fn axe() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/browser/node_modules/axe-core/axe.min.js");
    fs::read_to_string(&path).expect("axe-core is there; tests/services/install installs it")
}

/// Finds nothing that somebody could not read or reach.
pub(crate) async fn assert_accessible(browser: &Browser, when: &str) {
    let found = browser
        .run(&format!(
            "if (!window.axe) {{ {} }}
            const result = await axe.run(document, {{ runOnly: {RULES} }});
            return result.violations.map((one) => [one.id, one.help, one.nodes.map((node) => node.html.slice(0, 200))])",
            axe()
        ))
        .await;
    assert_eq!(found, json!([]), "{when}");
}

/// Nothing is wider than the screen.
pub(crate) async fn assert_fits(browser: &Browser, when: &str) {
    let widths = browser.run("return [document.documentElement.scrollWidth, innerWidth]").await;
    let [Value::Number(page), Value::Number(screen)] = widths.as_array().unwrap().as_slice() else {
        panic!("{widths}")
    };
    assert!(page.as_f64() <= screen.as_f64(), "{when}: the page is {page} wide, the screen {screen}");
}

/// Each element that can be used is reached by Tab alone, and shows that it is.
async fn assert_keyboard(browser: &Browser) {
    let all = "[...document.querySelectorAll('a[href], button, input, summary, [tabindex=\"0\"]')]
        .filter((one) => one.checkVisibility() && !one.disabled)";
    let count =
        browser.run(&format!("document.activeElement.blur(); window.reached = new Set(); return {all}.length")).await;
    let count = count.as_u64().unwrap();
    assert!(count > 5, "{count}");
    for _ in 0..count + 3 {
        browser.tab().await;
        let outline = browser
            .run(
                "const own = document.activeElement; if (own === document.body) return 'none needed';
                window.reached.add(own); return getComputedStyle(own).outlineStyle",
            )
            .await;
        assert_ne!(outline, "none", "what has the focus shows it");
    }
    let missed =
        format!("return {all}.filter((one) => !window.reached.has(one)).map((one) => one.outerHTML.slice(0, 200))");
    assert_eq!(browser.run(&missed).await, json!([]));
}

/// Nothing went wrong in the page, and it has asked nobody but the process.
async fn assert_quiet(browser: &Browser, port: u16) {
    let console = browser.log("browser").await;
    assert!(console.is_empty(), "{console:?}");
    let own = format!("http://127.0.0.1:{port}/");
    let mut requests = 0;
    for entry in browser.log("performance").await {
        let message: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
        if message["message"]["method"] == "Network.requestWillBeSent" {
            let url = message["message"]["params"]["request"]["url"].as_str().unwrap().to_owned();
            assert!(url.starts_with(&own) || url.starts_with("data:"), "{url}");
            requests += 1;
        }
    }
    assert!(requests > 5, "{requests}");
}

/// A table that streams, one whose every row stops it, and one that is left out.
async fn tables(db: &TestDb) {
    db.pg
        .execute(
            "CREATE TABLE customer (id int8 PRIMARY KEY, name text);
            INSERT INTO customer SELECT i, 'canary-' || i FROM generate_series(1, 2000) i;
            CREATE TABLE sales_order (id int8 PRIMARY KEY, sku int8 NOT NULL); INSERT INTO sales_order VALUES (1, 10);
            CREATE TABLE keyless (id int8)",
        )
        .await;
}

async fn stop_one(db: &TestDb) {
    assert_equal(db, "sales_order").await;
    db.pg
        .execute(
            "ALTER TABLE sales_order DROP CONSTRAINT sales_order_pkey, ADD PRIMARY KEY (sku);
            INSERT INTO sales_order VALUES (1, 30)",
        )
        .await;
}

/// Whether the header says where replication stands, in this word.
fn state(word: &str) -> String {
    format!("/^\\W*{word}/.test(document.querySelector('#state').innerText)")
}

fn row(table: &str) -> String {
    format!(
        "[...document.querySelectorAll('#tables tr')].find((row) => row.textContent.includes('{table}'))?.innerText ?? ''"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_where_everything_stands_to_everybody() {
    let (db, sqs) = (with_outbox("page").await, Sqs::shared());
    tables(&db).await;
    let mut daemon = Daemon::spawn(&db, &Sqs::config(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    sqs.send(&format!("{}audit-log-dlq", prefix(&db)), LOGIN).await;
    stop_one(&db).await;
    let browser = Browser::start().await;
    browser.width(1280).await;
    browser.scheme("light").await;
    browser.open(&format!("http://127.0.0.1:{}/", daemon.port())).await;

    browser.until(&format!("/streaming/.test({}) && /2,000/.test({0})", row("public.customer"))).await;
    browser.until(&format!("/stopped/.test({0}) && /walhouse resync|key/.test({0})", row("public.sales_order"))).await;
    browser.until(&format!("/not replicated/.test({})", row("public.keyless"))).await;
    browser.until("/public.sales_order: stopped/.test(document.querySelector('#finding-list').innerText)").await;
    browser.until("/audit-log-queue/.test(document.querySelector('#queues').innerText)").await;
    browser.until("/✗ 1/.test(document.querySelector('#queues').innerText)").await;
    browser.until("document.querySelector('#log li .message')").await;
    for number in 0..3 {
        db.pg.execute(&format!("INSERT INTO customer VALUES ({}, 'canary')", 3000 + number)).await;
    }
    browser.until("/[ML].*L/.test(document.querySelector('#chart-lag_bytes path').getAttribute('d'))").await;
    let label = browser.run("return document.querySelector('#chart-lag_bytes svg').getAttribute('aria-label')").await;
    assert!(label.as_str().unwrap().starts_with("WAL not durable yet: now WAL "), "{label}");
    assert!(!browser.text().await.contains("canary"), "no value of a row is shown");

    for (name, width, scheme) in
        [("desktop-light", 1280, "light"), ("desktop-dark", 1280, "dark"), ("phone", 360, "light")]
    {
        browser.width(width).await;
        browser.scheme(scheme).await;
        assert_accessible(&browser, name).await;
        assert_fits(&browser, name).await;
        browser.picture(name).await;
    }
    browser.width(1280).await;
    assert_keyboard(&browser).await;
    assert_quiet(&browser, daemon.port()).await;
    drop((browser, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_says_what_does_not_answer_and_goes_on_by_itself() {
    let clickhouse = ClickHouse::private(ClickHouseOptions::default());
    let db = TestDb::on(Postgres::shared(), clickhouse, "page_away").await;
    tables(&db).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let browser = Browser::start().await;
    browser.width(1280).await;
    browser.open(&format!("http://127.0.0.1:{}/", daemon.port())).await;
    browser.until(&format!("/streaming/.test({})", row("public.customer"))).await;
    browser.until("/All is well/.test(document.body.innerText)").await;

    let warnings =
        |log: &str| log.lines().filter(|line| line.contains(" WARN ")).map(str::to_owned).collect::<Vec<_>>();
    let before = warnings(&daemon.log()).len();
    db.clickhouse.kill9();
    browser.until(&state("waiting for ClickHouse")).await;
    db.pg.execute("INSERT INTO customer VALUES (5000, 'a'); INSERT INTO sales_order VALUES (5000, 1)").await;
    browser.until("/nothing lands since/.test(document.querySelector('#node-lanes').innerText)").await;
    browser.until("/not known/.test(document.querySelector('#chart-lag_seconds figcaption').innerText)").await;
    browser.until("/ClickHouse: it can not be reached/.test(document.querySelector('#finding-list').innerText)").await;
    browser.until("/not reached/.test(document.querySelector('#node-target').innerText)").await;
    // What was known stays, with its time.
    browser.until(&format!("/streaming/.test({})", row("public.customer"))).await;
    browser.until("/as of/.test(document.querySelector('#table-count').innerText)").await;
    assert_accessible(&browser, "ClickHouse away").await;
    browser.picture("clickhouse-away").await;
    db.clickhouse.start();
    browser.until("/All is well/.test(document.body.innerText)").await;
    browser.until(&state("streaming")).await;
    assert_equal(&db, "customer").await;
    // One warning when it goes, however many tables, tries and workers there are, and one line when it comes back.
    let told = warnings(&daemon.log()).split_off(before);
    assert!(
        told.len() == 1 && told[0].contains("ClickHouse is away") && told[0].contains("walhouse check"),
        "{told:#?}"
    );
    assert_eq!(daemon.log().matches("ClickHouse is back").count(), 1);

    daemon.kill9();
    browser
        .until("!document.querySelector('#alarm').hidden && /does not answer since/.test(document.body.innerText)")
        .await;
    assert!(!browser.text().await.contains("All is well"));
    assert_accessible(&browser, "walhouse away").await;
    browser.picture("walhouse-away").await;
    daemon.start();
    browser
        .until("document.querySelector('#alarm').hidden && /just now|[0-9] s ago/.test(document.body.innerText)")
        .await;
    browser.until("/All is well/.test(document.body.innerText)").await;
    drop((browser, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_asks_for_a_token_where_one_is_needed_and_shows_nothing_before() {
    let db = TestDb::new("page_token").await;
    tables(&db).await;
    let token = "a-token-for-those-who-look";
    let mut daemon = Daemon::spawn(&db, &format!("[http]\nviewer_token = \"{token}\""));
    daemon.wait_ready().await;
    for path in ["status", "history", "log"] {
        assert_eq!(daemon.get(&format!("/api/v1/{path}")).await.unwrap().status, 401, "{path}");
    }
    let browser = Browser::start().await;
    browser.width(1280).await;
    browser.open(&format!("http://127.0.0.1:{}/", daemon.port())).await;
    let give = |token: &str| {
        format!(
            "document.querySelector('#token').value = '{token}';
            document.querySelector('#token-dialog button').click()"
        )
    };
    browser.until("document.querySelector('#token-dialog').open").await;
    assert_accessible(&browser, "a token is asked for").await;
    browser.picture("token").await;
    browser.run(&give("another-token-than-that")).await;
    browser
        .until("document.querySelector('#token-dialog').open && /does not take/.test(document.body.innerText)")
        .await;
    assert!(!browser.text().await.contains("public.customer"));
    browser.run(&give(token)).await;
    browser.until(&format!("/streaming/.test({})", row("public.customer"))).await;
    // Until the tab is closed.
    browser.run("location.reload()").await;
    browser.until(&format!("/streaming/.test({})", row("public.customer"))).await;
    assert!(!daemon.log().contains(token));
    drop((browser, daemon));
    db.cleanup().await;
}
