//! The scenarios: each is a row of the fault matrix in `docs/faults.md`.
//!
//! A scenario only injects its fault, again and again, beside the load, and looks at what the row promises beyond what holds for
//! all of them: what is equal in the end, and in order on the way, is the oracle's and the witness's matter.

mod network;
mod process;
mod server;

use futures_util::future::LocalBoxFuture;

use crate::stage::{Opening, Stage};

pub(crate) struct Scenario {
    /// Of the matrix.
    pub(crate) row: u32,
    pub(crate) name: &'static str,
    pub(crate) opening: Opening,
    pub(crate) play: for<'a> fn(&'a mut Stage) -> LocalBoxFuture<'a, ()>,
}

const STREAMING: Opening = Opening { copying: false, storm: false, workers: false, prepare: "", config: "" };
const WITH_WORKERS: Opening = Opening { workers: true, ..STREAMING };
const COPYING: Opening = Opening { copying: true, ..STREAMING };
/// Batches with rows of many partitions.
const PARTITIONS: &str = "[tables.\"public.item\"]\npartition_by = \"intDiv(id, 20)\"\n\
    [tables.\"public.line\"]\npartition_by = \"head % 5\"\n[tables.\"public.bulk\"]\npartition_by = \"intDiv(id, 500)\"\n";
/// The server gives up a walsender that is silent for so long; it is silent for longer.
const SHORT_TIMEOUT: &str = "DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET wal_sender_timeout = ''4s''', current_database()); END $$";

pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        row: 1,
        name: "killed_at_any_moment",
        opening: STREAMING,
        play: |stage| Box::pin(process::killed_at_any_moment(stage)),
    },
    Scenario {
        row: 2,
        name: "killed_between_insert_and_checkpoint",
        opening: STREAMING,
        play: |stage| Box::pin(process::killed_between_insert_and_checkpoint(stage)),
    },
    Scenario {
        row: 3,
        name: "killed_between_checkpoint_and_status",
        opening: STREAMING,
        play: |stage| Box::pin(process::killed_between_checkpoint_and_status(stage)),
    },
    Scenario {
        row: 4,
        name: "killed_in_the_copy",
        opening: COPYING,
        play: |stage| Box::pin(process::killed_in_the_copy(stage)),
    },
    Scenario {
        row: 5,
        name: "rewritten_in_the_copy",
        opening: COPYING,
        play: |stage| Box::pin(server::rewritten_in_the_copy(stage)),
    },
    Scenario {
        row: 6,
        name: "frozen",
        opening: Opening { prepare: SHORT_TIMEOUT, ..STREAMING },
        play: |stage| Box::pin(process::frozen(stage)),
    },
    Scenario {
        row: 7,
        name: "stopped_while_a_sink_hangs",
        opening: STREAMING,
        play: |stage| Box::pin(process::stopped_while_a_sink_hangs(stage)),
    },
    Scenario {
        row: 8,
        name: "postmaster_killed",
        opening: STREAMING,
        play: |stage| Box::pin(server::postmaster_killed(stage)),
    },
    Scenario {
        row: 9,
        name: "restarted_inside_a_giant_transaction",
        opening: STREAMING,
        play: |stage| Box::pin(server::restarted_inside_a_giant_transaction(stage)),
    },
    Scenario {
        row: 10,
        name: "walsender_terminated",
        opening: STREAMING,
        play: |stage| Box::pin(server::walsender_terminated(stage)),
    },
    Scenario { row: 11, name: "reset", opening: STREAMING, play: |stage| Box::pin(network::reset(stage)) },
    Scenario { row: 12, name: "half_open", opening: STREAMING, play: |stage| Box::pin(network::half_open(stage)) },
    Scenario {
        row: 13,
        name: "late_and_lossy",
        opening: STREAMING,
        play: |stage| Box::pin(network::late_and_lossy(stage)),
    },
    Scenario {
        row: 14,
        name: "cut_after_any_byte",
        opening: STREAMING,
        play: |stage| Box::pin(network::cut_after_any_byte(stage)),
    },
    Scenario {
        row: 15,
        name: "answer_of_an_insert_lost",
        opening: STREAMING,
        play: |stage| Box::pin(network::answer_of_an_insert_lost(stage)),
    },
    Scenario {
        row: 16,
        name: "clickhouse_killed",
        opening: STREAMING,
        play: |stage| Box::pin(server::clickhouse_killed(stage)),
    },
    Scenario {
        row: 18,
        name: "too_many_parts",
        opening: STREAMING,
        play: |stage| Box::pin(server::too_many_parts(stage)),
    },
    Scenario {
        row: 20,
        name: "clickhouse_killed_between_partitions",
        opening: Opening { config: PARTITIONS, ..STREAMING },
        play: |stage| Box::pin(server::clickhouse_killed(stage)),
    },
    Scenario { row: 21, name: "sqs_away", opening: WITH_WORKERS, play: |stage| Box::pin(network::sqs_away(stage)) },
    Scenario {
        row: 23,
        name: "answer_of_a_send_lost",
        opening: WITH_WORKERS,
        play: |stage| Box::pin(network::answer_of_a_send_lost(stage)),
    },
    Scenario {
        row: 24,
        name: "killed_inside_a_handler",
        opening: WITH_WORKERS,
        play: |stage| Box::pin(process::killed_inside_a_handler(stage)),
    },
    Scenario { row: 26, name: "two_daemons", opening: STREAMING, play: |stage| Box::pin(process::two_daemons(stage)) },
    Scenario {
        row: 29,
        name: "storm_of_ddl",
        opening: Opening { storm: true, ..STREAMING },
        play: |stage| Box::pin(process::killed_in_a_storm_of_ddl(stage)),
    },
];
