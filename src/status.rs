//! What the daemon says of itself while it runs: one place that the pipeline writes and `/readyz`
//! reads.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The daemon's own account of where it is.
#[derive(Debug, Default)]
pub struct Status {
    inner: Mutex<Account>,
}

/// A copy of the account.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// What it is doing, for people: "starting", "waiting for …", "streaming", "stopping".
    pub phase: String,
    /// Whether it reads the slot.
    pub streaming: bool,
    /// Tables whose initial copy is not complete.
    pub copying: usize,
    /// Tables that are stopped.
    pub stopped: usize,
    /// Whether the first look at the tables has ended, so that `copying` means something.
    pub reconciled: bool,
    /// The age of the oldest commit that is received and not durable, in seconds.
    pub lag_seconds: f64,
    /// WAL of the source that is not durable yet, in bytes.
    pub lag_bytes: u64,
    /// WAL that a replay has still to deliver again, in bytes, before what is new; `None` without one.
    pub replaying: Option<u64>,
}

impl Status {
    /// Changes the account.
    pub fn update(&self, change: impl FnOnce(&mut Account)) {
        change(&mut self.lock());
    }

    /// The account as it is now.
    pub fn account(&self) -> Account {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
