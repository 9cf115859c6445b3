//! The jobs of the lane: what is queued for each target, what runs, what has ended.

use super::{
    MAX_RUNNING, Sink,
    entry::{Entry, due},
};
use crate::{
    clickhouse::{
        batch::Batch,
        job::{Done, Failure, Job},
        state::TableStatus,
        table::ANEW,
    },
    telemetry::names,
};
use std::{
    cmp::Reverse,
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};
use tokio::time::Instant;

/// Bytes of WAL, from which on larger batches are worth more than early ones: well above what a calm
/// load writes between two looks at the head.
const BEHIND: u64 = 16 << 20;

impl Sink {
    /// Freezes a target: its open entries close when that is stored, and no earlier. A fresh one is
    /// given up.
    pub(super) fn freeze(&mut self, index: usize, status: TableStatus, mut rows: Vec<u64>) {
        let Some(entry) = self.entries[index].as_mut() else {
            rows.into_iter().for_each(|row| self.ledger.close(row));
            return;
        };
        if !entry.frozen {
            let table = entry.table.spec.full_name();
            match &status {
                TableStatus::Stopped(reason) => tracing::error!(table, reason, "a table stops; the others go on"),
                TableStatus::Resync(reason) => tracing::warn!(table, reason, "a table is copied anew"),
                _ => {}
            }
        }
        entry.frozen = true;
        if let Some(batch) = entry.batch.take() {
            rows.push(batch.first_row);
            self.open.remove(&index);
            self.open_bytes -= std::mem::take(&mut entry.bytes);
        }
        // What is queued ahead of it may still go its way, unless it is its cause.
        entry.push(if entry.fresh { Job::Abandon { status, rows } } else { Job::Freeze { status, rows } });
        self.queued.insert(index);
    }

    pub(super) fn seal(&mut self, index: usize) {
        let Some(entry) = self.entries[index].as_mut() else { return };
        if let Some(batch) = entry.batch.take() {
            self.open.remove(&index);
            self.open_bytes -= std::mem::take(&mut entry.bytes);
            let bytes = batch.bytes_when_sent();
            self.sealed_bytes += bytes;
            entry.push(Job::Insert { batch: Box::new(batch), bytes });
            self.queued.insert(index);
        }
    }

    pub(super) fn seal_all(&mut self) {
        self.open.clone().into_iter().for_each(|index| self.seal(index));
    }

    /// Closes batches that are old enough, those first that have been so for longest.
    pub(super) fn seal_due(&mut self) {
        let (now, behind) = (Instant::now(), self.is_behind());
        let due = |(index, entry, batch): (usize, &Entry, &Batch)| (due(&self.limits, behind, entry, batch), index);
        let mut chosen: Vec<_> = self.open_batches().map(due).filter(|(due, _)| *due <= now).collect();
        chosen.sort_unstable();
        chosen.into_iter().take(self.vacant()).for_each(|(_, index)| self.seal(index));
    }

    /// Closes the batches that hold most.
    pub(super) fn seal_largest(&mut self) {
        let mut chosen: Vec<_> = self.open_batches().map(|(index, entry, _)| (Reverse(entry.bytes), index)).collect();
        chosen.sort_unstable();
        chosen.into_iter().take(self.vacant()).for_each(|(_, index)| self.seal(index));
    }

    fn open_batches(&self) -> impl Iterator<Item = (usize, &Entry, &Batch)> {
        let entries = self.open.iter().filter_map(|&index| self.entries[index].as_ref().map(|entry| (index, entry)));
        entries.filter_map(|(index, entry)| entry.batch.as_ref().map(|batch| (index, entry, batch)))
    }

    /// How many more jobs may be queued behind those that run, besides the ones that have to be.
    fn vacant(&self) -> usize {
        let next = self.queued.iter().filter(|&&index| self.may_start(index)).count();
        MAX_RUNNING.saturating_sub(next)
    }

    /// Starts what may start, of each target in turn.
    pub(super) fn start_jobs(&mut self) {
        let mut may_more = true;
        while may_more && self.running.len() < MAX_RUNNING {
            may_more = false;
            let behind = self.queued.range(self.last_begun + 1..).chain(self.queued.range(..=self.last_begun));
            for index in behind.copied().collect::<Vec<_>>() {
                if self.running.len() < MAX_RUNNING && self.may_start(index) {
                    self.start(index);
                    may_more = true;
                }
            }
        }
    }

    fn start(&mut self, index: usize) {
        let Some(entry) = self.entries[index].as_mut() else { return };
        let Some((table, job)) = entry.queue.pop_front() else { return };
        entry.running += 1;
        entry.exclusive = job.is_exclusive();
        entry.naming = job.naming(&table);
        if entry.queue.is_empty() {
            self.queued.remove(&index);
        }
        self.last_begun = index;
        let shared = Arc::clone(&self.shared);
        self.running.spawn(async move { (index, job.run(&shared, &table).await) });
    }

    fn may_start(&self, index: usize) -> bool {
        let Some(entry) = &self.entries[index] else { return false };
        let Some((_, job)) = entry.queue.front() else { return false };
        let others = match job {
            // Nothing of the table that it replaces is on its way any more.
            Job::Swap { replaced, .. } => {
                replaced.and_then(|live| self.entries[live].as_ref()).is_none_or(Entry::is_idle)
            }
            _ => true,
        };
        !entry.exclusive && others && (entry.running == 0 || !job.is_exclusive())
    }

    pub(super) fn ended(&mut self, index: usize, done: Done) -> Result<(), Failure> {
        self.sealed_bytes = self.sealed_bytes.saturating_sub(done.bytes);
        if let Some(block) = done.sent {
            self.spares.give(block);
        }
        if let Some(entry) = self.entries[index].as_mut() {
            entry.running -= 1;
            entry.exclusive = false;
            entry.naming.clear();
        }
        if let Some(replaced) = done.replaced {
            self.entries[replaced] = None;
        }
        match done.result {
            Ok(()) => done.rows.into_iter().for_each(|row| self.ledger.close(row)),
            Err(failure @ (Failure::Table(_) | Failure::Anew(_))) => {
                // Nothing that is queued behind a refused batch goes in. What concerns the target's name
                // has to be done all the same.
                let mut rows = done.rows;
                if let Some(entry) = self.entries[index].as_mut() {
                    let queue = std::mem::take(&mut entry.queue);
                    let (names, dropped): (VecDeque<_>, VecDeque<_>) =
                        queue.into_iter().partition(|(_, job)| matches!(job, Job::Swap { .. } | Job::Rename { .. }));
                    entry.queue = names;
                    for (_, job) in dropped {
                        self.sealed_bytes = self.sealed_bytes.saturating_sub(job.bytes());
                        rows.extend(job.rows());
                    }
                }
                let status = match failure {
                    Failure::Anew(reason) => {
                        self.count_copied(index);
                        TableStatus::Resync(reason)
                    }
                    failure => TableStatus::Stopped(format!("{failure}. {ANEW}")),
                };
                self.freeze(index, status, rows);
            }
            Err(failure) => return Err(failure),
        }
        Ok(())
    }

    /// Whether much WAL lies between what was handed over and the source's head.
    fn is_behind(&self) -> bool {
        self.shared.head.borrow().since(self.position) > BEHIND
    }

    pub(super) fn publish(&mut self) {
        // With the batches, twice what those may hold by themselves: the whole budget, of which a copy takes what they leave.
        self.spares.shrink((2 * self.limits.budget).saturating_sub(self.open_bytes + self.sealed_bytes));
        self.shared.lane_bytes.store(self.held_bytes(), Ordering::Relaxed);
        let (durable, times) = self.ledger.settle();
        self.traced.durable(durable);
        self.receiver.durable.send_if_modified(|position| {
            let rises = durable > *position;
            *position = durable.max(*position);
            rises
        });
        for time in times {
            // A clock that runs behind the source's gives no negative latency.
            metrics::histogram!(names::LATENCY).record(time.elapsed().unwrap_or_default().as_secs_f64());
        }
    }

    /// When a batch has to be closed for its age.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let behind = self.is_behind();
        let due = |(_, entry, batch): (usize, &Entry, &Batch)| due(&self.limits, behind, entry, batch);
        if self.vacant() > 0 { self.open_batches().map(due).min() } else { None }
    }

    /// Bytes of all batches, and of the blocks for the next ones.
    fn held_bytes(&self) -> usize {
        self.open_bytes + self.sealed_bytes + self.spares.bytes()
    }

    /// Whether batches leave room for more to be taken from the source.
    pub(super) fn has_room(&self) -> bool {
        self.open_bytes + self.sealed_bytes < self.limits.budget
    }

    pub(super) fn measure(&self) {
        metrics::gauge!(names::MEMORY).set(self.held_bytes() as f64);
        metrics::gauge!(names::BACK_PRESSURE).set(if self.has_room() { 0.0 } else { 1.0 });
        // A transaction that is still coming in has committed, and may take long; what a replay delivers again was on time.
        let open = self.transaction.filter(|open| open.commit >= self.shared.repairing).map(|open| open.time);
        let age = self.ledger.oldest().or(open).and_then(|time| time.elapsed().ok()).unwrap_or_default();
        metrics::gauge!(names::LAG_SECONDS).set(age.as_secs_f64());
        self.shared.status.update(|account| account.lag_seconds = age.as_secs_f64());
    }
}
