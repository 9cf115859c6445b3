//! Workers that do not get on, as this process's own metrics tell: nobody else knows of them, so `walhouse status` does not.

use crate::{
    commands::status::Finding,
    http::exposition::Series,
    telemetry::names::{DEPENDENCY_UP, WORKER_OLDEST, WORKER_TIMEOUT, WORKER_WAITS},
};
use std::collections::BTreeMap;

/// A moment's wait is none: a worker waits for what it depends on whenever it starts.
const PATIENCE: f64 = 4.0;
/// An event that has been in hand for so many times its time hangs.
const TIMES: f64 = 2.0;

/// What one worker has in hand.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Hand {
    waits: bool,
    /// Since when it has had its oldest event, in seconds since 1970; 0 without one.
    oldest: f64,
    /// How long the handling of one may take, in seconds.
    timeout: f64,
}

/// All of them at one look.
#[derive(Clone, Debug, Default)]
pub(super) struct Hands {
    /// By the worker's word.
    workers: BTreeMap<String, Hand>,
    /// Something does not answer at all: what is in hand waits for that, and does not hang by itself.
    away: bool,
}

/// Since when each of those that wait was seen to.
#[derive(Debug, Default)]
pub(super) struct Waiting(BTreeMap<String, f64>);

impl Hands {
    /// Takes a series in, if it is of a worker's hand.
    pub(super) fn note(&mut self, series: &Series<'_>) {
        self.away |= series.name == DEPENDENCY_UP && series.value == 0.0;
        if ![WORKER_WAITS, WORKER_OLDEST, WORKER_TIMEOUT].contains(&series.name) {
            return;
        }
        let Some(worker) = series.label("worker") else { return };
        let hand = self.workers.entry(worker).or_default();
        match series.name {
            WORKER_WAITS => hand.waits = series.value > 0.0,
            WORKER_OLDEST => hand.oldest = series.value,
            _ => hand.timeout = series.value,
        }
    }
}

impl Waiting {
    /// Which of them need a person, at `now` in seconds since 1970.
    pub(super) fn findings(&mut self, hands: &Hands, now: f64) -> Vec<Finding> {
        self.0.retain(|worker, _| hands.workers.get(worker).is_some_and(|hand| hand.waits));
        hands.workers.iter().filter_map(|(worker, hand)| self.finding(worker, *hand, hands.away, now)).collect()
    }

    fn finding(&mut self, worker: &str, hand: Hand, away: bool, now: f64) -> Option<Finding> {
        let about = format!("worker {worker}");
        let in_hand = if hand.oldest > 0.0 { now - hand.oldest } else { 0.0 };
        let waits = if hand.waits { now - *self.0.entry(worker.to_owned()).or_insert(now) } else { 0.0 };
        if !away && hand.timeout > 0.0 && in_hand > TIMES * hand.timeout {
            let what = format!(
                "it has had an event in hand for {in_hand:.0} s, and its time is {:.0} s. Its other events wait, and \
                 none is lost",
                hand.timeout
            );
            let remedy = "end what hangs in ClickHouse, or restart the process: the event is handled again, with its \
                          effect once";
            return Some(Finding { about, what, remedy: remedy.to_owned(), runbook: Some("WalhouseWorkerStuck") });
        }
        (waits > PATIENCE).then(|| {
            let what = format!(
                "it has waited for {waits:.0} s: what it depends on is away, or refuses. Its events wait, and no try \
                 is used up"
            );
            let remedy = "walhouse check; the log says what is missing".to_owned();
            Finding { about, what, remedy, runbook: Some("WalhouseWorkerWaits") }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::exposition::series;

    fn hands(waits: u8, oldest: u32) -> Hands {
        with(waits, oldest, 1)
    }

    fn with(waits: u8, oldest: u32, up: u8) -> Hands {
        let page = format!(
            "walhouse_worker_waits{{worker=\"audit\"}} {waits}\n\
             walhouse_worker_oldest_in_hand_timestamp_seconds{{worker=\"audit\"}} {oldest}\n\
             walhouse_worker_timeout_seconds{{worker=\"audit\"}} 5\nwalhouse_worker_in_hand{{worker=\"audit\"}} 9\n\
             walhouse_dependency_up{{dependency=\"clickhouse\"}} {up}\n"
        );
        let mut hands = Hands::default();
        series(&page).for_each(|one| hands.note(&one));
        hands
    }

    #[test]
    fn an_event_that_hangs_is_found_once_it_took_twice_its_time() {
        let found = |now| Waiting::default().findings(&hands(0, 1000), now);
        assert_eq!((found(1010.0), Waiting::default().findings(&hands(0, 0), 1010.0)), (vec![], vec![]));
        let [stuck] = found(1011.0).try_into().unwrap();
        assert_eq!((stuck.about.as_str(), stuck.runbook), ("worker audit", Some("WalhouseWorkerStuck")));
        assert!(stuck.what.contains("for 11 s, and its time is 5 s"), "{stuck:?}");
    }

    #[test]
    fn a_wait_is_found_once_it_lasts_and_begins_anew_after_its_end() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.findings(&hands(1, 0), 1000.0), []);
        let [found] = waiting.findings(&hands(1, 0), 1005.0).try_into().unwrap();
        assert!(found.runbook == Some("WalhouseWorkerWaits") && found.what.contains("for 5 s"), "{found:?}");
        // What hangs is no mere wait, though the worker waits too.
        assert_eq!(waiting.findings(&hands(1, 900), 1005.0)[0].runbook, Some("WalhouseWorkerStuck"));
        // It does not hang by itself while nothing answers.
        assert_eq!(waiting.findings(&with(1, 900, 0), 1006.0)[0].runbook, Some("WalhouseWorkerWaits"));
        assert_eq!(waiting.findings(&hands(0, 0), 1010.0), []);
        assert_eq!(waiting.findings(&hands(1, 0), 1015.0), []);
    }
}
