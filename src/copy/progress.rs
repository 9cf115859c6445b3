//! How far a copy is, for people.

use crate::telemetry::{names, tables};
use std::time::{Duration, Instant};

/// How often progress is logged.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// What has been copied of a table, in blocks.
pub(super) struct Progress {
    pub(super) table: String,
    pub(super) blocks: u64,
    pub(super) done_before: u64,
    pub(super) done: u64,
    rows: u64,
    begun: Instant,
    said: Instant,
}

impl Progress {
    pub(super) fn new(table: String, blocks: u64) -> Self {
        let now = Instant::now();
        Self { table, blocks, done_before: 0, done: 0, rows: 0, begun: now, said: now }
    }

    pub(super) fn end(&self) {
        self.measure(1.0);
        let seconds = self.begun.elapsed().as_secs_f64();
        tracing::info!(table = self.table, rows = self.rows, seconds = round(seconds), "table copied");
    }

    fn measure(&self, share: f64) {
        if let Some(table) = tables::measured(&self.table) {
            metrics::gauge!(names::COPY_PROGRESS, "table" => table).set(share.min(1.0));
        }
    }

    pub(super) fn add(&mut self, blocks: u64, rows: u64) {
        self.done += blocks;
        self.rows += rows;
        let share = if self.blocks == 0 { 1.0 } else { self.done as f64 / self.blocks as f64 };
        self.measure(share);
        if self.said.elapsed() < REPORT_INTERVAL {
            return;
        }
        self.said = Instant::now();
        let seconds = self.begun.elapsed().as_secs_f64();
        let per_block = seconds / (self.done - self.done_before).max(1) as f64;
        let left = self.blocks.saturating_sub(self.done) as f64 * per_block;
        tracing::info!(
            table = self.table,
            rows = self.rows,
            percent = round(share * 100.0),
            rows_per_second = (self.rows as f64 / seconds) as u64,
            seconds_left = round(left),
            "copying"
        );
    }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
