//! The scenarios: each is a row of the fault matrix in `docs/faults.md`.
//!
//! A scenario only injects its fault, again and again, beside the load, and looks at what the row promises beyond what holds for
//! all of them: what is equal in the end, and in order on the way, is the oracle's and the witness's matter.

mod identity;
mod network;
mod poison;
mod process;
mod server;
mod worker;

use futures_util::future::LocalBoxFuture;

use crate::stage::{Opening, Small, Stage};
use crate::support::is_root;

pub(crate) struct Scenario {
    /// Of the matrix.
    pub(crate) row: u32,
    pub(crate) name: &'static str,
    pub(crate) opening: Opening,
    /// It waits for something that takes long, so it is run less often.
    pub(crate) slow: bool,
    /// What this machine lacks for it.
    pub(crate) lacks: fn() -> Option<String>,
    pub(crate) play: Play,
}

pub(crate) type Play = for<'a> fn(&'a mut Stage) -> LocalBoxFuture<'a, ()>;

const STREAMING: Opening = Opening {
    copying: false,
    storm: false,
    small: Small::No,
    frail: false,
    own_disk: false,
    sieve: false,
    workers: false,
    prepare: "",
    config: "",
};
const WITH_WORKERS: Opening = Opening { workers: true, ..STREAMING };
const FRAIL: Opening = Opening { frail: true, ..STREAMING };
const COPYING: Opening = Opening { copying: true, ..STREAMING };
/// A batch is as large as it gets.
const LARGE_BATCHES: &str = "[batch]\nmax_rows = 500000\nmax_delay = \"100ms\"\n";
/// Batches with rows of many partitions.
const PARTITIONS: &str = "[tables.\"public.item\"]\npartition_by = \"intDiv(id, 20)\"\n\
    [tables.\"public.line\"]\npartition_by = \"head % 5\"\n[tables.\"public.bulk\"]\npartition_by = \"intDiv(id, 500)\"\n";
/// The server gives up a walsender that is silent for so long; it is silent for longer.
const SHORT_TIMEOUT: &str = "DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET wal_sender_timeout = ''2s''', current_database()); END $$";

pub(crate) const ALL: &[Scenario] = &[
    scenario(1, "killed_at_any_moment", STREAMING, |stage| Box::pin(process::killed_at_any_moment(stage))),
    scenario(2, "killed_between_insert_and_checkpoint", STREAMING, |stage| {
        Box::pin(process::killed_between_insert_and_checkpoint(stage))
    }),
    scenario(3, "killed_between_checkpoint_and_status", STREAMING, |stage| {
        Box::pin(process::killed_between_checkpoint_and_status(stage))
    }),
    scenario(4, "killed_in_the_copy", COPYING, |stage| Box::pin(process::killed_in_the_copy(stage))),
    scenario(5, "rewritten_in_the_copy", COPYING, |stage| Box::pin(server::rewritten_in_the_copy(stage))),
    scenario(6, "frozen", Opening { prepare: SHORT_TIMEOUT, ..STREAMING }, |stage| Box::pin(process::frozen(stage))),
    scenario(7, "stopped_while_a_sink_hangs", STREAMING, |stage| Box::pin(process::stopped_while_a_sink_hangs(stage)))
        .slow(),
    scenario(8, "postmaster_killed", STREAMING, |stage| Box::pin(server::postmaster_killed(stage))),
    scenario(9, "restarted_inside_a_giant_transaction", STREAMING, |stage| {
        Box::pin(server::restarted_inside_a_giant_transaction(stage))
    }),
    scenario(10, "walsender_terminated", STREAMING, |stage| Box::pin(server::walsender_terminated(stage))),
    scenario(11, "reset", STREAMING, |stage| Box::pin(network::reset(stage))),
    scenario(12, "half_open", STREAMING, |stage| Box::pin(network::half_open(stage))).slow(),
    scenario(13, "late_and_lossy", STREAMING, |stage| Box::pin(network::late_and_lossy(stage))),
    scenario(14, "cut_after_any_byte", STREAMING, |stage| Box::pin(network::cut_after_any_byte(stage))),
    scenario(15, "answer_of_an_insert_lost", STREAMING, |stage| Box::pin(network::answer_of_an_insert_lost(stage))),
    scenario(16, "clickhouse_killed", FRAIL, |stage| Box::pin(server::clickhouse_killed(stage))),
    scenario(17, "disk_of_clickhouse_full", Opening { small: Small::Disk, ..FRAIL }, |stage| {
        Box::pin(server::disk_full(stage))
    })
    .unless(root),
    scenario(18, "too_many_parts", STREAMING, |stage| Box::pin(server::too_many_parts(stage))),
    scenario(
        19,
        "memory_of_clickhouse_full",
        Opening { small: Small::Memory, config: LARGE_BATCHES, ..FRAIL },
        |stage| Box::pin(server::memory_full(stage)),
    ),
    scenario(20, "clickhouse_killed_between_partitions", Opening { config: PARTITIONS, ..FRAIL }, |stage| {
        Box::pin(server::clickhouse_killed(stage))
    }),
    scenario(20, "one_partition_fails", Opening { config: PARTITIONS, ..FRAIL }, |stage| {
        Box::pin(server::one_partition_fails(stage))
    }),
    scenario(21, "sqs_away", WITH_WORKERS, |stage| Box::pin(network::sqs_away(stage))).slow(),
    scenario(22, "part_of_a_batch_refused", Opening { sieve: true, ..WITH_WORKERS }, |stage| {
        Box::pin(network::part_of_a_batch_refused(stage))
    }),
    scenario(23, "answer_of_a_send_lost", WITH_WORKERS, |stage| Box::pin(network::answer_of_a_send_lost(stage))),
    scenario(24, "killed_inside_a_handler", WITH_WORKERS, |stage| Box::pin(worker::killed_inside_a_handler(stage)))
        .slow(),
    scenario(24, "worker_outlives_its_message", WITH_WORKERS, |stage| {
        Box::pin(worker::worker_outlives_its_message(stage))
    })
    .slow(),
    scenario(25, "poison_rows_and_messages", WITH_WORKERS, |stage| Box::pin(poison::rows_and_messages(stage))),
    scenario(26, "two_daemons", STREAMING, |stage| Box::pin(process::two_daemons(stage))),
    scenario(27, "another_slot_or_cluster", STREAMING, |stage| Box::pin(identity::another_slot_or_cluster(stage))),
    scenario(28, "clock_wrong_by_a_day", STREAMING, |stage| Box::pin(process::clock_wrong_by_a_day(stage)))
        .unless(|| process::faketime().err()),
    scenario(29, "storm_of_ddl", Opening { storm: true, ..STREAMING }, |stage| {
        Box::pin(process::killed_in_a_storm_of_ddl(stage))
    }),
    scenario(30, "own_disk_full", Opening { own_disk: true, ..WITH_WORKERS }, |stage| {
        Box::pin(process::own_disk_full(stage))
    })
    .slow()
    .unless(root),
];

/// The defaults, whatever was drawn: where some faults strike is the stream.
const USUAL_READER: &str = "[source]\ncatch_up_window = \"32MiB\"\ncatch_up_lag = \"64MiB\"\n";
/// For a long run: workers, and a server that notices silence.
pub(crate) const OPEN_FOR_ALL: Opening =
    Opening { workers: true, prepare: SHORT_TIMEOUT, config: USUAL_READER, ..FRAIL };

/// Faults that walhouse lives through, in one process.
pub(crate) const ENDURED: &[(&str, Play)] = &[
    ("resets", |stage| Box::pin(network::reset(stage))),
    ("half open", |stage| Box::pin(network::half_open_beside_the_load(stage))),
    ("late and lossy", |stage| Box::pin(network::late_and_lossy(stage))),
    ("cuts", |stage| Box::pin(network::cut_after_any_byte(stage))),
    ("answers of inserts lost", |stage| Box::pin(network::answer_of_an_insert_lost(stage))),
    ("answers of sends lost", |stage| Box::pin(network::answer_of_a_send_lost(stage))),
    ("SQS away", |stage| Box::pin(network::sqs_away(stage))),
    ("frozen", |stage| Box::pin(process::frozen(stage))),
    ("PostgreSQL killed", |stage| Box::pin(server::postmaster_killed(stage))),
    ("walsender terminated", |stage| Box::pin(server::walsender_terminated(stage))),
    ("ClickHouse killed", |stage| Box::pin(server::clickhouse_killed(stage))),
    ("too many parts", |stage| Box::pin(server::too_many_parts(stage))),
    ("a giant transaction", |stage| Box::pin(server::giant_transaction(stage))),
];

const fn scenario(row: u32, name: &'static str, opening: Opening, play: Play) -> Scenario {
    Scenario { row, name, opening, slow: false, lacks: || None, play }
}

impl Scenario {
    const fn slow(self) -> Self {
        Self { slow: true, ..self }
    }

    const fn unless(self, lacks: fn() -> Option<String>) -> Self {
        Self { lacks, ..self }
    }
}

#[test]
fn each_scenario_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = ALL.iter().map(|scenario| scenario.name).collect();
    assert_eq!(names.len(), ALL.len());
}

/// An event of at least so many bytes, and what tells that it was committed.
fn event(bytes: usize) -> String {
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let payload = format!(
        r#"{{"eventType": "login", "actingUserId": "u-{id}", "outcome": "success", "details": {{"text": "{}"}}}}"#,
        "x".repeat(bytes)
    );
    format!(
        "INSERT INTO emitted VALUES ('{id}'); INSERT INTO outbox_event (id, event_type, payload)
        VALUES ('{id}', 'SecurityEventOccurred', '{payload}');"
    )
}

fn root() -> Option<String> {
    (!is_root()).then(|| "a small disk is mounted by root alone".to_owned())
}
