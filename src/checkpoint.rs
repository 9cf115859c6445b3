//! The one number that comes back: from the lanes' durable positions to the stored checkpoint,
//! and only from there to PostgreSQL.
//!
//! Durable before acknowledged: what is published here, and what the source then reports as
//! flushed, was stored first; what is stored was durable in every lane before. The checkpoint
//! only ever moves forward, and only to positions that a lane may report: the end of a commit, an
//! idle mark, the bound of a finished window.

use crate::event::Lsn;
use std::{future::Future, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The least time between two stored checkpoints: one insert each is cheap, but not free. Well
/// below the second within which acknowledgement follows durability.
const INTERVAL: Duration = Duration::from_millis(250);

/// Where checkpoints are kept.
pub trait CheckpointStore {
    /// What can go wrong.
    type Error;

    /// Stores `lsn`, durably, as the position from which a restart resumes.
    ///
    /// Retries what is transient for as long as it takes, because nothing may overtake it.
    fn save(&mut self, lsn: Lsn) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Stores the minimum of the lanes' durable positions whenever it rises, then publishes it.
///
/// Ends when `stop` is cancelled, after having stored what was durable by then.
///
/// # Errors
/// What the store says is definite.
pub async fn run<S: CheckpointStore>(
    mut store: S,
    mut lanes: Vec<watch::Receiver<Lsn>>,
    stored: watch::Sender<Lsn>,
    stop: CancellationToken,
) -> Result<(), S::Error> {
    loop {
        let stopping = stop.is_cancelled();
        let durable = lanes.iter_mut().map(|lane| *lane.borrow_and_update()).min().unwrap_or(Lsn::ZERO);
        let before = *stored.borrow();
        if durable > before {
            store.save(durable).await?;
            stored.send_replace(durable);
        }
        if stopping {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = any_changed(&mut lanes) => {}
            () = stop.cancelled() => continue,
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Resolves when any lane's position has changed; never, once every lane is gone.
async fn any_changed(lanes: &mut [watch::Receiver<Lsn>]) {
    let changes = lanes.iter_mut().map(|lane| {
        Box::pin(async move {
            if lane.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    });
    futures_util::future::select_all(changes).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<Lsn>>>);

    impl CheckpointStore for Memory {
        type Error = std::convert::Infallible;

        async fn save(&mut self, lsn: Lsn) -> Result<(), Self::Error> {
            self.0.lock().unwrap().push(lsn);
            Ok(())
        }
    }

    #[tokio::test]
    async fn the_slowest_lane_decides_and_the_checkpoint_never_falls() {
        let store = Memory::default();
        let (fast, fast_end) = watch::channel(Lsn(10));
        let (slow, slow_end) = watch::channel(Lsn(10));
        let (stored, mut published) = watch::channel(Lsn(10));
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(store.clone(), vec![fast_end, slow_end], stored, stop.clone()));
        fast.send_replace(Lsn(50));
        slow.send_replace(Lsn(20));
        published.changed().await.unwrap();
        assert_eq!(*published.borrow(), Lsn(20));
        slow.send_replace(Lsn(15));
        fast.send_replace(Lsn(60));
        tokio::time::sleep(INTERVAL * 3).await;
        slow.send_replace(Lsn(60));
        stop.cancel();
        task.await.unwrap().unwrap();
        assert_eq!(*store.0.lock().unwrap(), [Lsn(20), Lsn(60)]);
    }
}
