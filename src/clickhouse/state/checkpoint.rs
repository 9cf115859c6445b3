//! Where the slot stands: the checkpoint, and the ceiling that is stored before anything beyond the old one is sent.

use super::{Inner, State};
use crate::{
    clickhouse::retrying,
    event::{Epoch, Lsn},
};
use clickhouse::{Client, Row};
use serde::Deserialize;
use std::sync::atomic::Ordering::SeqCst;

/// Inserts run ahead of the checkpoint by at most this much WAL before a new ceiling is stored.
const CEILING_STEP: u64 = 1 << 30;

/// Where a slot stands, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The history that its positions belong to.
    pub epoch: Epoch,
    /// Everything up to here is durable.
    pub lsn: Lsn,
    /// Every event of commits up to here was sent to its queue. Never below `lsn` while there is a queue lane.
    pub queue_lsn: Lsn,
    /// No row and no event of a commit beyond this was ever sent.
    pub ceiling: Lsn,
    /// The cluster that the slot was made in.
    pub system_identifier: u64,
    /// The timeline that it was last read on.
    pub timeline: u32,
    /// The publication's identity.
    pub publication: String,
    /// The identity of the outbox table's membership in it; empty if it never was in it.
    pub outbox: String,
}

#[derive(Row, Deserialize)]
pub(super) struct CheckpointRow {
    epoch: u8,
    lsn: u64,
    queue_lsn: u64,
    ceiling: u64,
    system_identifier: u64,
    timeline: u32,
    publication: String,
    outbox: String,
    pub(super) revision: u64,
}

impl From<CheckpointRow> for Checkpoint {
    fn from(row: CheckpointRow) -> Self {
        Self {
            epoch: Epoch(row.epoch),
            lsn: Lsn(row.lsn),
            queue_lsn: Lsn(row.queue_lsn),
            ceiling: Lsn(row.ceiling),
            system_identifier: row.system_identifier,
            timeline: row.timeline,
            publication: row.publication,
            outbox: row.outbox,
        }
    }
}

impl State {
    /// The stored checkpoint, if there is one.
    pub async fn checkpoint(&self) -> Option<Checkpoint> {
        self.inner.lock().await.checkpoint.clone()
    }

    /// Stores the first checkpoint of a slot, or one whose source has changed.
    pub async fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), clickhouse::error::Error> {
        let mut inner = self.inner.lock().await;
        self.write_checkpoint(&mut inner, checkpoint).await
    }

    /// Moves the checkpoint forward to `lsn`, and the queue lane's own position to `queue_lsn`; lower ones are ignored.
    pub async fn advance(&self, lsn: Lsn, queue_lsn: Lsn) -> Result<(), clickhouse::error::Error> {
        let mut inner = self.inner.lock().await;
        let Some(mut checkpoint) = inner.checkpoint.clone() else { return Ok(()) };
        if lsn <= checkpoint.lsn && queue_lsn <= checkpoint.queue_lsn {
            return Ok(());
        }
        checkpoint.lsn = checkpoint.lsn.max(lsn);
        checkpoint.queue_lsn = checkpoint.queue_lsn.max(queue_lsn);
        // What is in a queue is out of hand as rows are.
        checkpoint.ceiling = checkpoint.ceiling.max(lsn).max(queue_lsn);
        self.write_checkpoint(&mut inner, checkpoint).await
    }

    /// Notes which outbox table is published.
    pub async fn note_outbox(&self, identity: &str) -> Result<(), clickhouse::error::Error> {
        let mut inner = self.inner.lock().await;
        let Some(mut checkpoint) = inner.checkpoint.clone().filter(|checkpoint| checkpoint.outbox != identity) else {
            return Ok(());
        };
        identity.clone_into(&mut checkpoint.outbox);
        self.write_checkpoint(&mut inner, checkpoint).await
    }

    /// Returns once rows and events of commits up to `commit` may be sent: at once, also while nothing can be stored, if
    /// that was reserved before.
    pub async fn reserve(&self, commit: Lsn) -> Result<(), clickhouse::error::Error> {
        self.sent.fetch_max(commit.0, SeqCst);
        if commit.0 <= self.ceiling.load(SeqCst) {
            return Ok(());
        }
        let mut inner = self.inner.lock().await;
        let Some(mut checkpoint) = inner.checkpoint.clone() else { return Ok(()) };
        if commit <= checkpoint.ceiling {
            return Ok(());
        }
        checkpoint.ceiling = Lsn(commit.0.saturating_add(CEILING_STEP));
        self.write_checkpoint(&mut inner, checkpoint).await
    }

    /// What an earlier session may have sent counts as sent: nothing beyond its ceiling, and nothing beyond `end`, where the
    /// source's WAL ends now. To be called before anything else is sent: it may come again, or not before the next stop.
    pub fn inherit(&self, end: Lsn) {
        self.sent.fetch_max(end.0.min(self.ceiling.load(SeqCst)), SeqCst);
    }

    /// When nothing more will be sent: the ceiling comes down to what was, so that a planned failover
    /// after a graceful stop is no gap.
    pub async fn settle(&self) -> Result<(), clickhouse::error::Error> {
        let mut inner = self.inner.lock().await;
        let Some(mut checkpoint) = inner.checkpoint.clone() else { return Ok(()) };
        // Rows of a transaction that the stop cut short were sent, though it does not count.
        let ceiling = checkpoint.lsn.max(checkpoint.queue_lsn).max(Lsn(self.sent.load(SeqCst)));
        if checkpoint.ceiling <= ceiling {
            return Ok(());
        }
        checkpoint.ceiling = ceiling;
        self.write_checkpoint(&mut inner, checkpoint).await
    }

    async fn write_checkpoint(&self, inner: &mut Inner, row: Checkpoint) -> Result<(), clickhouse::error::Error> {
        if let Some(before) = &inner.checkpoint {
            assert!(row.lsn >= before.lsn || row.epoch > before.epoch, "the checkpoint never falls");
        }
        // Taken before it is stored: who waits for this may be dropped, and what was sent may land all the same. Whatever is
        // stored next has to win over it.
        inner.checkpoint_revision += 1;
        let revision = inner.checkpoint_revision;
        self.ceiling.fetch_min(row.ceiling.0, SeqCst);
        retrying("store the checkpoint", || {
            self.client
                .query(
                    "INSERT INTO _checkpoint (slot, epoch, lsn, queue_lsn, ceiling, system_identifier, timeline, publication, \
                     outbox, revision) SETTINGS async_insert = 0 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                )
                .bind(&self.slot)
                .bind(row.epoch.0)
                .bind(row.lsn.0)
                .bind(row.queue_lsn.0)
                .bind(row.ceiling.0)
                .bind(row.system_identifier)
                .bind(row.timeline)
                .bind(&row.publication)
                .bind(&row.outbox)
                .bind(revision)
                .with_setting("query_id", self.ids.next())
                .execute()
        })
        .await?;
        self.ceiling.store(row.ceiling.0, SeqCst);
        inner.checkpoint = Some(row);
        Ok(())
    }
}

/// What is stored of a slot, if anything is.
pub(super) async fn read(client: &Client, slot: &str) -> Result<Option<CheckpointRow>, clickhouse::error::Error> {
    client
        .query(
            "SELECT epoch, lsn, queue_lsn, ceiling, system_identifier, timeline, publication, outbox, revision \
             FROM _checkpoint \
             WHERE slot = ? ORDER BY revision DESC, lsn DESC LIMIT 1",
        )
        .bind(slot)
        .fetch_optional()
        .await
}
