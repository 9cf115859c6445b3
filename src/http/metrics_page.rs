//! The page of metrics: made beside the threads on which everything else goes on and, where it is dear, before anybody asks.
//!
//! With thousands of tables a page takes tens of milliseconds of processor time, and several times as long until it is there
//! on a machine that is busy, where it has to wait for its turn. So one that is larger than [`DEAR`] is made anew every
//! [`INTERVAL`] for as long as somebody scrapes, and whoever asks gets the last one. A smaller page is made when it is asked
//! for, and is of that moment.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::body::Bytes;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::{MissedTickBehavior, interval};

/// A page of more bytes is made in advance: that of some five hundred tables.
const DEAR: usize = 128 << 10;
/// How often.
const INTERVAL: Duration = Duration::from_secs(1);
/// What is older than this, because the machine has no time even for that, is not handed out.
const AGE: Duration = Duration::from_secs(5);
/// Who has not asked for so long does not scrape.
const LEFT: Duration = Duration::from_secs(120);

/// The page, by whoever wants it.
#[derive(Clone, Debug)]
pub(super) struct MetricsPage {
    metrics: PrometheusHandle,
    record: Arc<Mutex<Record>>,
}

#[derive(Debug, Default)]
struct Record {
    /// The last page, if it is dear, and when it was begun.
    last: Option<(Bytes, Instant)>,
    /// When somebody has asked for it last.
    asked: Option<Instant>,
}

impl MetricsPage {
    pub(super) fn new(metrics: PrometheusHandle) -> Self {
        Self { metrics, record: Arc::default() }
    }

    /// The page for a scrape; `None` if it can not be made, or the process ends.
    pub(super) async fn scraped(&self) -> Option<Bytes> {
        let last = {
            let mut record = self.record();
            record.asked = Some(Instant::now());
            record.last.clone()
        };
        match last {
            Some((page, made)) if made.elapsed() < AGE => Some(page),
            _ => self.made(|_| ()).await.map(|(page, ())| page),
        }
    }

    /// What `read` makes of a page of this moment; `None` if either ended in a panic, or the process ends.
    pub(super) async fn read<T: Send + 'static>(&self, read: impl FnOnce(&str) -> T + Send + 'static) -> Option<T> {
        self.made(read).await.map(|(_, read)| read)
    }

    /// Has a page at hand for those who scrape, if it is dear, until the future is dropped.
    pub(super) async fn keep(&self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let is_wanted = {
                let record = self.record();
                record.last.is_some() && record.asked.is_some_and(|asked| asked.elapsed() < LEFT)
            };
            if is_wanted {
                self.made(|_| ()).await;
            }
        }
    }

    async fn made<T: Send + 'static>(&self, read: impl FnOnce(&str) -> T + Send + 'static) -> Option<(Bytes, T)> {
        let (metrics, begun) = (self.metrics.clone(), Instant::now());
        let make = move || {
            let page = metrics.render();
            let read = read(&page);
            (Bytes::from(page), read)
        };
        let (page, read) = tokio::task::spawn_blocking(make).await.ok()?;
        self.record().last = Some((page.clone(), begun)).filter(|(page, _)| page.len() > DEAR);
        Some((page, read))
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

    use super::*;

    fn with_series(count: usize) -> (PrometheusRecorder, MetricsPage) {
        let recorder = PrometheusBuilder::new().build_recorder();
        let page = MetricsPage::new(recorder.handle());
        metrics::with_local_recorder(&recorder, || {
            for table in 0..count {
                metrics::counter!("rows_total", "table" => format!("public.item_{table}")).increment(1);
            }
        });
        (recorder, page)
    }

    fn more(recorder: &PrometheusRecorder) {
        metrics::with_local_recorder(recorder, || metrics::counter!("more_total").increment(1));
    }

    async fn has_more(page: &MetricsPage) -> bool {
        let page = page.scraped().await.expect("there is a page");
        std::str::from_utf8(&page).expect("it is text").contains("more_total 1\n")
    }

    #[tokio::test]
    async fn a_small_page_is_of_the_moment_it_is_asked_for() {
        let (recorder, page) = with_series(10);
        assert!(!has_more(&page).await);
        more(&recorder);
        assert!(has_more(&page).await);
    }

    #[tokio::test]
    async fn a_dear_page_is_at_hand_and_made_anew_while_somebody_scrapes() {
        let (recorder, page) = with_series(5_000);
        assert!(!has_more(&page).await);
        more(&recorder);
        assert!(!has_more(&page).await, "it was made for each who asks");
        let kept = page.clone();
        let keeper = tokio::spawn(async move { kept.keep().await });
        while !has_more(&page).await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        keeper.abort();
        assert!(page.read(|page| page.contains("more_total 1\n")).await == Some(true));
    }

    #[tokio::test]
    async fn a_page_that_got_too_old_is_not_handed_out() {
        let (recorder, page) = with_series(5_000);
        assert!(!has_more(&page).await);
        more(&recorder);
        if let Some((_, begun)) = &mut page.record().last {
            *begun -= AGE;
        }
        assert!(has_more(&page).await);
    }
}
