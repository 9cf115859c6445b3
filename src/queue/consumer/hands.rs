//! What a worker has in hand, and since when: a handler that hangs is one whose message grows old there.

use crate::{
    event::envelope::Queue,
    queue::messages::Message,
    telemetry::{self, names},
};
use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

/// The messages in hand.
pub(super) struct Hands {
    worker: &'static str,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// When each was taken, and its number.
    since: BTreeSet<(SystemTime, u64)>,
    next: u64,
}

/// A message in hand, until it is dropped.
pub(super) struct Hand<'a> {
    hands: &'a Hands,
    own: (SystemTime, u64),
}

impl Hands {
    pub(super) fn new(worker: &'static str, timeout: Duration) -> Self {
        metrics::gauge!(names::WORKER_TIMEOUT, "worker" => worker).set(timeout.as_secs_f64());
        for outcome in ["done", "known", "again", "dead", "lost", "released"] {
            metrics::counter!(names::EVENTS_HANDLED, "worker" => worker, "outcome" => outcome).increment(0);
        }
        for kind in ["transient", "definite"] {
            metrics::counter!(names::TAKE_ERRORS, "worker" => worker, "kind" => kind).increment(0);
        }
        let hands = Self { worker, held: Mutex::default() };
        hands.show(&Held::default());
        hands
    }

    /// A message was taken.
    pub(super) fn take(&self, queue: Queue, message: &Message) -> Hand<'_> {
        let now = SystemTime::now();
        if let Some(sent) = message.sent.filter(|_| message.taken <= 1) {
            metrics::gauge!(names::QUEUE_FRONT, "queue" => queue.label()).set(telemetry::seconds(sent));
            let waited = now.duration_since(sent).unwrap_or_default();
            metrics::histogram!(names::QUEUE_WAIT, "queue" => queue.label()).record(waited.as_secs_f64());
        }
        let own = self.change(|held| {
            let own = (now, held.next);
            held.next += 1;
            held.since.insert(own);
            own
        });
        Hand { hands: self, own }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut held);
        self.show(&held);
        changed
    }

    fn show(&self, held: &Held) {
        let oldest = held.since.first().map_or(0.0, |(since, _)| telemetry::seconds(*since));
        metrics::gauge!(names::WORKER_IN_HAND, "worker" => self.worker).set(held.since.len() as f64);
        metrics::gauge!(names::WORKER_OLDEST, "worker" => self.worker).set(oldest);
    }
}

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        self.hands.change(|held| held.since.remove(&self.own));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;

    #[test]
    fn the_oldest_in_hand_is_that_of_what_is_left() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let hands = Hands::new("audit", Duration::from_secs(5));
            let shown = |name: &str| {
                let page = recorder.handle().render();
                let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
                line.rsplit(' ').next().unwrap_or_default().parse::<f64>().unwrap()
            };
            let first = hands.take(Queue::AuditLog, &Message::default());
            let oldest = shown(names::WORKER_OLDEST);
            let second = hands.take(Queue::AuditLog, &Message::default());
            assert_eq!((shown(names::WORKER_IN_HAND), shown(names::WORKER_OLDEST)), (2.0, oldest));
            drop(first);
            assert!(shown(names::WORKER_OLDEST) >= oldest);
            drop(second);
            assert_eq!((shown(names::WORKER_IN_HAND), shown(names::WORKER_OLDEST)), (0.0, 0.0));
        });
    }
}
