//! Whether what a handler depends on is there.
//!
//! While it is away, nothing more is taken from the queue, and what was taken waits in hand: a message that is given back uses up
//! one of its few tries, and has done nothing to deserve that. Whether it is back is asked of the dependency itself.

use super::{Handler, PROBE};
use crate::{retry::Backoff, telemetry::names};
use std::time::Duration;
use tokio::{sync::watch, time::timeout};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Open while the dependency is away.
pub(super) struct Circuit {
    worker: &'static str,
    open: watch::Sender<bool>,
}

impl Circuit {
    /// Open, until the dependency was seen.
    pub(super) fn new(worker: &'static str) -> Self {
        Self { worker, open: watch::Sender::new(true) }
    }

    /// The dependency failed.
    pub(super) fn trip(&self, why: &str) {
        if !self.open.send_replace(true) {
            tracing::warn!(worker = self.worker, why, "events wait until this is over; none of their tries is used up");
        }
    }

    /// Waits until the dependency is there.
    pub(super) async fn closed(&self) {
        // The sender is this very one, so it can not have gone.
        let _ = self.open.subscribe().wait_for(|open| !open).await;
    }

    /// Asks the dependency while the circuit is open, for ever.
    pub(super) async fn watch(&self, handler: &dyn Handler) {
        let mut seen = self.open.subscribe();
        loop {
            let _ = seen.wait_for(|open| *open).await;
            metrics::gauge!(names::WORKER_WAITS, "worker" => self.worker).set(1.0);
            let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
            while let Err(why) = timeout(PROBE, handler.ready()).await.unwrap_or_else(|_| Err("no answer".to_owned())) {
                tracing::debug!(worker = self.worker, why, "still waiting");
                tokio::time::sleep(backoff.next_delay().max(FIRST_PAUSE)).await;
            }
            self.open.send_replace(false);
            metrics::gauge!(names::WORKER_WAITS, "worker" => self.worker).set(0.0);
        }
    }
}
