//! What every test stands on: servers, databases, the daemon, the oracle.
//!
//! Nothing in here that judges uses walhouse's own code: a mistake of the daemon must not be repeated by it.
//! Tests use a multi-threaded runtime, because starting and stopping a server blocks its thread.

// The scenarios come one by one; what one of them will need may wait here for it.
#![allow(dead_code, unused_imports)]

mod browser;
mod certificates;
mod chunks;
mod clickhouse;
mod daemon;
mod database;
mod equal;
mod front;
mod http;
mod load;
mod postgres;
mod process;
mod prometheus;
mod proxy;
mod recorder;
mod runbook;
mod sqs;
mod stream;
mod toml;
mod watch;

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

pub(crate) use browser::Browser;
pub(crate) use certificates::{Authority, Pair, self_signed};
pub(crate) use chunks::{chunks, hold_copy};
pub(crate) use clickhouse::{Ch, ClickHouse, ClickHouseOptions, user};
pub(crate) use daemon::{Daemon, Exit, walhouse, write_config};
pub(crate) use database::TestDb;
pub(crate) use equal::{assert_equal, assert_equal_within, compared, difference};
pub(crate) use front::Front;
pub(crate) use http::{Response, exchange, get, put};
pub(crate) use load::{LOAD_TABLES, Load};
pub(crate) use postgres::{Pg, Postgres, PostgresOptions};
pub(crate) use process::{Disk, free_port, is_root, processor_seconds, signal, thread_seconds};
pub(crate) use prometheus::{Prometheus, program};
pub(crate) use proxy::Proxy;
pub(crate) use recorder::{Deed, Recorder};
pub(crate) use runbook::{NOT_TESTED, Running, Step, command, done, fenced, said, sections, steps, take};
pub(crate) use sqs::{Received, Sqs};
pub(crate) use stream::{FrozenStream, Past, assert_settled_equal, settled, stopped};
pub(crate) use watch::{Watch, confirmed, stored};

/// Tries until `attempt` succeeds, and fails the test with its last error once `timeout` has passed.
pub(crate) async fn eventually<T>(timeout: Duration, mut attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    let (begun, deadline) = (Instant::now(), Instant::now() + timeout);
    let mut last = "no attempt came to an end".to_owned();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, attempt()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(error)) => last = error,
            Err(_elapsed) => panic!("not within {timeout:?}, and the attempt hangs; the last error was: {last}"),
        }
        assert!(Instant::now() < deadline, "not within {timeout:?}: {last}");
        // What takes long may be seen a little later.
        let pause = (begun.elapsed() / 8).clamp(Duration::from_millis(10), Duration::from_millis(250));
        tokio::time::sleep(pause).await;
    }
}

/// A random generator whose seed is printed, and taken from `WALHOUSE_SEED` to repeat a run.
pub(crate) fn seeded_rng() -> StdRng {
    let seed = match std::env::var("WALHOUSE_SEED") {
        Ok(text) => text.parse().expect("WALHOUSE_SEED is a whole number"),
        Err(_unset) => rand::random(),
    };
    println!("repeat with WALHOUSE_SEED={seed}");
    StdRng::seed_from_u64(seed)
}
