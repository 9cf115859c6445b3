//! What `[queue]` asks of the place for objects: reports are put there, and events that are too large for a queue.

use super::{Report, failed, fine};
use crate::{config::Config, store};
use std::time::Duration;

const AREA: &str = "objects";
/// Its own retries among it.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Nothing without `[queue]`.
pub(super) async fn check(config: &Config) -> Report {
    let mut report = Report::default();
    if config.queue.is_none() {
        return report;
    }
    let found = match tokio::time::timeout(TIMEOUT, store::probe(&config.objects)).await {
        Ok(Ok(what)) => fine(what),
        Ok(Err(error)) => failed(
            error.to_string(),
            "mend this, or give [objects] another url: reports wait for it, and so do events that are too large for a queue (1 \
             MiB), with the slot",
        ),
        Err(_) => failed(format!("{} does not answer", config.objects.url), "correct [objects]"),
    };
    report.push(AREA, "store", found);
    report
}
