//! A kill at every edge of an event's way, each at the very moment: between what happened elsewhere and what walhouse knows of it.
//!
//! A proxy in front of SQS, and another in front of ClickHouse, keep a request or its answer to themselves; then walhouse is
//! killed, and begins again. What is counted is not the effect alone, which a merge makes one of two, but also how often the
//! message was sent and the handler ran: once, or twice for a reason that each test names.

mod ending;
mod export;
mod failover;
mod handling;
mod poison;
mod sending;

use std::time::Duration;

use crate::queue::{insert, prefix, with_outbox};
use crate::support::{Daemon, Proxy, Sqs, TestDb, eventually};

const READY: &str = "events that are written into the outbox table are sent from now on";
/// Longer than a message stays with a process that was killed.
const LEASE: Duration = Duration::from_secs(90);

/// A database, and both lines that lead out of walhouse.
struct Edge {
    db: TestDb,
    /// To SQS.
    queues: Proxy,
    /// To ClickHouse.
    warehouse: Proxy,
}

impl Edge {
    async fn new(label: &str) -> Self {
        Self::of(with_outbox(label).await).await
    }

    async fn of(db: TestDb) -> Self {
        let (queues, warehouse) = (Proxy::to(Sqs::shared().port()).await, Proxy::to(db.clickhouse.port()).await);
        Self { db, queues, warehouse }
    }

    fn config(&self, more: &str) -> String {
        let queue = Sqs::handled(self.queues.port(), &prefix(&self.db));
        format!("[clickhouse]\nurl = \"http://127.0.0.1:{}\"\n{queue}{more}", self.warehouse.port())
    }

    /// A walhouse that does all of it.
    async fn whole(&self, more: &str) -> Daemon {
        let mut daemon = Daemon::spawn(&self.db, &self.config(more));
        daemon.wait_ready().await;
        daemon.wait_log(READY, 1).await;
        // Rows of the same event stay two of them.
        self.db.ch.query("SYSTEM STOP MERGES audit_log").await;
        self.db.ch.query("SYSTEM STOP MERGES async_operations").await;
        daemon
    }

    /// One that sends, and leaves what is in the queues to others.
    async fn sender(&self) -> Daemon {
        self.whole("[workers]\nenabled = false\n").await
    }

    /// One whose workers handle what there is; its pipeline waits for the slot that the sender has.
    fn workers(&self) -> Daemon {
        Daemon::spawn(&self.db, &self.config(""))
    }

    fn mend(&self) {
        self.queues.mend();
        self.warehouse.mend();
    }

    /// An application writes an event.
    async fn write(&self) {
        self.db.pg.execute(&insert("user", 1)).await;
    }

    fn queue(&self, name: &str) -> String {
        format!("{}{name}", prefix(&self.db))
    }

    /// Waits until there are so many messages in a queue, those in hand among them.
    async fn has(&self, queue: &str, wanted: u64) {
        let (sqs, queue) = (Sqs::shared(), self.queue(queue));
        eventually(Duration::from_secs(30), async || match sqs.count(&queue).await {
            count if count == wanted => Ok(()),
            count => Err(format!("{count} messages in {queue}, and not {wanted}")),
        })
        .await;
    }

    /// Rows of the audit log, as they are and as a reader with FINAL has them.
    async fn audited(&self) -> (String, String) {
        let count = async |of: &str| self.db.ch.query(&format!("SELECT count() FROM {of}")).await;
        (count("audit_log").await, count("audit_log FINAL").await)
    }
}

/// How often a worker of this process has run its handler to this end.
async fn handled(daemon: &Daemon, worker: &str, outcome: &str) -> u32 {
    let labels = format!("worker=\"{worker}\",outcome=\"{outcome}\"");
    daemon.metric("walhouse_events_handled_total", &labels).await as u32
}

/// Waits until it is so often.
async fn wait_handled(daemon: &Daemon, worker: &str, outcome: &str, wanted: u32) {
    eventually(LEASE, async || {
        // It may be about to listen.
        daemon.get("/metrics").await?;
        match handled(daemon, worker, outcome).await {
            runs if runs == wanted => Ok(()),
            runs => Err(format!("{worker}: {outcome} {runs} times, and not {wanted}")),
        }
    })
    .await;
}

/// Waits until walhouse knows of so many events that they are sent.
async fn wait_sent(daemon: &Daemon, wanted: u32) {
    eventually(Duration::from_secs(60), async || {
        daemon.get("/metrics").await?;
        match daemon.metric("walhouse_events_sent_total", "queue=\"audit-log\"").await as u32 {
            sent if sent == wanted => Ok(()),
            sent => Err(format!("{sent} sent, and not {wanted}")),
        }
    })
    .await;
}

fn once() -> (String, String) {
    ("1".to_owned(), "1".to_owned())
}

/// Two rows until they are merged, one for whoever reads with FINAL.
fn twice_and_once() -> (String, String) {
    ("2".to_owned(), "1".to_owned())
}
