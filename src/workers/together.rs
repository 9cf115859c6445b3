//! Handled one by one, written together.
//!
//! While a write is on its way the next items gather, so that each waits for one write at most, and there are never more of
//! them than ClickHouse takes.
//!
//! A write without an answer keeps nobody: an item waits for so long, for the write before its own too, and is told then that
//! ClickHouse is away. Once nobody waits for a write any more the next one begins, on another connection, since the server may
//! be back and only the old connection be dead. What was given up may still land, which does no harm: every write may be repeated.

use crate::queue::consumer::HandleError;
use std::{future::Future, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Items of a write, at most.
const MOST: usize = 1000;
/// Items that may wait for one. More wait in the queue.
const WAITING: usize = 2 * MOST;

/// Writes items as they come.
pub(super) struct Together<T> {
    items: mpsc::Sender<Waiting<T>>,
    limit: Duration,
}

/// An item that waits to be written, and whoever waits for that.
struct Waiting<T> {
    item: T,
    done: Done,
}

type Done = oneshot::Sender<Result<(), HandleError>>;

/// How long an item waits to be written where its handler has `timeout`: less, so that it can say itself what it failed of.
pub(super) fn limit(timeout: Duration) -> Duration {
    timeout.mul_f64(0.8)
}

impl<T: Send + 'static> Together<T> {
    /// Has `write` write what gathers, and say of each item what became of it, in their order. An item waits for up to `limit`.
    pub(super) fn new<F, Fut>(limit: Duration, write: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Vec<Result<(), HandleError>>> + Send + 'static,
    {
        let (items, waiting) = mpsc::channel(WAITING);
        tokio::spawn(run(write, waiting));
        Self { items, limit }
    }

    /// Returns once the item is written, or is not.
    pub(super) async fn write(&self, item: T) -> Result<(), HandleError> {
        let (done, written) = oneshot::channel();
        let gone = || HandleError::Transient("its writer has ended".to_owned());
        let write = async {
            self.items.send(Waiting { item, done }).await.map_err(|_| gone())?;
            written.await.unwrap_or_else(|_| Err(gone()))
        };
        timeout(self.limit, write).await.unwrap_or_else(|_| {
            let seconds = self.limit.as_secs_f64();
            Err(HandleError::Unavailable(format!("ClickHouse has not answered within {seconds:.1} s")))
        })
    }
}

/// Until nobody can send any more.
async fn run<T, F, Fut>(write: F, mut waiting: mpsc::Receiver<Waiting<T>>)
where
    F: Fn(Vec<T>) -> Fut,
    Fut: Future<Output = Vec<Result<(), HandleError>>> + Send + 'static,
{
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, MOST).await > 0 {
        // Who does not wait any more has been told something else, and its event comes again.
        batch.retain(|waiting| !waiting.done.is_closed());
        let (items, mut done): (Vec<T>, Vec<_>) = batch.drain(..).map(|waiting| (waiting.item, waiting.done)).unzip();
        if items.is_empty() {
            continue;
        }
        // A task of its own, which is left to itself when it is given up, and whose panic is its items' alone.
        let outcomes = tokio::select! {
            written = tokio::spawn(write(items)) => written.unwrap_or_default(),
            () = deserted(&mut done) => continue,
        };
        let mut outcomes = outcomes.into_iter();
        for done in done {
            let lost = || Err(HandleError::Transient("nothing is known of its write".to_owned()));
            let _ = done.send(outcomes.next().unwrap_or_else(lost));
        }
    }
}

/// Returns once nobody waits for any of these.
async fn deserted(done: &mut [Done]) {
    for done in done {
        done.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    /// Writes of which the first one has a deed of its own.
    fn after_a_first<Fut>(limit: Duration, first: impl Fn() -> Fut + Send + 'static) -> (Together<u8>, Arc<AtomicUsize>)
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        let writes = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&writes);
        let together = Together::new(limit, move |items: Vec<u8>| {
            let first = (counted.fetch_add(1, Ordering::SeqCst) == 0).then(&first);
            async move {
                if let Some(first) = first {
                    first.await;
                }
                vec![Ok(()); items.len()]
            }
        });
        (together, writes)
    }

    #[tokio::test]
    async fn a_write_without_an_answer_holds_up_nobody_but_its_own_items() {
        let (together, writes) = after_a_first(Duration::from_millis(400), std::future::pending);
        let second = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            together.write(2).await
        };
        let (first, second) = tokio::join!(together.write(1), second);
        let away = "ClickHouse has not answered within 0.4 s";
        assert_eq!(first, Err(HandleError::Unavailable(away.to_owned())));
        assert_eq!((second, writes.load(Ordering::SeqCst)), (Ok(()), 2));
    }

    #[tokio::test]
    async fn a_write_that_panics_is_not_the_last_one() {
        let (together, _) = after_a_first(Duration::from_secs(5), || async { panic!("on purpose") });
        let first = together.write(1).await;
        assert!(matches!(&first, Err(HandleError::Transient(_))), "{first:?}");
        assert_eq!(together.write(2).await, Ok(()));
    }
}
