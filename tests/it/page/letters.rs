//! Dead letters on the page: what they are made of, and home.

use serde_json::{Value, json};

use super::controls::{OPERATOR, Operator, assert_everywhere, button};
use crate::queue::prefix;
use crate::support::eventually;
use std::time::Duration;

const LIST: &str = "document.querySelector('#letter-list').innerText";

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_looked_into_without_what_they_say_and_sent_home_one_or_all() {
    let page = Operator::new("page_letters", "INSERT INTO item VALUES (1, 'a')", OPERATOR).await;
    let dead = format!("{}audit-log-dlq", prefix(&page.db));
    let ids: Vec<String> = (0..3).map(|_| uuid::Uuid::from_u128(rand::random()).to_string()).collect();
    for id in &ids {
        let body = json!({
            "metadata": {
                "eventId": id, "eventTimestamp": "2026-01-01T00:00:00Z", "eventType": "SecurityEventOccurred",
                "eventVersion": "1.0", "correlationId": "c", "sourceService": "shop"
            },
            "payload": {
                "eventType": "login", "actingUserId": "canary", "outcome": "success", "details": { "canary": "canary" }
            }
        });
        let attributes = [
            ("deadLetterReason", "a full moon"),
            ("deadLetterHandler", "audit"),
            ("deadLetterTries", "4"),
            ("deadLetterTime", "2026-01-01T00:00:00.000Z"),
            ("routingKey", "audit.security"),
            ("theirs", "canary"),
        ];
        page.sqs.send_with(&dead, &body.to_string(), &attributes, None).await;
    }
    page.sqs.send(&dead, "canary, no JSON").await;
    let look = button("look", "audit-log");
    page.browser.until(&format!("{look} && /✗ 4/.test(document.querySelector('#queues').innerText)")).await;
    page.browser.run(&format!("{look}.focus(); {look}.click()")).await;
    page.browser.until(&format!("{LIST}.split('a full moon').length === 4")).await;
    page.browser.until("/4 letters/.test(document.querySelector('#letters-count').innerText)").await;
    for part in ["SecurityEventOccurred 1.0", &ids[0], "audit, after 4 tries", "days ago", "No event"] {
        page.browser.until(&format!("{LIST}.includes('{part}')")).await;
    }
    page.browser.run("document.querySelectorAll('#letter-list details').forEach((one) => { one.open = true; })").await;
    for part in
        ["actingUserId string", "details object of 1 field", "audit.security", "theirs", "text of 15 bytes, no JSON"]
    {
        page.browser.until(&format!("{LIST}.replace(/\\s+/g, ' ').includes('{part}')")).await;
    }
    let whole = page.browser.run("return document.documentElement.outerHTML").await;
    assert!(!whole.as_str().unwrap().contains("canary"), "what a letter says inside came to the page");
    assert_everywhere(&page.browser, "letters").await;

    page.press("redrive-one", &ids[0]).await;
    assert_everywhere(&page.browser, "letters-confirm").await;
    page.browser.press("Escape").await;
    // The list is below, open still.
    let back = format!(
        "!document.querySelector('#confirm').open && document.querySelector('#letters').open && document.activeElement === {}",
        button("redrive-one", &ids[0])
    );
    page.browser.until(&back).await;
    assert_eq!(page.sqs.count(&dead).await, 4);
    page.press("redrive-one", &ids[0]).await;
    page.confirm("is on its way home").await;
    home(&page, &ids[..1]).await;
    page.browser.until(&format!("!{LIST}.includes('{}') && {LIST}.includes('{}')", ids[0], ids[1])).await;

    // All of them; the one that is no event comes back, since nothing was mended.
    page.press("redrive", "audit-log").await;
    page.confirm("are on their way home").await;
    home(&page, &ids).await;
    let rows = page.audited("walhouse.redrive", 2).await;
    let details = |row: &Value| row["details"].to_string();
    assert!(details(&rows[0]).contains(&ids[0]) && !details(&rows[1]).contains(&ids[0]), "{rows:?}");
    assert!(
        rows.iter().all(|row| row["outcome"] == "success" && row["target_resource"] == "audit-log-dlq"),
        "{rows:?}"
    );
    page.browser.run("document.querySelector('#letters-close').click()").await;
    page.browser.until(&format!("!document.querySelector('#letters').open && document.activeElement === {look}")).await;
    assert!(!page.daemon.log().contains("canary"));
    page.end().await;
}

/// Waits until the audit log has these events.
async fn home(page: &Operator, ids: &[String]) {
    let all = ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ");
    let sql = format!("SELECT count() FROM audit_log FINAL WHERE event_id IN ({all})");
    eventually(Duration::from_secs(60), async || match page.db.ch.try_query(&sql).await? {
        found if found == ids.len().to_string() => Ok(()),
        found => Err(format!("{found} of {}", ids.len())),
    })
    .await;
}
