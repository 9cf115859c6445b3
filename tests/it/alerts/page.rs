//! The status page, as whoever is called has it before them while something is wrong.

use crate::page::{assert_accessible, assert_fits};
use crate::support::{Browser, Daemon};

/// A browser with the page open in it.
pub(super) struct OnCall(Browser);

impl OnCall {
    /// Opens the page, and waits until it has heard from the process.
    pub(super) async fn opens(daemon: &Daemon) -> Self {
        let browser = Browser::start().await;
        browser.width(1280).await;
        browser.scheme("light").await;
        browser.open(&format!("http://127.0.0.1:{}/", daemon.port())).await;
        browser.until("document.querySelector('#well').textContent !== 'Asking…'").await;
        Self(browser)
    }

    /// Waits until one of the things to do is about `about`, says all of this, and names the section of the runbooks.
    pub(super) async fn finds(&self, about: &str, words: &[&str], section: &str) {
        let wanted: Vec<&str> = words.iter().copied().chain([about, "→ ", "docs/runbooks.md", section]).collect();
        let wanted = serde_json::json!(wanted);
        let found = format!("((one) => {wanted}.every((words) => one.innerText.includes(words)))");
        self.0.until(&format!("[...document.querySelectorAll('#finding-list li')].some({found})")).await;
    }

    /// Waits until the page shows all of this, somewhere.
    pub(super) async fn shows(&self, words: &[&str]) {
        let wanted = serde_json::json!(words);
        self.0.until(&format!("{wanted}.every((words) => document.body.innerText.includes(words))")).await;
    }

    /// Waits until an element shows all of this.
    pub(super) async fn shows_in(&self, selector: &str, words: &[&str]) {
        let wanted = serde_json::json!(words);
        let text = format!("document.querySelector('{selector}').innerText");
        self.0.until(&format!("{wanted}.every((words) => {text}.includes(words))")).await;
    }

    /// All that it shows.
    pub(super) async fn text(&self) -> String {
        self.0.text().await
    }

    /// Waits until each heading says of what time it is, and nothing is shown as good.
    pub(super) async fn is_marked_as_old(&self) {
        let heading = "getComputedStyle(document.querySelector('#pipeline-title'), '::after').content";
        self.0.until(&format!("/as of [0-9:]{{8}}/.test({heading})")).await;
        let is_quiet =
            "(one) => getComputedStyle(one).color === getComputedStyle(document.querySelector('#heard')).color";
        self.0.until(&format!("[...document.querySelectorAll('main .badge.good')].every({is_quiet})")).await;
    }

    /// Waits until nothing is to be done any more.
    pub(super) async fn rests(&self) {
        self.0.until("document.querySelector('#alarm').hidden").await;
        self.shows(&["All is well"]).await;
    }

    /// Keeps what it shows, light, dark and on a telephone, as `target/screenshots/fault-{name}-….png`, once all of that can
    /// be read by everybody.
    pub(super) async fn kept_as(&self, name: &str) {
        for (variant, width, scheme) in [("dark", 1280, "dark"), ("phone", 360, "light"), ("light", 1280, "light")] {
            let name = format!("fault-{name}-{variant}");
            self.0.width(width).await;
            self.0.scheme(scheme).await;
            assert_accessible(&self.0, &name).await;
            assert_fits(&self.0, &name).await;
            self.0.picture(&name).await;
        }
    }
}
