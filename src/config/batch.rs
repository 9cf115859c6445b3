//! `[batch]` and `[memory]`: when a batch is full, and how much may be in flight.

use super::{
    value::{ByteSize, Timespan, Unrepresentable},
    within,
};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, time::Duration};

/// `[batch]`: a batch is sent when the first of these is reached.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// A change waits at most this long for its batch.
    ///
    /// Lower it for fresher rows, raise it for fewer and larger parts. It is the upper bound, not the usual wait: a
    /// batch also leaves when nothing more is coming.
    pub max_delay: Timespan,
    /// A table's batch is sent earlier when it has this many rows.
    ///
    /// Hardly ever: `max_bytes` is reached first by all but the narrowest rows.
    pub max_rows: usize,
    /// A table's batch is sent earlier when it has this many bytes.
    ///
    /// Raise it, and `memory.budget` with it, for fewer parts while far behind; measured, that gained little.
    pub max_bytes: ByteSize,
    /// What becomes of a value that its column can not hold: the row is kept aside in `_dead_letters`, the table stops,
    /// or NULL or the nearer end of the range is stored in its place. A column of the key is never changed.
    ///
    /// Choose `"fail"` where a missing row is worse than a table that stands still, `"null"` or `"clamp"` where the row
    /// matters more than the value.
    pub unrepresentable: Unrepresentable,
}

/// `[memory]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// Changes and blocks in flight; at least three times `batch.max_bytes`. The process needs some memory beside it.
    ///
    /// Raise it with hundreds of tables: inserts are larger and fewer while far behind.
    pub budget: ByteSize,
}

/// How many batches the budget must hold: one that fills, one that is encoded, one on its way.
const BATCHES_IN_FLIGHT: u64 = 3;

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            max_delay: Timespan(Duration::from_secs(1)),
            max_rows: 500_000,
            max_bytes: ByteSize::mib(8),
            unrepresentable: Unrepresentable::default(),
        }
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { budget: ByteSize::mib(32) }
    }
}

type Refused = (Cow<'static, str>, String);

impl BatchConfig {
    pub(super) fn check(&self, memory: &MemoryConfig) -> Result<(), Refused> {
        let at = |key: &'static str| move |message| (Cow::from(key), message);
        let (shortest, longest) = (Timespan(Duration::from_millis(1)), Timespan(Duration::from_secs(300)));
        within(self.max_delay, shortest, longest).map_err(at("batch.max_delay"))?;
        within(self.max_rows, 1, 100_000_000).map_err(at("batch.max_rows"))?;
        within(self.max_bytes, ByteSize(64 << 10), ByteSize::mib(1024)).map_err(at("batch.max_bytes"))?;
        let needed = ByteSize(self.max_bytes.0 * BATCHES_IN_FLIGHT);
        if memory.budget >= needed {
            return Ok(());
        }
        Err(at("memory.budget")(format!(
            "{} is too small for batch.max_bytes = {}: {BATCHES_IN_FLIGHT} batches are in flight, so give at least \
             {needed}, or lower batch.max_bytes",
            memory.budget, self.max_bytes
        )))
    }
}
