//! The network is bad.

use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::time::sleep;

use super::event;
use crate::stage::Stage;
use crate::support::{confirmed, eventually};
use crate::wire::{Way, Wire};

const WAIT: Duration = Duration::from_secs(180);
/// What stands at the beginning of a connection that streams.
const STREAM: &str = "START_REPLICATION";

/// All connections to one of the servers at once.
pub(super) async fn reset(stage: &mut Stage) {
    for _ in 0..stage.rounds(5) {
        stage.pass(0..400).await;
        let (wire, server) = stage.any_wire();
        wire.reset();
        stage.inject(format!("RST from {server}"));
        stage.work(5..40).await;
    }
}

/// Bytes vanish, and nobody says so: it is noticed within the deadline. The load has no part in that.
pub(super) async fn half_open(stage: &mut Stage) {
    let silent = fall_silent(stage).await;
    stage.rest().await;
    silent.noticed(stage).await;
}

/// The same, and the load goes on meanwhile.
pub(super) async fn half_open_beside_the_load(stage: &mut Stage) {
    fall_silent(stage).await.noticed(stage).await;
}

/// How often walhouse had streamed and noticed silence before.
struct Silent {
    began: Instant,
    streams: usize,
    noticed: usize,
}

async fn fall_silent(stage: &mut Stage) -> Silent {
    stage.work(10..60).await;
    // One of both directions is enough: an answer is missed, or is never asked for.
    let way = [Way::Both, Way::Down][stage.rng.random_range(0..2)];
    let (streams, before) = (stage.daemon().streams(), stage.postgres.struck());
    let noticed = silences(stage);
    stage.postgres.vanish(way, Some(STREAM));
    // It may be reading the backlog otherwise just now.
    struck(&stage.postgres, before).await;
    stage.inject(format!("half open: {way:?}"));
    Silent { began: Instant::now(), streams, noticed }
}

/// In the stream, or before its first word.
fn silences(stage: &mut Stage) -> usize {
    let log = stage.daemon().log();
    let words = ["the server has gone silent", "did not answer within 30s while to stream"];
    words.iter().map(|words| log.matches(words).count()).sum()
}

impl Silent {
    async fn noticed(self, stage: &mut Stage) {
        while silences(stage) == self.noticed {
            assert!(self.began.elapsed() < Duration::from_secs(50), "nobody has noticed");
            sleep(Duration::from_millis(100)).await;
        }
        stage.note(format!("noticed after {:?}", self.began.elapsed()));
        stage.mend();
        stage.daemon().wait_streams(self.streams).await;
    }
}

/// Two seconds late, with pieces that are lost at first, and narrow: slower, and nothing else.
pub(super) async fn late_and_lossy(stage: &mut Stage) {
    for _ in 0..stage.rounds(2) {
        let kind = stage.rng.random_range(0..3);
        let (wire, server) = stage.any_wire();
        let what = match kind {
            0 => {
                wire.delay(1900..2100, 0.01);
                "2 s late, of a hundred pieces one is lost"
            }
            1 => {
                wire.delay(0..300, 0.05);
                "up to 300 ms late, of a hundred pieces five are lost"
            }
            _ => {
                wire.throttle(200_000);
                "200 kB a second"
            }
        };
        stage.inject(format!("{server}: {what}"));
        sleep(Duration::from_secs(3)).await;
        stage.mend();
        stage.work(20..60).await;
    }
}

/// The stream ends after any byte of any message.
pub(super) async fn cut_after_any_byte(stage: &mut Stage) {
    for _ in 0..stage.rounds(6) {
        let (before, bytes) = (stage.postgres.struck(), stage.rng.random_range(0..6000));
        stage.postgres.cut_after(bytes, STREAM);
        struck(&stage.postgres, before).await;
        stage.inject(format!("cut after {bytes} bytes of the stream"));
    }
}

/// ClickHouse has applied an insert, and nobody knows.
pub(super) async fn answer_of_an_insert_lost(stage: &mut Stage) {
    for _ in 0..stage.rounds(8) {
        let (before, answered) = (stage.clickhouse.struck(), stage.rng.random_range(0..6));
        stage.clickhouse.lose_answer("INSERT+INTO+", answered);
        struck(&stage.clickhouse, before).await;
        stage.inject(format!("the answer to an insert is lost, after {answered} others"));
    }
}

/// SQS has accepted messages, and nobody knows.
pub(super) async fn answer_of_a_send_lost(stage: &mut Stage) {
    for _ in 0..stage.rounds(6) {
        let (before, answered) = (stage.queues.struck(), stage.rng.random_range(0..3));
        stage.queues.lose_answer("AmazonSQS.SendMessageBatch", answered);
        struck(&stage.queues, before).await;
        stage.inject(format!("the answer to a send is lost, after {answered} others"));
    }
}

/// SQS takes a batch but for one message, which is sent once more.
pub(super) async fn part_of_a_batch_refused(stage: &mut Stage) {
    for round in 0..stage.rounds(6) {
        let (sieve, db) = (stage.sieve.as_ref().expect("the scenario has one"), &stage.db);
        sieve.refuse_one();
        eventually(WAIT, async || {
            // Several of one transaction go together.
            db.pg.try_execute(&(event(0) + &event(0) + &event(0))).await?;
            if sieve.refused() > round { Ok(()) } else { Err("no batch came by".to_owned()) }
        })
        .await;
        stage.inject("one message of a batch is refused");
    }
}

/// The slot holds what was not sent.
pub(super) async fn sqs_away(stage: &mut Stage) {
    for _ in 0..stage.rounds(2) {
        stage.work(10..40).await;
        match stage.rng.random_range(0..2) {
            0 => {
                stage.queues.refuse();
                stage.inject("SQS refuses");
            }
            _ => {
                stage.queues.vanish(Way::Both, None);
                stage.inject("SQS hangs");
            }
        }
        // What is on its way already may still be sent.
        sleep(Duration::from_millis(200)).await;
        let here = "SELECT pg_current_wal_insert_lsn() - '0/0'";
        let position: u64 = stage.db.pg.value(here).await.parse().expect("a position is a number");
        stage.db.pg.execute(&event(0)).await;
        stage.work(30..90).await;
        let told = confirmed(&stage.db.pg, &stage.db.name).await.expect("PostgreSQL answers");
        // The position of an event's own transaction is past this one.
        let end: u64 = stage.db.pg.value(here).await.parse().expect("a position is a number");
        assert!(told.is_some_and(|told| told < end), "acknowledged {told:?}, beyond an event that was not sent");
        stage.note(format!("an event after {position}, acknowledged {told:?}, written up to {end}"));
        stage.mend();
    }
}

/// Waits until a fault that a line was asked for has struck.
async fn struck(wire: &Wire, before: u32) {
    eventually(WAIT, async || match wire.struck() {
        now if now > before => Ok(()),
        _ => Err("nothing came by".to_owned()),
    })
    .await;
}
