//! A target as the lane keeps it.

use super::Limits;
use crate::{
    clickhouse::{
        batch::Batch,
        block::Block,
        job::Job,
        table::{Feed, Plan, Table},
    },
    event::{Lsn, Version},
    telemetry::{names, tables},
};
use metrics::Counter;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use tokio::time::Instant;

/// The share of the longest delay for which a batch rests before it is sent for no other reason
/// than that nothing else of its table is: a tenth of a second by default.
const REST: u32 = 10;

/// A target that the lane feeds from its beginning on.
#[derive(Debug)]
pub struct Member {
    /// The table and its target.
    pub table: Arc<Table>,
    /// What its stream begins with.
    pub feed: Feed,
    /// Whether its changes are dropped.
    pub frozen: bool,
    /// Whether it is filled beside the live one.
    pub fresh: bool,
    /// The heaps of the source when they were last looked at, with their filenodes.
    pub heaps: BTreeMap<u32, u64>,
}

/// A target as the lane keeps it.
pub(super) struct Entry {
    pub(super) table: Arc<Table>,
    pub(super) feed: Feed,
    pub(super) heaps: BTreeMap<u32, u64>,
    /// `None` until a relation was announced that fits the target.
    pub(super) plan: Option<Plan>,
    pub(super) batch: Option<Batch>,
    /// What the batch held when it was last looked at.
    pub(super) bytes: usize,
    /// The block of the next batch, if there is one that was sent.
    pub(super) spare: Option<Block>,
    /// What is to be done, each with the table in the shape that it had then.
    pub(super) queue: VecDeque<(Arc<Table>, Job)>,
    pub(super) running: usize,
    /// The statements with which a job that runs gives names to columns.
    pub(super) naming: String,
    pub(super) exclusive: bool,
    pub(super) keyed: bool,
    pub(super) frozen: bool,
    pub(super) fresh: bool,
    /// The position of the last look at the catalog.
    pub(super) looked_at: Lsn,
    /// The last transaction in which the source told of its shape, unless the catalog was read for it.
    pub(super) told: Option<u32>,
    /// Whether the source has told of its shape in this session.
    pub(super) heard: bool,
    pub(super) received: Counter,
    /// The record of the last entry of a changelog, and that entry's number in it.
    last: (Version, u64),
}

/// Counts the changes that are received of a table.
pub(super) fn received(table: &Table) -> Counter {
    metrics::counter!(names::ROWS_RECEIVED, "table" => tables::counted(&table.spec.full_name()))
}

impl Entry {
    pub(super) fn new(member: Member) -> Self {
        let Member { table, feed, frozen, fresh, heaps } = member;
        // What goes into a fresh table was received for the live one already.
        let received = match fresh {
            false => received(&table),
            true => Counter::noop(),
        };
        Self {
            table,
            feed,
            heaps,
            plan: None,
            batch: None,
            bytes: 0,
            spare: None,
            queue: VecDeque::new(),
            running: 0,
            naming: String::new(),
            exclusive: false,
            keyed: false,
            frozen,
            fresh,
            looked_at: Lsn::ZERO,
            told: None,
            heard: false,
            received,
            last: (Version::COPY, 0),
        }
    }

    /// The number of the next change's first entry in a changelog: an update has two entries, and a
    /// record may have many changes.
    pub(super) fn ordinal(&mut self, version: Version) -> u64 {
        if self.table.spec.changelog {
            self.last = if self.last.0 == version { (version, self.last.1 + 2) } else { (version, 0) };
        }
        self.last.1
    }

    pub(super) fn push(&mut self, job: Job) {
        self.queue.push_back((Arc::clone(&self.table), job));
    }

    /// The statements with which columns get names that ClickHouse may not show yet.
    pub(super) fn naming(&self) -> String {
        let queued = self.queue.iter().map(|(table, job)| job.naming(table));
        std::iter::once(self.naming.clone()).chain(queued).collect()
    }

    /// Whether nothing of it is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.running == 0 && self.queue.is_empty()
    }
}

/// The targets of one source table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Route {
    /// `None` if that belongs to another source, which is gone.
    pub(super) live: Option<usize>,
    pub(super) fresh: Option<usize>,
}

impl Route {
    pub(super) fn members(self) -> impl Iterator<Item = usize> {
        [self.live, self.fresh].into_iter().flatten()
    }
}

/// When a batch is to be sent because of its age. Who is behind gains more by fewer inserts than by
/// earlier ones.
pub(super) fn due(limits: &Limits, behind: bool, entry: &Entry, batch: &Batch) -> Instant {
    let rest = if entry.is_idle() && !behind { limits.max_delay / REST } else { limits.max_delay };
    batch.opened + rest
}
