//! One long run: `make soak`. The daemon lives through all of it, beside a mixed load and one fault after the other, so that
//! what grows shows: memory, file descriptors, threads, the lag.
//!
//! In the end there is the oracle, as after every run, and what the process held is judged: what it holds in the last third,
//! once it has warmed up, is what it held in the first.

mod plot;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::RngExt;
use serde::Serialize;
use tokio::time::sleep;

use crate::oracle::Verdict;
use crate::report::directory;
use crate::scenario::{ENDURED, OPEN_FOR_ALL};
use crate::stage::{Servers, Stage};
use crate::state::commit;
use crate::support::Pg;

const INTERVAL: Duration = Duration::from_secs(5);
/// Between two faults, in milliseconds.
const CALM: std::ops::Range<u64> = 10_000..30_000;
/// A part of the time in which it may still grow: pools, caches, the allocator's arenas.
const WARM_UP: f64 = 1.0 / 6.0;
/// What of the memory may be chance.
const SLACK: u64 = 12 << 20;

/// What the process held at one moment.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sample {
    /// Since the beginning.
    pub(crate) seconds: f64,
    /// Resident memory without what it shares with files.
    pub(crate) anonymous_bytes: u64,
    pub(crate) resident_bytes: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
    /// WAL that the slot holds back. Nothing while PostgreSQL is away.
    pub(crate) lag_bytes: Option<u64>,
    /// Of the load, so far.
    pub(crate) commits: u64,
}

/// A fault, and when.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Moment {
    pub(crate) seconds: f64,
    pub(crate) what: String,
}

/// All of it, for the plot and for whoever wants to look again.
#[derive(Debug, Serialize)]
pub(crate) struct Course {
    pub(crate) commit: String,
    pub(crate) seed: u64,
    pub(crate) samples: Vec<Sample>,
    pub(crate) faults: Vec<Moment>,
    pub(crate) rows: u64,
    pub(crate) events: u64,
}

/// Runs for so many minutes, and returns what was found.
pub(crate) async fn run(minutes: u64, seed: u64) -> Vec<String> {
    let servers = tokio::task::block_in_place(Servers::start);
    let mut stage = Stage::new(&servers, 0, seed, OPEN_FOR_ALL, false).await;
    stage.open().await;
    let watch = Watch::start(&mut stage);
    let (began, end) = (Instant::now(), Duration::from_secs(60 * minutes));
    let mut faults = Vec::new();
    while began.elapsed() < end {
        stage.pass(CALM).await;
        let (name, play) = ENDURED[stage.rng.random_range(0..ENDURED.len())];
        println!("{:>6.0} s  {name}  {}", began.elapsed().as_secs_f64(), watch.last());
        faults.push(Moment { seconds: began.elapsed().as_secs_f64(), what: name.to_owned() });
        play(&mut stage).await;
        stage.mend();
        assert_eq!(stage.daemon().ended_by_itself(), None, "walhouse has ended by itself");
    }
    stage.pass(CALM).await;
    let samples = watch.finish().await;
    let Verdict { rows, events, mut found, .. } = stage.close().await;
    let course = Course { commit: commit().to_owned(), seed, samples, faults, rows, events };
    found.extend(judged(&course.samples));
    write(&course, &directory());
    found
}

fn write(course: &Course, to: &Path) {
    fs::create_dir_all(to).expect("the directory of the results can be made");
    let json = serde_json::to_string(course).expect("a course is JSON");
    fs::write(to.join("soak.json"), json).expect("the course can be written");
    fs::write(to.join("soak.svg"), plot::svg(course)).expect("the plot can be written");
    println!("{} and soak.svg beside it", to.join("soak.json").display());
}

/// Looks at the process until it is asked what it saw.
struct Watch {
    goes_on: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    fn start(stage: &mut Stage) -> Self {
        let (goes_on, samples) = (Arc::new(AtomicBool::new(true)), Arc::<Mutex<Vec<Sample>>>::default());
        let (pid, commits) = (stage.daemon().pid(), stage.load().counter());
        let pg = Pg::new(stage.db.postgres.clone(), &stage.db.name);
        let lag = format!(
            "SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
            stage.db.name
        );
        let (looks, seen, began) = (Arc::clone(&goes_on), Arc::clone(&samples), Instant::now());
        let task = tokio::spawn(async move {
            while looks.load(Ordering::Relaxed) {
                let lag = pg.try_query(&lag).await.ok().and_then(|rows| rows.first()?[0].as_deref()?.parse().ok());
                let sample = Sample { seconds: began.elapsed().as_secs_f64(), lag_bytes: lag, ..look(pid, &commits) };
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                sleep(INTERVAL).await;
            }
        });
        Self { goes_on, samples, task }
    }

    /// In words.
    fn last(&self) -> String {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.last().map_or_else(String::new, |last| {
            format!(
                "{} MiB anonymous, {} descriptors, {} threads, {} KiB behind, {} commits",
                last.anonymous_bytes >> 20,
                last.descriptors,
                last.threads,
                last.lag_bytes.unwrap_or_default() >> 10,
                last.commits
            )
        })
    }

    async fn finish(self) -> Vec<Sample> {
        self.goes_on.store(false, Ordering::Relaxed);
        self.task.await.expect("who looks does not panic");
        std::mem::take(&mut self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn look(pid: u32, commits: &AtomicU64) -> Sample {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("walhouse is running");
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells it");
        line.split_whitespace().next().and_then(|text| text.parse::<u64>().ok()).expect("it is a number")
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("walhouse is running").count() as u64;
    Sample {
        seconds: 0.0,
        anonymous_bytes: number("RssAnon:") << 10,
        resident_bytes: number("VmRSS:") << 10,
        descriptors,
        threads: number("Threads:"),
        lag_bytes: None,
        commits: commits.load(Ordering::Relaxed),
    }
}

/// What has grown.
fn judged(samples: &[Sample]) -> Vec<String> {
    let end = samples.last().map_or(0.0, |last| last.seconds);
    let warm: Vec<_> = samples.iter().filter(|sample| sample.seconds >= end * WARM_UP).collect();
    let third = warm.len() / 3;
    let grown = |what: &str, slack: u64, of: fn(&Sample) -> u64| {
        let median = |part: &[&Sample]| {
            let mut values: Vec<_> = part.iter().map(|sample| of(sample)).collect();
            values.sort_unstable();
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        let (first, last) = (median(&warm[..third]), median(&warm[warm.len() - third..]));
        println!("{what}: {first} in the first third once it is warm, {last} in the last (medians)");
        (last > first + first / 10 + slack).then(|| format!("{what} grew from {first} to {last}"))
    };
    let memory = grown("anonymous memory", SLACK, |sample| sample.anonymous_bytes);
    let descriptors = grown("file descriptors", 3, |sample| sample.descriptors);
    let threads = grown("threads", 1, |sample| sample.threads);
    [memory, descriptors, threads].into_iter().flatten().collect()
}

#[test]
fn what_grows_is_seen_and_what_swings_is_not() {
    let sample = |at: u64, descriptors: u64| Sample {
        seconds: at as f64,
        anonymous_bytes: (40 + at % 7) << 20,
        resident_bytes: 0,
        descriptors,
        threads: 4,
        lag_bytes: None,
        commits: at,
    };
    let flat: Vec<_> = (0..600).map(|at| sample(at, 20 + at % 5)).collect();
    assert!(judged(&flat).is_empty(), "{:?}", judged(&flat));
    let leaking: Vec<_> = (0..600).map(|at| sample(at, 20 + at / 50)).collect();
    assert!(judged(&leaking).iter().any(|found| found.starts_with("file descriptors grew")), "{:?}", judged(&leaking));
}
