//! Whether what a handler depends on is there.
//!
//! While it is away, nothing more is taken from the queue, and what was taken waits in hand: a message that is given back uses up
//! one of its few tries, and has done nothing to deserve that. Whether it is back is asked of the dependency itself.
//!
//! Its answer is not all: a server that is there may still refuse every write. So the pauses grow from one trip to the next,
//! and only an event that was handled ends that. And an event that fails while others are handled fails by itself, whatever the
//! error says: see [`Circuit::handled`].

use super::{Handler, PROBE};
use crate::{
    retry::{Backoff, Reminder},
    telemetry::names,
};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Without a trip for so long, nothing waits, also if no event came that could have shown it.
const QUIET: Duration = Duration::from_secs(30);

/// Open while the dependency is away.
pub(super) struct Circuit {
    worker: &'static str,
    open: watch::Sender<bool>,
    record: Mutex<Record>,
}

/// What happened so far.
struct Record {
    /// Grows with each trip and each probe without success.
    backoff: Backoff,
    /// Events that were handled.
    handled: u64,
    /// No event was handled since a trip.
    is_failing: bool,
    reminder: Reminder,
}

impl Circuit {
    /// Open, until the dependency was seen.
    pub(super) fn new(worker: &'static str) -> Self {
        let record = Record {
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            handled: 0,
            is_failing: false,
            reminder: Reminder::default(),
        };
        Self { worker, open: watch::Sender::new(true), record: Mutex::new(record) }
    }

    /// The dependency failed; `is_told` if the log knows that it is away.
    pub(super) fn trip(&self, why: &str, is_told: bool) {
        let mut record = self.record();
        record.is_failing = true;
        let was_open = self.open.send_replace(true);
        if was_open || !record.reminder.is_due(Instant::now()) {
            return;
        }
        const WAIT: &str = "events wait until this is over; none of their tries is used up";
        match is_told {
            true => tracing::info!(worker = self.worker, why, "{WAIT}"),
            false => tracing::warn!(worker = self.worker, why, "{WAIT}"),
        }
    }

    /// An event was handled, so the dependency does its work.
    pub(super) fn succeed(&self) {
        let mut record = self.record();
        record.handled += 1;
        if record.is_failing {
            record.is_failing = false;
            record.backoff.reset();
            if !*self.open.borrow() {
                self.waits(false);
            }
        }
    }

    /// How many events were handled so far. Who fails, and sees this number rise meanwhile, is not failing for all.
    pub(super) fn handled(&self) -> u64 {
        self.record().handled
    }

    /// Waits until the dependency is there.
    pub(super) async fn closed(&self) {
        // The sender is this very one, so it can not have gone.
        let _ = self.open.subscribe().wait_for(|open| !open).await;
    }

    /// Asks the dependency while the circuit is open, for ever.
    pub(super) async fn watch(&self, handler: &dyn Handler) {
        let mut seen = self.open.subscribe();
        // The first time nothing has failed yet.
        let mut is_first = true;
        loop {
            if timeout(QUIET, seen.wait_for(|open| *open)).await.is_err() {
                self.waits(false);
                let _ = seen.wait_for(|open| *open).await;
            }
            self.waits(true);
            loop {
                if !std::mem::take(&mut is_first) {
                    let pause = self.record().backoff.next_delay();
                    sleep(pause.max(FIRST_PAUSE)).await;
                }
                match timeout(PROBE, handler.ready()).await.unwrap_or_else(|_| Err("no answer".to_owned())) {
                    Ok(()) => break,
                    Err(why) => tracing::debug!(worker = self.worker, why, "still waiting"),
                }
            }
            let record = self.record();
            self.open.send_replace(false);
            if !record.is_failing {
                self.waits(false);
            }
        }
    }

    fn waits(&self, waits: bool) {
        metrics::gauge!(names::WORKER_WAITS, "worker" => self.worker).set(if waits { 1.0 } else { 0.0 });
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
