//! What the server is told to be done with: the stored checkpoint, less what is kept to be delivered again.
//!
//! Nothing else is ever told. It never falls below what the slot had acknowledged already: older servers would believe it,
//! and have WAL and catalogs for it no more.

use crate::event::Lsn;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::watch;

/// A position that may be acknowledged, and rises.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    stored: watch::Receiver<Lsn>,
    window: u64,
    floor: Lsn,
    limit: Arc<AtomicU64>,
}

/// What holds it back until it is released: a session that ends before that has acknowledged nothing beyond.
#[derive(Debug)]
pub struct Hold(Arc<AtomicU64>);

impl Hold {
    /// Lets it rise as far as what is stored.
    pub fn release(self) {
        self.0.store(u64::MAX, Ordering::SeqCst);
    }
}

impl Acknowledged {
    /// `window` bytes of WAL behind what is stored, and not below `floor`.
    pub fn new(stored: watch::Receiver<Lsn>, window: u64, floor: Lsn) -> Self {
        Self { stored, window, floor, limit: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// Nothing beyond `limit` is acknowledged until the hold is released, whatever is stored.
    pub fn hold(&self, limit: Lsn) -> Hold {
        self.limit.store(limit.0, Ordering::SeqCst);
        Hold(Arc::clone(&self.limit))
    }

    /// What may be acknowledged now.
    pub fn position(&self) -> Lsn {
        let stored = self.stored.borrow().0.saturating_sub(self.window);
        Lsn(stored.min(self.limit.load(Ordering::SeqCst))).max(self.floor)
    }

    /// Resolves when more is stored than when this was asked for last. Cancel-safe.
    ///
    /// # Errors
    /// When nothing will be any more.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.stored.changed().await
    }
}

/// All that is stored.
impl From<watch::Receiver<Lsn>> for Acknowledged {
    fn from(stored: watch::Receiver<Lsn>) -> Self {
        Self::new(stored, 0, Lsn::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn it_stays_behind_by_the_window_and_never_falls_below_where_the_slot_stood() {
        let (store, stored) = watch::channel(Lsn(1000));
        let acknowledged = Acknowledged::new(stored.clone(), 300, Lsn(900));
        assert_eq!(acknowledged.position(), Lsn(900));
        store.send_replace(Lsn(1500));
        assert_eq!(acknowledged.position(), Lsn(1200));
        assert_eq!(Acknowledged::from(stored).position(), Lsn(1500));
    }

    #[tokio::test]
    async fn it_is_waited_for_until_more_is_stored() {
        let (store, stored) = watch::channel(Lsn(1000));
        let mut acknowledged = Acknowledged::new(stored, 0, Lsn::ZERO);
        assert!(acknowledged.changed().now_or_never().is_none());
        store.send_replace(Lsn(2000));
        assert!(acknowledged.changed().await.is_ok());
        drop(store);
        assert!(acknowledged.changed().await.is_err());
    }

    #[test]
    fn a_replay_holds_it_back_until_it_is_done() {
        let (store, stored) = watch::channel(Lsn(1000));
        let acknowledged = Acknowledged::new(stored, 0, Lsn(100));
        let hold = acknowledged.hold(Lsn(400));
        store.send_replace(Lsn(2000));
        assert_eq!(acknowledged.clone().position(), Lsn(400));
        hold.release();
        assert_eq!(acknowledged.position(), Lsn(2000));
    }
}
