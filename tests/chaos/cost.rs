//! The processor time that a run takes, and who takes it: what a campaign can afford follows from it, whatever else the
//! machine does.

use std::fmt;
use std::fs;
use std::ops::Sub;

use serde::{Deserialize, Serialize};

use crate::support::thread_seconds;

/// Seconds of one processor.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Cost {
    pub(crate) daemon: f64,
    pub(crate) postgres: f64,
    pub(crate) clickhouse: f64,
    pub(crate) sqs: f64,
    pub(crate) harness: f64,
}

impl Cost {
    pub(crate) fn sum(&self) -> f64 {
        self.daemon + self.postgres + self.clickhouse + self.sqs + self.harness
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { daemon, postgres, clickhouse, sqs, harness } = self;
        let sum = self.sum();
        write!(
            to,
            "{sum:.1} s of processors: walhouse {daemon:.1}, PostgreSQL {postgres:.1}, ClickHouse {clickhouse:.1}, SQS {sqs:.1}, \
             harness {harness:.1}"
        )
    }
}

impl Sub for Cost {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            daemon: self.daemon - before.daemon,
            postgres: self.postgres - before.postgres,
            clickhouse: self.clickhouse - before.clickhouse,
            sqs: self.sqs - before.sqs,
            harness: self.harness - before.harness,
        }
    }
}

/// What the threads of this job have taken so far: all that run have the name of the one that asks.
pub(crate) fn of_this_job() -> f64 {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let tasks = fs::read_dir("/proc/self/task").expect("a process has threads").flatten();
    let of_job = tasks.map(|task| task.path()).filter(|task| {
        // One that has ended meanwhile has no name any more.
        fs::read_to_string(task.join("comm")).is_ok_and(|own| own.trim_end() == name)
    });
    of_job.map(|task| thread_seconds(&task.join("stat"))).sum()
}
