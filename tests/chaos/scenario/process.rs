//! walhouse itself is killed, frozen, stopped, there twice, or without room of its own.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::time::sleep;

use super::event;
use crate::stage::Stage;
use crate::support::{Daemon, confirmed, eventually, stored};
use crate::wire::Way;

/// A stop ends within 20 s; the machine has other work too.
const STOP: Duration = Duration::from_secs(30);
/// Rows land well within this, also on a busy machine, where nothing is in their way.
const LANDED: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_secs(180);

/// Every third time while it is still starting.
pub(super) async fn killed_at_any_moment(stage: &mut Stage) {
    let mut streams = 0;
    for round in 0..stage.rounds(4) {
        if round % 3 != 2 {
            stage.daemon().wait_streams(streams).await;
        }
        stage.pass(0..500).await;
        stage.inject("SIGKILL");
        streams = stage.daemon().streams();
        kill(stage);
    }
}

/// Rows are in ClickHouse, and the checkpoint that covers them is not.
pub(super) async fn killed_between_insert_and_checkpoint(stage: &mut Stage) {
    for _ in 0..stage.rounds(3) {
        let mut tries = 0;
        while !rows_land_without_a_checkpoint(stage).await {
            tries += 1;
            assert!(tries < 10, "no row lands");
            stage.mend();
            stage.load().wait_commits(5).await;
        }
        stage.inject("SIGKILL after an insert, before its checkpoint");
        kill(stage);
        stage.mend();
        stage.load().wait_commits(20).await;
    }
}

/// From now on no checkpoint is stored. Says whether rows have landed since: what else has to be stored, such as the version
/// of a TRUNCATE, waits behind a checkpoint, and then nothing moves.
async fn rows_land_without_a_checkpoint(stage: &mut Stage) -> bool {
    stage.pass(0..300).await;
    let ticks =
        async |stage: &Stage| stage.db.ch.query("SELECT max(n) FROM tick").await.parse::<u64>().expect("a number");
    let kept = stage.clickhouse.struck();
    stage.clickhouse.swallow("INTO _checkpoint");
    let (before, began) = (ticks(stage).await, Instant::now());
    while began.elapsed() < LANDED {
        if stage.clickhouse.struck() > kept && ticks(stage).await > before {
            return true;
        }
        sleep(Duration::from_millis(20)).await;
    }
    false
}

/// The checkpoint is stored, and PostgreSQL is not told.
pub(super) async fn killed_between_checkpoint_and_status(stage: &mut Stage) {
    for _ in 0..stage.rounds(3) {
        let streams = stage.daemon().streams();
        stage.pass(0..300).await;
        stage.postgres.vanish(Way::Up, Some("START_REPLICATION"));
        let db = &stage.db;
        eventually(WAIT, async || {
            let (told, kept) = (confirmed(&db.pg, &db.name).await?, stored(&db.ch, &db.name).await?);
            if kept > told { Ok(()) } else { Err(format!("stored {kept:?}, told {told:?}")) }
        })
        .await;
        stage.inject("SIGKILL after a checkpoint, before its status");
        kill(stage);
        stage.mend();
        stage.daemon().wait_streams(streams).await;
        stage.load().wait_commits(20).await;
    }
}

/// What was copied stays copied; no slot is left but the one.
pub(super) async fn killed_in_the_copy(stage: &mut Stage) {
    for _ in 0..stage.rounds(4) {
        stage.pass(100..1000).await;
        stage.inject("SIGKILL");
        kill(stage);
    }
    stage.mend();
    stage.rest().await;
    stage.daemon().wait_ready().await;
    let db = &stage.db;
    let sql = format!("SELECT slot_name FROM pg_replication_slots WHERE database = '{}' AND NOT temporary", db.name);
    assert_eq!(db.pg.query(&sql).await, [[Some(db.name.clone())]], "there is a stray slot");
}

/// The server gives the connection up meanwhile.
pub(super) async fn frozen(stage: &mut Stage) {
    for _ in 0..stage.rounds(1) {
        let streams = stage.daemon().streams();
        let before = stage.daemon().metric("walhouse_reconnects_total", "").await;
        stage.inject("SIGSTOP for 4.5 s");
        stage.daemon().freeze();
        tokio::time::sleep(Duration::from_millis(4500)).await;
        stage.daemon().resume();
        stage.daemon().wait_streams(streams).await;
        stage.load().wait_commits(30).await;
        let reconnects = stage.daemon().metric("walhouse_reconnects_total", "").await - before;
        assert!((1.0..=2.0).contains(&reconnects), "{reconnects} reconnects");
    }
}

/// It ends in time, and the next one goes on.
pub(super) async fn stopped_while_a_sink_hangs(stage: &mut Stage) {
    for _ in 0..stage.rounds(2) {
        let streams = stage.daemon().streams();
        stage.work(10..60).await;
        let (wire, sink) =
            if stage.rng.random_bool(0.5) { (&stage.clickhouse, "ClickHouse") } else { (&stage.queues, "SQS") };
        wire.vanish(Way::Both, None);
        stage.work(20..60).await;
        stage.inject(format!("SIGTERM while {sink} hangs"));
        let status = stage.daemon().sigterm(STOP).await;
        stage.note(format!("it ended: {status}"));
        assert_eq!(status.code(), Some(0));
        stage.mend();
        stage.daemon().start();
        stage.daemon().wait_streams(streams).await;
    }
}

/// One of them works; when it is killed, the other one does, or the one that was killed if it is sooner there again.
pub(super) async fn two_daemons(stage: &mut Stage) {
    let mut other = Daemon::spawn(&stage.db, &stage.config());
    other.wait_log("another walhouse holds this slot; waiting for it to end", 1).await;
    for _ in 0..stage.rounds(4) {
        let (own, others, at_once) = (stage.daemon().streams(), other.streams(), stage.rng.random_bool(0.5));
        stage.pass(0..500).await;
        stage.inject(if at_once { "SIGKILL, and a start at once" } else { "SIGKILL" });
        stage.daemon().kill9();
        if at_once {
            stage.daemon().start();
        }
        let is_others_turn =
            eventually(WAIT, async || match (stage.daemon().streams() > own, other.streams() > others) {
                (false, false) => Err("neither works".to_owned()),
                (true, true) => panic!("both work"),
                (_, is_others_turn) => Ok(is_others_turn),
            })
            .await;
        if !at_once {
            stage.daemon().start();
        }
        if is_others_turn {
            std::mem::swap(&mut other, stage.daemon());
        }
        stage.load().wait_commits(20).await;
    }
    let other = other.processor_seconds();
    stage.note(format!("the other one took {other} s of a processor"));
}

/// What makes a clock wrong for one process, where the machine has it.
pub(super) fn faketime() -> Result<PathBuf, String> {
    let below = |root: &Path| -> Option<PathBuf> {
        let folders = fs::read_dir(root.join("usr/lib")).ok()?.flatten();
        folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
    };
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/faketime");
    below(&unpacked).or_else(|| below(Path::new("/"))).ok_or_else(|| "there is no libfaketime".to_owned())
}

/// Nothing is ordered by the clock.
pub(super) async fn clock_wrong_by_a_day(stage: &mut Stage) {
    let library = faketime().expect("the scenario is left out without it").display().to_string();
    for day in ["+1d", "-1d"] {
        let streams = stage.daemon().streams();
        stage.pass(0..500).await;
        stage.inject(format!("SIGKILL, and a clock that is wrong by {day}"));
        let names = [("LD_PRELOAD", library.as_str()), ("FAKETIME", day), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        let environment = names.map(|(name, value)| (name.to_owned(), value.to_owned()));
        stage.daemon().set_environment(environment.to_vec());
        kill(stage);
        stage.daemon().wait_streams(streams).await;
        stage.work(30..100).await;
    }
    stage.daemon().set_environment(Vec::new());
    kill(stage);
}

pub(super) async fn killed_in_a_storm_of_ddl(stage: &mut Stage) {
    for _ in 0..stage.rounds(3) {
        stage.work(30..120).await;
        stage.inject("SIGKILL");
        kill(stage);
    }
    stage.load().wait_commits(100).await;
}

/// What it has to do with files fails: its log, its working directory, what it would put aside. It keeps nothing there that
/// matters.
pub(super) async fn own_disk_full(stage: &mut Stage) {
    let directory = stage.db.directory.clone();
    stage.daemon().set_environment(vec![("TMPDIR".to_owned(), directory.display().to_string())]);
    stage.daemon().set_directory(&directory);
    for _ in 0..stage.rounds(2) {
        stage.work(10..40).await;
        let ballast = directory.join("ballast");
        let full = fill(&ballast).expect_err("a disk has an end");
        stage.inject(format!("walhouse's own disk is full: {full}"));
        stage.work(10..40).await;
        stage.settle().await;
        // It ends there, and begins.
        if stage.rng.random_bool(0.5) {
            stage.inject("SIGKILL, on a full disk");
            stage.daemon().kill9();
        } else {
            stage.inject("SIGTERM, on a full disk");
            let status = stage.daemon().sigterm(STOP).await;
            assert_eq!(status.code(), Some(0));
        }
        stage.daemon().start();
        stage.work(10..40).await;
        stage.settle().await;
        put_aside(stage).await;
        fs::remove_file(&ballast).expect("a file can be removed");
        // Put aside at last, before the disk is full again.
        stage.settle().await;
    }
}

/// An event that is too large for a message is put aside first, and can not be: nothing is acknowledged beyond it.
async fn put_aside(stage: &mut Stage) {
    let here = "SELECT pg_current_wal_insert_lsn() - '0/0'";
    let position = async |stage: &Stage| -> u64 { stage.db.pg.value(here).await.parse().expect("a position") };
    let before = position(stage).await;
    stage.db.pg.execute(&event(2_000_000)).await;
    let after = position(stage).await;
    stage.inject("an event that is put aside, and no room for it");
    stage.work(30..60).await;
    let told = confirmed(&stage.db.pg, &stage.db.name).await.expect("PostgreSQL answers");
    assert!(
        told.is_some_and(|told| told < after),
        "acknowledged {told:?}, beyond an event between {before} and {after}"
    );
}

/// Writes for as long as there is room.
pub(super) fn fill(path: &Path) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    // To the last byte.
    for size in [1 << 20, 1 << 10, 1] {
        let zeros = vec![0; size];
        while file.write_all(&zeros).is_ok() {}
    }
    file.write_all(&[0])
}

fn kill(stage: &mut Stage) {
    let daemon = stage.daemon();
    daemon.kill9();
    daemon.start();
}
