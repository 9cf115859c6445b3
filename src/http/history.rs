//! The last hour, for the status page: how far behind, how much, how fast.
//!
//! Every [`INTERVAL`] the process's own metrics and its [`Status`] become one [`Point`]; no server is asked for it. There are
//! [`POINTS`] of them at most, of about 120 bytes each: less than 100 KiB. What is told of single tables is only that of the
//! last look, and is bounded by `metrics.max_tables`, as the metrics are.
//!
//! Points are numbered from the start of the process on. Who asks for those after a number that this process has not
//! reached gets all of them: it is another process than the one that was asked before.

mod hands;

use super::{
    exposition::{Series, series},
    metrics_page::MetricsPage,
};
use crate::{
    clickhouse::presence::Absence,
    commands::status::Finding,
    status::{Account, State, Status},
    telemetry::{self, names},
};
use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use hands::{Hands, Waiting};
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tokio::time::{MissedTickBehavior, interval};

/// Between two points.
const INTERVAL: Duration = Duration::from_secs(5);
/// An hour of them.
const POINTS: usize = 720;

/// What was so at one moment, or in the interval that ended with it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Point {
    /// Its number, from 1 on.
    number: u64,
    /// When it was taken: seconds since 1970.
    time: f64,
    lag_seconds: f64,
    lag_bytes: u64,
    /// Changes that came from the source.
    received_per_second: f64,
    /// Rows that ClickHouse has confirmed, those of copies among them.
    written_per_second: f64,
    /// Events that their queues have confirmed.
    events_per_second: f64,
    /// From commit to durable, of what became durable in the interval; `None` if nothing did.
    latency_p50_seconds: Option<f64>,
    latency_p95_seconds: Option<f64>,
    memory_bytes: u64,
    streaming: bool,
    paused: bool,
}

/// What the process knows of itself at the last point, beyond what is drawn over time.
#[derive(Clone, Debug, Default, Serialize)]
struct Now {
    /// What it is doing, for people.
    phase: String,
    /// `streaming` or `catch_up`; empty between two sessions.
    reader: String,
    memory_budget_bytes: u64,
    /// By `schema.name`.
    tables: BTreeMap<String, TableNow>,
    /// By the queue's word: since when nothing older waits in it, in seconds since 1970.
    queue_fronts: BTreeMap<String, f64>,
    /// By the worker's word: messages in hand.
    in_hand: BTreeMap<String, u64>,
    /// What needs a person, as far as only this process knows of it.
    findings: Vec<Finding>,
}

/// A table, since the process has started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct TableNow {
    received: u64,
    written: u64,
    copied: u64,
}

/// The counters of one look, from which the next one takes the difference.
#[derive(Clone, Debug, Default)]
struct Counters {
    received: f64,
    written: f64,
    events: f64,
    /// How many took so long or less, by the bound in seconds; rising.
    latency: Vec<(f64, f64)>,
}

/// What one page of metrics says.
#[derive(Debug, Default)]
struct Look {
    counters: Counters,
    memory: f64,
    paused: bool,
    now: Now,
    hands: Hands,
}

/// The last hour.
#[derive(Debug)]
pub(super) struct History {
    /// When the process has started: seconds since 1970.
    started: f64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    points: VecDeque<Point>,
    last: u64,
    now: Now,
}

/// Where the process stands at this moment, and not only at the last point.
#[derive(Debug, Serialize)]
struct Stands {
    state: State,
    /// What there is to say of it, for people.
    text: String,
    /// Tables that are being copied.
    copying: usize,
    /// Since when ClickHouse is away, in seconds since 1970.
    clickhouse_away_since: Option<f64>,
}

impl Stands {
    fn new(account: &Account, absence: Option<&Absence>) -> Self {
        let state = account.state(absence.is_some());
        let text = match (state, absence) {
            (State::WaitingForClickHouse, Some(absence)) => absence.error.clone(),
            _ => account.phase.clone(),
        };
        let clickhouse_away_since = absence.map(|absence| telemetry::seconds(absence.since));
        Self { state, text, copying: account.copying + account.beside, clickhouse_away_since }
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    version: &'static str,
    started: f64,
    state: Stands,
    interval_seconds: u64,
    now: &'a Now,
    points: Vec<&'a Point>,
}

impl Default for History {
    fn default() -> Self {
        let kept = Kept { points: VecDeque::with_capacity(POINTS), ..Kept::default() };
        Self { started: telemetry::seconds(SystemTime::now()), kept: Mutex::new(kept) }
    }
}

impl History {
    /// Takes points until the future is dropped.
    pub(super) async fn take(&self, metrics: &MetricsPage, status: &Status) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let look = async || metrics.read(look).await.unwrap_or_default();
        let (mut before, mut at) = (look().await.counters, Instant::now());
        let mut waiting = Waiting::default();
        loop {
            ticks.tick().await;
            let seconds = at.elapsed().as_secs_f64();
            at = Instant::now();
            let mut look = look().await;
            look.now.findings = waiting.findings(&look.hands, telemetry::seconds(SystemTime::now()));
            let counters = look.counters.clone();
            self.add(point(&before, &look, seconds, &status.account()), look.now, &status.account());
            before = counters;
        }
    }

    fn add(&self, mut point: Point, mut now: Now, account: &Account) {
        let mut kept = self.lock();
        kept.last += 1;
        point.number = kept.last;
        now.phase.clone_from(&account.phase);
        if kept.points.len() == POINTS {
            kept.points.pop_front();
        }
        kept.points.push_back(point);
        kept.now = now;
    }

    /// `GET /api/v1/history?since=NUMBER`: the points after that one, or all of them.
    pub(super) fn answer(&self, query: Option<&str>, account: &Account, absence: Option<&Absence>) -> Response {
        let Some(since) = since(query) else {
            let what = "since: give the number of a point, as in /api/v1/history?since=17, or leave it out";
            return (StatusCode::BAD_REQUEST, json(&serde_json::json!({ "error": what }))).into_response();
        };
        let kept = self.lock();
        let since = if since > kept.last { 0 } else { since };
        let answer = Answer {
            version: env!("CARGO_PKG_VERSION"),
            started: self.started,
            state: Stands::new(account, absence),
            interval_seconds: INTERVAL.as_secs(),
            now: &kept.now,
            points: kept.points.iter().filter(|point| point.number > since).collect(),
        };
        json(&answer)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer that is of this moment alone.
pub(super) fn json(what: &impl Serialize) -> Response {
    match serde_json::to_string(what) {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], text).into_response()
        }
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("it can not be written as JSON: {error}\n")).into_response()
        }
    }
}

/// 0 without the parameter, `None` if it is no number.
fn since(query: Option<&str>) -> Option<u64> {
    let parameters = query.unwrap_or_default().split('&');
    parameters.filter_map(|pair| pair.strip_prefix("since=")).next_back().map_or(Some(0), |text| text.parse().ok())
}

fn look(page: &str) -> Look {
    let mut look = Look::default();
    for one in series(page) {
        let value = one.value;
        look.hands.note(&one);
        match one.name {
            names::ROWS_RECEIVED => {
                look.counters.received += value;
                look.table(&one, |table| table.received += value as u64);
            }
            names::ROWS_WRITTEN => {
                look.counters.written += value;
                look.table(&one, |table| table.written += value as u64);
            }
            names::COPY_ROWS => {
                look.counters.written += value;
                look.table(&one, |table| table.copied += value as u64);
            }
            names::EVENTS_SENT => look.counters.events += value,
            names::MEMORY => look.memory = value,
            names::MEMORY_BUDGET => look.now.memory_budget_bytes = value as u64,
            names::READER if value > 0.0 => look.now.reader = one.label("reader").unwrap_or_default(),
            names::PAUSED if value > 0.0 && one.label("what").as_deref() == Some("pipeline") => look.paused = true,
            names::QUEUE_FRONT => look.now.queue_fronts.extend(one.label("queue").map(|queue| (queue, value))),
            names::WORKER_IN_HAND => look.now.in_hand.extend(one.label("worker").map(|worker| (worker, value as u64))),
            name if name.strip_suffix("_bucket") == Some(names::LATENCY) => {
                let bound = one.label("le").and_then(|bound| bound.parse().ok());
                look.counters.latency.extend(bound.map(|bound: f64| (bound, value)));
            }
            _ => {}
        }
    }
    look.counters.latency.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    look
}

impl Look {
    fn table(&mut self, series: &Series<'_>, change: impl FnOnce(&mut TableNow)) {
        if let Some(table) = series.label("table") {
            change(self.now.tables.entry(table).or_default());
        }
    }
}

fn point(before: &Counters, look: &Look, seconds: f64, account: &Account) -> Point {
    let after = &look.counters;
    let rate = |before: f64, after: f64| if seconds > 0.0 { (after - before).max(0.0) / seconds } else { 0.0 };
    let taken = difference(&before.latency, &after.latency);
    Point {
        number: 0,
        time: telemetry::seconds(SystemTime::now()),
        lag_seconds: account.lag_seconds,
        lag_bytes: account.lag_bytes,
        received_per_second: rate(before.received, after.received),
        written_per_second: rate(before.written, after.written),
        events_per_second: rate(before.events, after.events),
        latency_p50_seconds: quantile(&taken, 0.5),
        latency_p95_seconds: quantile(&taken, 0.95),
        memory_bytes: look.memory as u64,
        streaming: account.streaming,
        paused: look.paused,
    }
}

/// How many came meanwhile, by bound, as [`Counters::latency`] has it.
fn difference(before: &[(f64, f64)], after: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let was = |bound: f64| before.iter().find(|(other, _)| *other == bound).map_or(0.0, |(_, count)| *count);
    after.iter().map(|(bound, count)| (*bound, count - was(*bound))).collect()
}

/// The value below which this share of them lies: within a bucket as if they lay evenly in it, as Prometheus reckons; those
/// beyond the last bound count as that.
fn quantile(buckets: &[(f64, f64)], share: f64) -> Option<f64> {
    let all = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let (mut lower, mut below) = (0.0, 0.0);
    for (bound, count) in buckets {
        if *count >= all * share {
            let inside = count - below;
            let part = if inside > 0.0 { (all * share - below) / inside } else { 1.0 };
            return Some(if bound.is_finite() { lower + (bound - lower) * part } else { lower });
        }
        (lower, below) = (*bound, *count);
    }
    None
}

#[cfg(test)]
mod tests;
