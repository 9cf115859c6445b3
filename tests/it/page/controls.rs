//! The page's buttons: each with its confirmation and its cancellation, and what comes of it on both servers.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{assert_accessible, assert_fits, row, state};
use crate::queue::{LOGIN, prefix, with_outbox};
use crate::support::{Browser, Daemon, Sqs, TestDb, assert_equal, eventually, settled};

pub(super) const VIEWER: &str = "a-token-for-those-who-look";
pub(super) const OPERATOR: &str = "a-token-for-those-who-act";
const SOON: Duration = Duration::from_secs(60);

/// An operator before the page.
pub(super) struct Operator {
    pub(super) db: TestDb,
    pub(super) sqs: Arc<Sqs>,
    pub(super) daemon: Daemon,
    pub(super) browser: Browser,
}

/// The button that something is done with.
pub(super) fn button(act: &str, subject: &str) -> String {
    format!("document.querySelector('button[data-act=\"{act}\"][data-subject=\"{subject}\"]')")
}

impl Operator {
    pub(super) async fn new(label: &str, setup: &str, token: &str) -> Self {
        let (db, sqs) = (with_outbox(label).await, Sqs::shared());
        db.pg.execute(setup).await;
        let tokens = format!("[http]\nviewer_token = \"{VIEWER}\"\noperator_token = \"{OPERATOR}\"\n");
        let mut daemon = Daemon::spawn(&db, &(tokens + &Sqs::handled(sqs.port(), &prefix(&db))));
        daemon.wait_ready().await;
        let browser = Browser::start().await;
        browser.width(1280).await;
        browser.scheme("light").await;
        browser.open(&format!("http://127.0.0.1:{}/", daemon.port())).await;
        browser.until("document.querySelector('#token-dialog').open").await;
        browser.run("document.querySelector('#token').focus()").await;
        browser.write(token).await;
        browser.press("Enter").await;
        browser.until("/public\\.item/.test(document.querySelector('#tables').innerText)").await;
        browser.until("/You may look|you may act/.test(document.querySelector('#role').innerText)").await;
        Self { db, sqs, daemon, browser }
    }

    /// Presses a button once it can be, and waits for its confirmation.
    pub(super) async fn press(&self, act: &str, subject: &str) {
        let button = button(act, subject);
        self.browser.until(&format!("{button} && !{button}.ariaDisabled")).await;
        self.browser.run(&format!("{button}.focus(); {button}.click()")).await;
        self.browser.until("document.querySelector('#confirm').open").await;
    }

    /// What the confirmation says.
    async fn says(&self, parts: &[&str]) {
        let text = self.browser.run("return document.querySelector('#confirm').innerText").await;
        let text = text.as_str().unwrap();
        for part in parts {
            assert!(text.contains(part), "no {part:?} in: {text}");
        }
    }

    /// Cancels by Escape, after which the button has the focus again and nothing was asked for.
    pub(super) async fn cancel(&self, act: &str, subject: &str) {
        self.browser.press("Escape").await;
        let back =
            format!("!document.querySelector('#confirm').open && document.activeElement === {}", button(act, subject));
        self.browser.until(&back).await;
        for table in ["_pauses", "_requests", "audit_log"] {
            assert_eq!(self.db.ch.query(&format!("SELECT count() FROM {table}")).await, "0", "{act}: {table}");
        }
    }

    /// Confirms, and waits until that was said.
    pub(super) async fn confirm(&self, said: &str) {
        self.browser.run("document.querySelector('#confirm-do').click()").await;
        self.browser.until("!document.querySelector('#confirm').open").await;
        self.browser
            .until(&format!(
                "[...document.querySelectorAll('[role=status]')].some((one) => one.textContent.includes('{said}'))"
            ))
            .await;
    }

    /// Waits for the events of this type in the audit log.
    pub(super) async fn audited(&self, event_type: &str, count: usize) -> Vec<Value> {
        let sql = format!(
            "SELECT acting_user_id, target_resource, outcome, details FROM audit_log FINAL
             WHERE event_type = '{event_type}' ORDER BY event_timestamp FORMAT JSONEachRow"
        );
        eventually(SOON, async || {
            let found = self.db.ch.try_query(&sql).await?;
            let rows: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            if rows.len() == count { Ok(rows) } else { Err(format!("{event_type}: {rows:?}")) }
        })
        .await
    }

    async fn becomes(&self, sql: &str, wanted: &str) {
        eventually(SOON, async || match self.db.pg.value(sql).await {
            found if found == wanted => Ok(()),
            found => Err(format!("{sql}: {found}")),
        })
        .await;
    }

    async fn counts(&self, sql: &str, wanted: &str) {
        eventually(SOON, async || match self.db.ch.try_query(sql).await? {
            found if found == wanted => Ok(()),
            found => Err(format!("{sql}: {found}")),
        })
        .await;
    }

    pub(super) async fn end(self) {
        let Self { db, daemon, browser, .. } = self;
        // No token is where others read it.
        assert!(!daemon.log().contains(OPERATOR) && !daemon.log().contains(VIEWER));
        drop((browser, daemon));
        db.cleanup().await;
    }
}

/// In both colours and on a phone, with whatever is open.
pub(super) async fn assert_everywhere(browser: &Browser, name: &str) {
    for (suffix, width, scheme) in [("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 360, "light")] {
        browser.width(width).await;
        browser.scheme(scheme).await;
        let name = format!("{name}-{suffix}");
        assert_accessible(browser, &name).await;
        assert_fits(browser, &name).await;
        browser.picture(&name).await;
    }
    browser.width(1280).await;
    browser.scheme("light").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pipeline_is_paused_and_resumed_after_a_confirmation() {
    let page = Operator::new("page_pipeline", "INSERT INTO item VALUES (1, 'a')", OPERATOR).await;
    let slot = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", page.db.name);
    page.browser.until(&state("streaming")).await;
    page.press("pause-pipeline", "pipeline").await;
    page.says(&[
        "Pause the pipeline?",
        "PostgreSQL keeps all WAL for the slot",
        "max_slot_wal_keep_size",
        "A restart does not",
    ])
    .await;
    assert_everywhere(&page.browser, "confirm").await;
    page.cancel("pause-pipeline", "pipeline").await;
    assert_eq!(page.db.pg.value(&slot).await, "t");

    page.press("pause-pipeline", "pipeline").await;
    page.browser.run("document.querySelector('#reason').focus()").await;
    page.browser.write("moving house").await;
    page.browser.run("document.querySelector('#actor').focus()").await;
    page.browser.write("Žofie").await;
    page.confirm("The pipeline is being paused.").await;
    page.browser.until(&state("paused")).await;
    page.browser.until("/by Žofie: moving house/.test(document.querySelector('#node-lanes').innerText)").await;
    page.becomes(&slot, "f").await;
    let rows = page.audited("walhouse.pause", 1).await;
    assert_eq!((&rows[0]["acting_user_id"], &rows[0]["target_resource"]), (&json!("Žofie"), &json!("pipeline")));
    page.db.pg.execute("INSERT INTO item VALUES (2, 'b')").await;
    page.browser.until(&format!("{}.innerText.startsWith('Resume')", button("resume-pipeline", "pipeline"))).await;
    page.browser.media(&[("prefers-reduced-motion", "reduce")]).await;
    assert_accessible(&page.browser, "reduced motion").await;
    let moves = "return [...document.querySelectorAll('*')].filter((one) => getComputedStyle(one).transitionDuration !== '0s').length";
    assert_eq!(page.browser.run(moves).await, json!(0));
    assert_everywhere(&page.browser, "paused").await;
    assert_eq!(page.db.ch.query("SELECT count() FROM item_current").await, "1");

    page.press("resume-pipeline", "pipeline").await;
    page.says(&["It goes on where it stood, at ", "nothing is left out"]).await;
    page.confirm("The pipeline goes on within seconds.").await;
    page.browser.until(&state("streaming")).await;
    assert_equal(&page.db, "item").await;
    assert_eq!(page.audited("walhouse.resume", 1).await[0]["acting_user_id"], "Žofie");
    page.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_said_and_can_be_asked_for_again() {
    let page = Operator::new("page_refused", "INSERT INTO item VALUES (1, 'a')", OPERATOR).await;
    let queue = format!("{}audit-log-queue", prefix(&page.db));
    let url = page.sqs.url(&queue).await;
    page.sqs.client().delete_queue().queue_url(url).send().await.unwrap();
    page.press("pause-pipeline", "pipeline").await;
    page.browser.run("document.querySelector('#confirm-do').click()").await;
    let disabled = "[...document.querySelectorAll('#confirm button, #confirm input')].every((one) => one.disabled)";
    page.browser.until(&format!("{disabled} || !document.querySelector('#confirm-error').hidden")).await;
    page.browser
        .until("/nothing was done, since the audit log/.test(document.querySelector('#confirm-error').innerText)")
        .await;
    let again =
        "document.querySelector('#confirm').open && document.activeElement === document.querySelector('#confirm-do')";
    page.browser.until(again).await;
    assert_everywhere(&page.browser, "refused").await;
    assert_eq!(page.db.ch.query("SELECT count() FROM _pauses").await, "0");
    page.browser.press("Escape").await;
    page.browser.until(&state("streaming")).await;
    page.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_paused_resumed_and_copied_anew() {
    let setup = "INSERT INTO item VALUES (1, 'a');
        CREATE TABLE bulk (id int8 PRIMARY KEY, filler text);
        INSERT INTO bulk SELECT i, repeat('x', 900) FROM generate_series(1, 1000) i";
    let page = Operator::new("page_table", setup, OPERATOR).await;
    let item = "public.item";
    page.press("pause-table", item).await;
    page.says(&["Pause public.item?", "passed over from now on", "the whole table is copied anew"]).await;
    page.cancel("pause-table", item).await;
    page.press("pause-table", item).await;
    page.confirm("public.item is being paused.").await;
    page.browser.until(&format!("/paused/.test({})", row(item))).await;
    page.db.pg.execute("INSERT INTO item VALUES (2, 'b')").await;
    settled(&page.db).await;
    assert_eq!(page.db.ch.query("SELECT count() FROM item_current").await, "1");

    page.press("resume-table", item).await;
    page.says(&["Its changes were passed over", "copied into a fresh one beside"]).await;
    page.confirm("its copy begins within seconds").await;
    page.browser.until(&format!("/streaming/.test({})", row(item))).await;
    assert_equal(&page.db, "item").await;

    page.db.ch.query("ALTER TABLE item DELETE WHERE id = 1 SETTINGS mutations_sync = 2").await;
    page.press("resync-table", item).await;
    page.confirm("is asked to be copied anew").await;
    assert_equal(&page.db, "item").await;

    // One that takes its time: what is under way is shown, and not asked for twice.
    page.counts("SELECT count() FROM _requests FINAL WHERE state IN ('asked', 'begun')", "0").await;
    // It waits for whoever was writing the table before it.
    let writer = page.db.pg.connect().await.expect("a session");
    writer.batch_execute("BEGIN; INSERT INTO bulk VALUES (0, 'y')").await.expect("a row");
    page.press("resync-table", "public.bulk").await;
    page.confirm("is asked to be copied anew").await;
    page.browser.until(&state("copying 1 table")).await;
    page.browser.until(&format!("/0 %, 0 rows copied beside the live table/.test({})", row("public.bulk"))).await;
    page.browser.until(&format!("/resync is under way/.test({})", row("public.bulk"))).await;
    page.browser.until(&format!("{}.ariaDisabled", button("resync-table", "public.bulk"))).await;
    page.browser.run(&format!("{}.click()", button("resync-table", "public.bulk"))).await;
    assert_eq!(page.browser.run("return document.querySelector('#confirm').open").await, json!(false));
    assert_everywhere(&page.browser, "copying").await;
    page.browser.until(&state("copying 1 table")).await;
    writer.batch_execute("COMMIT").await.expect("it is committed");
    page.browser.until(&state("streaming")).await;
    assert_equal(&page.db, "bulk").await;
    let targets: Vec<_> =
        page.audited("walhouse.resync", 2).await.iter().map(|row| row["target_resource"].clone()).collect();
    assert_eq!(targets, [json!(item), json!("public.bulk")]);
    page.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_paused_and_resumed_with_the_keyboard_alone() {
    let page = Operator::new("page_worker", "INSERT INTO item VALUES (1, 'a')", OPERATOR).await;
    let login = format!("INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{LOGIN}')");
    page.daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    page.browser.until(&button("pause-worker", "audit")).await;
    let reach = async |wanted: &str| {
        for _ in 0..100 {
            if page.browser.run(&format!("return document.activeElement === {wanted}")).await == json!(true) {
                return;
            }
            page.browser.tab().await;
        }
        panic!("{wanted} is not reached by Tab");
    };
    let confirm = "document.querySelector('#confirm-do')";
    reach(&button("pause-worker", "audit")).await;
    page.browser.press("Enter").await;
    page.browser.until("document.querySelector('#confirm').open").await;
    page.says(&["Pause the worker audit?", "audit-log-queue", "It finishes what it has in hand"]).await;
    // It begins with what it says, and what is behind it is out of reach.
    assert_eq!(page.browser.run("return document.activeElement.id").await, json!("confirm-title"));
    for _ in 0..8 {
        page.browser.tab().await;
        let inside = "document.querySelector('#confirm').contains(document.activeElement) || document.activeElement === document.body";
        assert_eq!(page.browser.run(&format!("return {inside}")).await, json!(true));
    }
    page.cancel("pause-worker", "audit").await;

    page.browser.press("Enter").await;
    page.browser.until("document.querySelector('#confirm').open").await;
    reach(confirm).await;
    page.browser.press("Enter").await;
    let paused = "/paused/.test(document.querySelector('#node-workers').innerText)";
    page.browser.until(paused).await;
    // The same button resumes, and has the focus still.
    page.browser.until(&format!("document.activeElement === {}", button("resume-worker", "audit"))).await;
    page.daemon.wait_log("a worker is paused", 1).await;
    page.db.pg.execute(&login).await;
    let queue = format!("{}audit-log-queue", prefix(&page.db));
    // The event of the pause itself may wait there too.
    eventually(SOON, async || match page.sqs.count(&queue).await {
        0 => Err("nothing waits".to_owned()),
        _ => Ok(()),
    })
    .await;
    assert_eq!(page.db.ch.query("SELECT count() FROM audit_log FINAL WHERE event_type = 'login'").await, "0");

    page.browser.until(&format!("!{}.ariaDisabled", button("resume-worker", "audit"))).await;
    page.browser.press("Enter").await;
    page.browser.until("document.querySelector('#confirm').open").await;
    reach(confirm).await;
    page.browser.press("Enter").await;
    page.counts("SELECT count() FROM audit_log FINAL WHERE event_type = 'login'", "1").await;
    page.browser.until(&format!("!{paused}")).await;
    assert_eq!(page.audited("walhouse.pause", 1).await[0]["target_resource"], "worker audit");
    assert_eq!(page.audited("walhouse.resume", 1).await[0]["acting_user_id"], "operator");
    page.end().await;
}
