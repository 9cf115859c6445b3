//! Who may act from the page, and who may not.

use serde_json::json;

use super::controls::{OPERATOR, Operator, VIEWER};
use super::{row, state};
use crate::support::{Browser, ClickHouse, Daemon, Postgres, PostgresOptions, TestDb, exchange};

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_has_no_buttons_and_is_told_why() {
    let page = Operator::new("page_viewer", "INSERT INTO item VALUES (1, 'a')", VIEWER).await;
    page.browser.until(&state("streaming")).await;
    page.browser
        .until("/You may look. To act: .*http.operator_token/.test(document.querySelector('#role').innerText)")
        .await;
    page.browser.until(&format!("/streaming/.test({})", row("public.item"))).await;
    assert_eq!(page.browser.run("return document.querySelectorAll('[data-act]').length").await, json!(0));
    assert_eq!(
        page.browser.run("return [...document.querySelectorAll('.acts')].every((one) => one.hidden)").await,
        json!(true)
    );
    // The buttons are not what keeps a viewer from acting.
    let refused = page
        .browser
        .run("const { ask } = await import('/page/ask.js'); return ask('/pause', {}).then(() => 'done', (error) => error.message)")
        .await;
    assert!(refused.as_str().unwrap().contains("this is for operators"), "{refused}");
    assert_eq!(page.db.ch.query("SELECT count() FROM _pauses").await, "0");
    page.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_another_site_can_do_nothing_in_an_operators_browser() {
    let page = Operator::new("page_foreign", "INSERT INTO item VALUES (1, 'a')", OPERATOR).await;
    let port = page.daemon.port();
    // Another name is another origin. Even with the token in its hands it would not get past the browser.
    let other = TestDb::new("page_foreign_other").await;
    let mut stranger = Daemon::spawn(&other, "");
    stranger.wait_ready().await;
    page.browser.open(&format!("http://127.0.0.1:{}/healthz", stranger.port())).await;
    assert_eq!(page.browser.run("return sessionStorage.length").await, json!(0), "the token is the page's own");
    for headers in [
        format!("{{ authorization: 'Bearer {OPERATOR}', 'content-type': 'application/json' }}"),
        "{ 'content-type': 'application/json' }".to_owned(),
        "{ 'content-type': 'text/plain' }".to_owned(),
    ] {
        let tried = format!(
            "return fetch('http://127.0.0.1:{port}/api/v1/pause', {{ method: 'POST', credentials: 'include', headers: {headers}, body: '{{}}' }})
                .then((answer) => 'answered ' + answer.status, () => 'kept from it')"
        );
        assert_eq!(page.browser.run(&tried).await, json!("kept from it"), "{headers}");
    }
    let head = "OPTIONS /api/v1/pause HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\
                Access-Control-Request-Method: POST\r\nContent-Length: 0\r\n\r\n";
    let (status, head, _) = exchange(port, head, "").await.unwrap();
    assert!(status >= 400 && !head.to_lowercase().contains("access-control"), "{status} {head}");
    assert_eq!(page.db.ch.query("SELECT count() FROM _pauses").await, "0");
    drop(stranger);
    other.cleanup().await;
    page.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_postgresql_the_page_says_what_is_waited_for() {
    let postgres = Postgres::private(PostgresOptions::default());
    let db = TestDb::on(postgres, ClickHouse::shared(), "page_source").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let browser = Browser::start().await;
    browser.width(1280).await;
    browser.open(&format!("http://127.0.0.1:{}/", daemon.port())).await;
    browser.until(&state("streaming")).await;
    db.postgres.kill9();
    browser.until(&state("waiting for PostgreSQL")).await;
    browser.until("/not known while PostgreSQL is away/.test(document.querySelector('#node-lanes').innerText)").await;
    super::assert_accessible(&browser, "PostgreSQL away").await;
    browser.picture("postgres-away").await;
    db.postgres.start();
    browser.until(&state("streaming")).await;
    drop((browser, daemon));
    db.cleanup().await;
}
