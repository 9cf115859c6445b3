//! Handled one by one, written together.
//!
//! While a write is on its way the next items gather, so that each waits for one write at most, and there are never more of
//! them than ClickHouse takes.

use crate::queue::consumer::HandleError;
use std::future::Future;
use tokio::sync::{mpsc, oneshot};

/// Items of a write, at most.
const MOST: usize = 1000;
/// Items that may wait for one. More wait in the queue.
const WAITING: usize = 2 * MOST;

/// Writes items as they come.
pub(super) struct Together<T> {
    items: mpsc::Sender<Waiting<T>>,
}

/// An item that waits to be written, and whoever waits for that.
struct Waiting<T> {
    item: T,
    done: oneshot::Sender<Result<(), HandleError>>,
}

impl<T: Send + 'static> Together<T> {
    /// Has `write` write what gathers, and say of each item what became of it, in their order.
    pub(super) fn new<F, Fut>(write: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Vec<Result<(), HandleError>>> + Send + 'static,
    {
        let (items, waiting) = mpsc::channel(WAITING);
        tokio::spawn(run(write, waiting));
        Self { items }
    }

    /// Returns once the item is written, or is not.
    pub(super) async fn write(&self, item: T) -> Result<(), HandleError> {
        let (done, written) = oneshot::channel();
        let gone = || HandleError::Transient("its writer has ended".to_owned());
        self.items.send(Waiting { item, done }).await.map_err(|_| gone())?;
        written.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// Until nobody can send any more.
async fn run<T, F, Fut>(write: F, mut waiting: mpsc::Receiver<Waiting<T>>)
where
    F: Fn(Vec<T>) -> Fut,
    Fut: Future<Output = Vec<Result<(), HandleError>>>,
{
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, MOST).await > 0 {
        // Who does not wait any more has been told something else, and its event comes again.
        batch.retain(|waiting| !waiting.done.is_closed());
        let (items, done): (Vec<T>, Vec<_>) = batch.drain(..).map(|waiting| (waiting.item, waiting.done)).unzip();
        let mut outcomes = write(items).await.into_iter();
        for done in done {
            let lost = || Err(HandleError::Transient("nothing is known of its write".to_owned()));
            let _ = done.send(outcomes.next().unwrap_or_else(lost));
        }
    }
}
