//! The source: the slot, read by whichever of two readers the distance to the head of the WAL calls for.
//!
//! Near the head it streams ([`streaming`](super::streaming)), far from it it catches up
//! ([`catchup`](super::catchup)). Both hand the same events to one [`Outlet`], and both acknowledge
//! the stored checkpoint and nothing else. The change from one to the other needs no pause: the
//! server lets a stream begin past what was acknowledged, and copies a slot that is in use. The stream is
//! left between two transactions; catching up may break off anywhere.
//!
//! To begin takes a larger distance than to go on, so that a load in between does not make them
//! alternate.

use super::{
    acknowledged::Acknowledged,
    assembler::StreamError,
    catchup::{self, CatchUp, Ended, Gate, GivenUp},
    connection::{ConnectionError, ReplicationConnection},
    lock::SlotLock,
    outlet::{Outlet, Tap},
    streaming::Streaming,
};
use crate::{config::SourceConfig, event::Lsn, telemetry::names};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Which reader is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// START_REPLICATION.
    Streaming,
    /// The functions of logical decoding, in windows.
    CatchUp,
}

/// How a slot is read.
pub struct Settings {
    /// The source.
    pub source: SourceConfig,
    /// The slot's lock.
    pub lock: Arc<SlotLock>,
    /// The end of the WAL that is durable at the source.
    pub flushed: watch::Receiver<Lsn>,
    /// Is told whenever a reader begins.
    pub began: Box<dyn Fn(Reader) + Send + Sync>,
}

enum Active {
    Streaming(Streaming),
    CatchUp(Box<CatchUp>),
}

/// The slot, being read.
pub struct Source {
    settings: Settings,
    outlet: Outlet,
    gate: Gate,
    active: Option<Active>,
}

impl Source {
    /// Begins at the outlet's position. `connection` is for the stream, if that is what it begins with.
    ///
    /// # Errors
    /// What the server says: a slot in use is transient, a slot that is gone is not.
    pub async fn start(
        connection: ReplicationConnection,
        outlet: Outlet,
        settings: Settings,
    ) -> Result<Self, ConnectionError> {
        let gate = Gate::new(&settings.source);
        let mut source = Self { settings, outlet, gate, active: None };
        let (position, flushed) = (source.outlet.assembler.position(), *source.settings.flushed.borrow());
        if source.gate.is_open(position, flushed) {
            match open(&source.settings, &source.gate, position, source.outlet.acknowledged.clone()).await {
                Ok(ready) => source.catch_up(ready),
                Err(why) => source.gate.close(&why),
            }
        }
        if source.active.is_none() {
            source.stream(connection).await?;
        }
        Ok(source)
    }

    /// Reads until `stop` is cancelled, then leaves the rest to [`finish`](Self::finish).
    ///
    /// # Errors
    /// When the slot can not be read any more, or a lane has ended.
    pub async fn run(&mut self, stop: &CancellationToken) -> Result<(), StreamError> {
        while !stop.is_cancelled() {
            match self.active.take() {
                Some(Active::Streaming(streaming)) => self.run_streaming(streaming, stop).await?,
                Some(Active::CatchUp(ready)) => self.run_catch_up(*ready, stop).await?,
                None => {
                    let url = &self.settings.source.url;
                    let connection = ReplicationConnection::connect(url, "walhouse").await?;
                    self.stream(connection).await?;
                }
            }
        }
        Ok(())
    }

    async fn run_streaming(&mut self, mut streaming: Streaming, stop: &CancellationToken) -> Result<(), StreamError> {
        let leave = CancellationToken::new();
        let ready = {
            let wait = wait_until_behind(&self.settings, &mut self.gate, self.outlet.tap());
            let run = streaming.run(&mut self.outlet, stop, &leave);
            tokio::pin!(run, wait);
            let mut ready = None;
            loop {
                tokio::select! {
                    biased;
                    ended = &mut run => {
                        ended?;
                        break ready;
                    }
                    opened = &mut wait, if ready.is_none() => {
                        ready = Some(opened);
                        leave.cancel();
                    }
                }
            }
        };
        match ready {
            Some(ready) if !stop.is_cancelled() => {
                streaming.finish(&mut self.outlet).await;
                self.catch_up(ready);
            }
            ready => {
                if let Some(ready) = ready {
                    ready.finish().await;
                }
                self.active = Some(Active::Streaming(streaming));
            }
        }
        Ok(())
    }

    async fn run_catch_up(&mut self, mut ready: CatchUp, stop: &CancellationToken) -> Result<(), StreamError> {
        match ready.run(&mut self.outlet, &self.settings.flushed, stop).await? {
            Ended::Stopped => {
                ready.hang_up();
                self.active = Some(Active::CatchUp(Box::new(ready)));
                return Ok(());
            }
            Ended::AtHead => self.gate.succeeded(),
            Ended::GivenUp(why) => self.gate.close(&why),
        }
        ready.finish().await;
        Ok(())
    }

    async fn stream(&mut self, connection: ReplicationConnection) -> Result<(), ConnectionError> {
        let SourceConfig { slot, publication, .. } = &self.settings.source;
        let position = self.outlet.assembler.position();
        let streaming = Streaming::start(connection, slot, publication, position).await?;
        self.outlet.assembler.begin_anew();
        tracing::info!(slot, %position, "streaming");
        self.active = Some(Active::Streaming(streaming));
        self.announce(Reader::Streaming);
        Ok(())
    }

    fn catch_up(&mut self, ready: CatchUp) {
        let position = self.outlet.assembler.position();
        let lag = self.settings.flushed.borrow().since(position);
        tracing::info!(slot = self.settings.source.slot, %position, lag, sessions = ready.sessions(), "catching up");
        self.active = Some(Active::CatchUp(Box::new(ready)));
        self.announce(Reader::CatchUp);
    }

    fn announce(&self, reader: Reader) {
        at_work(Some(reader));
        (self.settings.began)(reader);
    }

    /// Lets the lanes end: nothing more will come.
    pub fn release_lanes(&mut self) {
        self.outlet.release();
    }

    /// Reports the last checkpoint, and leaves the slot free and alone.
    pub async fn finish(mut self) {
        match self.active.take() {
            Some(Active::Streaming(streaming)) => streaming.finish(&mut self.outlet).await,
            Some(Active::CatchUp(ready)) => ready.finish().await,
            // Stopped between the two: what was stored since the one ended, nobody has acknowledged.
            None => {
                let Settings { source, lock, .. } = self.settings;
                if let Err(error) = catchup::acknowledge(&source, self.outlet.acknowledged, lock).await {
                    tracing::debug!(%error, "the slot was not moved after catching up");
                }
            }
        }
    }
}

/// Shows which reader is at work, if any is.
pub fn at_work(reader: Option<Reader>) {
    for (label, of) in [("streaming", Reader::Streaming), ("catch_up", Reader::CatchUp)] {
        metrics::gauge!(names::READER, "reader" => label).set(if reader == Some(of) { 1.0 } else { 0.0 });
    }
}

/// Waits until what lies ahead calls for the other reader, and makes it ready, beside the stream.
async fn wait_until_behind(settings: &Settings, gate: &mut Gate, tap: Tap) -> CatchUp {
    let mut flushed = settings.flushed.clone();
    loop {
        if flushed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let (from, upto) = (tap.position(), *flushed.borrow_and_update());
        // Where the lanes are what is slow, another reader is of no use.
        if !gate.is_open(from, upto) || tap.is_backed_up() {
            continue;
        }
        match open(settings, gate, from, tap.acknowledged.clone()).await {
            Ok(ready) => return ready,
            Err(why) => gate.close(&why),
        }
    }
}

async fn open(settings: &Settings, gate: &Gate, from: Lsn, stored: Acknowledged) -> Result<CatchUp, GivenUp> {
    CatchUp::open(&settings.source, from, gate.may_grow(), stored, Arc::clone(&settings.lock)).await
}
