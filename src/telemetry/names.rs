//! The one list of all metrics: what each is called, what it is, which labels it has and what it means.
//!
//! Everything else is made of it: the constants that the code writes to, the help that Prometheus shows, and the table of
//! `docs/metrics.md`. So a metric without a meaning does not exist.

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, and begins anew with the process.
    Counter,
    /// A value that comes and goes.
    Gauge,
    /// How often which values came, in buckets.
    Histogram,
}

impl Kind {
    /// As Prometheus calls it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// What it is about, for the page of metrics.
    pub about: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The labels that its series have.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($about:literal { $($constant:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)* })*) => {
        $($(
            #[doc = $help]
            pub const $constant: &str = $name;
        )*)*

        /// All of walhouse's own.
        pub const ALL: &[Metric] = &[$($(
            Metric { about: $about, name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help },
        )*)*];
    };
}

metrics! {
    "Latency and lag" {
        LATENCY = "walhouse_commit_to_durable_seconds", Histogram, [],
            "Time from a commit at the source until it was durable in ClickHouse; what a replay delivers again does not count";
        LAG_SECONDS = "walhouse_lag_seconds", Gauge, [],
            "Age of the oldest commit that is received and not yet durable; 0 when there is none. What a replay delivers again does not count";
        LAG_BYTES = "walhouse_source_lag_bytes", Gauge, [],
            "WAL of the source that is not yet durable in ClickHouse: its end minus the stored checkpoint";
        CHECKPOINT = "walhouse_checkpoint_position_bytes", Gauge, [],
            "WAL position of the stored checkpoint";
        CHECKPOINT_TIME = "walhouse_checkpoint_timestamp_seconds", Gauge, [],
            "When a checkpoint was stored last, as seconds since 1970; until there is one, when this process first held the slot";
    }
    "The source" {
        SOURCE_BYTES = "walhouse_source_bytes_total", Counter, [],
            "Bytes read from the replication slot";
        SOURCE_POSITION = "walhouse_source_position_bytes", Gauge, [],
            "WAL position up to which it was read for the slot";
        READER = "walhouse_reader", Gauge, ["reader"],
            "1 for the reader that is at work, streaming or catch_up, and 0 for the other; 0 for both between two sessions";
        RECONNECTS = "walhouse_reconnects_total", Counter, [],
            "Sessions that ended and were begun anew";
        CATCH_UP_WINDOWS = "walhouse_catch_up_windows_total", Counter, [],
            "Windows of WAL that were read to their end by the catch-up reader";
        CATCH_UP_GIVEN_UP = "walhouse_catch_up_given_up_total", Counter, ["reason"],
            "Times that the catch-up reader left the rest to the stream, by reason";
        REPLAY_REMAINING = "walhouse_replay_remaining_bytes", Gauge, [],
            "WAL that a replay has still to deliver again, before what is new; 0 without one";
        REPLAY_START = "walhouse_replay_start_timestamp_seconds", Gauge, [],
            "When this process took up the replay that is on its way, as seconds since 1970; 0 without one. New commits wait until it is done";
    }
    "The replication slot" {
        SLOT_STATE = "walhouse_slot_state", Gauge, ["state"],
            "1 for the state that PostgreSQL shows of the slot: active, inactive, lost or missing; 0 for the others. While catching up it is inactive by design";
        SLOT_INVALIDATED = "walhouse_slot_invalidated", Gauge, ["reason"],
            "1 for the reason for which PostgreSQL has given the slot up: wal_removed, rows_removed, wal_level_insufficient, idle_timeout or unknown";
        SLOT_RETAINED = "walhouse_slot_retained_bytes", Gauge, [],
            "WAL that PostgreSQL keeps for the slot, from its restart_lsn on";
        SLOT_UNCONFIRMED = "walhouse_slot_unconfirmed_bytes", Gauge, [],
            "WAL beyond the position that the slot has confirmed";
        SLOT_SAFE = "walhouse_slot_safe_wal_bytes", Gauge, [],
            "WAL that may be written until PostgreSQL can take the slot's WAL away (safe_wal_size); +Inf without max_slot_wal_keep_size, 0 when it is lost";
    }
    "Dependencies" {
        DEPENDENCY_UP = "walhouse_dependency_up", Gauge, ["dependency"],
            "1 while postgresql, clickhouse or sqs answers a question that is asked every few seconds, 0 while it does not";
        PARTS = "walhouse_clickhouse_parts", Gauge, [],
            "Active parts of all tables of the database in ClickHouse";
        PARTS_MOST = "walhouse_clickhouse_partition_parts_max", Gauge, [],
            "Active parts of the partition that has most; ClickHouse slows inserts from parts_to_delay_insert on, and refuses them from parts_to_throw_insert on";
    }
    "Tables" {
        ROWS_RECEIVED = "walhouse_rows_received_total", Counter, ["table"],
            "Changes received from the source";
        ROWS_WRITTEN = "walhouse_rows_written_total", Counter, ["table"],
            "Rows that ClickHouse confirmed";
        COPY_ROWS = "walhouse_copy_rows_total", Counter, ["table"],
            "Rows written by a copy: the initial one, or a later one";
        COPY_PROGRESS = "walhouse_copy_progress_ratio", Gauge, ["table"],
            "Share of the last copy that is done, 0 to 1";
        COPY_PENDING = "walhouse_copy_pending_tables", Gauge, [],
            "Tables whose copy is not complete";
        PAUSED = "walhouse_paused", Gauge, ["what"],
            "What an operator has paused: 1 for the pipeline and for a worker (audit, operation, data-sync), and how many tables";
        TABLES_STOPPED = "walhouse_tables_stopped", Gauge, [],
            "Tables that are stopped, and need an operator";
        TABLE_STOPPED = "walhouse_table_stopped", Gauge, ["table"],
            "1 for a table that is stopped, 0 once it is not any more";
        SHAPE_CHANGES = "walhouse_shape_changes_total", Counter, ["table", "outcome"],
            "Changes of shape, by outcome: altered in place, or copied anew";
        DDL_MESSAGES = "walhouse_ddl_messages_total", Counter, ["outcome"],
            "Messages of the DDL triggers, or like theirs, by outcome: understood or refused";
        TOAST_LOOKUPS = "walhouse_toast_lookups_total", Counter, ["place"],
            "Rows whose unchanged TOAST was looked up, by where it was found";
        VALUES_REPLACED = "walhouse_values_replaced_total", Counter, ["table", "policy"],
            "Values replaced because their columns can not hold them, by policy: null or clamp";
        DEAD_LETTERS = "walhouse_dead_letters_total", Counter, ["table", "reason"],
            "Rows that went to the dead letters, by kind of reason";
        LETTERS_STORED = "walhouse_dead_letters_stored", Gauge, ["table"],
            "Letters in _dead_letters, whenever they were written, until somebody purges them";
    }
    "Inserts and memory" {
        INSERT_SECONDS = "walhouse_insert_seconds", Histogram, [],
            "Duration of attempts to insert a batch, those that failed among them";
        INSERT_ROWS = "walhouse_insert_rows", Histogram, [],
            "Rows of a batch that ClickHouse confirmed; their count is that of batches";
        INSERT_ERRORS = "walhouse_insert_errors_total", Counter, ["kind"],
            "Attempts to insert that failed: transient ones are tried again, refused ones concern rows or their table, halt ends walhouse";
        MEMORY = "walhouse_memory_in_flight_bytes", Gauge, [],
            "Changes and blocks in flight, and blocks that are kept for the next ones";
        MEMORY_BUDGET = "walhouse_memory_budget_bytes", Gauge, [],
            "memory.budget: what the above stays within";
        BACK_PRESSURE = "walhouse_back_pressure", Gauge, [],
            "1 while nothing more is taken from the source, since batches on their way fill their half of memory.budget; 0 while there is room";
    }
    "Events" {
        EVENTS = "walhouse_events_total", Counter, ["queue"],
            "Events of applications that came to be sent";
        EVENTS_SENT = "walhouse_events_sent_total", Counter, ["queue"],
            "Events that a queue has confirmed; one that is sent again after a restart counts again";
        EVENTS_OUTSIDE = "walhouse_events_outside_transactions_total", Counter, [],
            "Messages that would be events, and stand outside of transactions: they are not published";
        EVENTS_BEHIND = "walhouse_events_behind", Gauge, [],
            "1 while events wait in the WAL because they came faster than they were sent";
        QUEUE_LATENCY = "walhouse_queue_latency_seconds", Histogram, [],
            "Time from an event's commit until its queue has confirmed it, for each event; those that a replay sends again do not count";
        QUEUE_ERRORS = "walhouse_queue_errors_total", Counter, ["kind"],
            "Requests to send to SQS that failed: transient ones are tried again";
    }
    "Queues and workers" {
        QUEUE_MESSAGES = "walhouse_queue_messages", Gauge, ["queue", "state"],
            "Messages of a queue by state: visible, in_flight or delayed, as SQS counts them every half a minute";
        DLQ_MESSAGES = "walhouse_dlq_messages", Gauge, ["queue"],
            "Messages in the queue of this queue's dead letters, in whatever state; NaN once they can not be counted";
        QUEUE_FRONT = "walhouse_queue_front_timestamp_seconds", Gauge, ["queue"],
            "Nothing that waits in the queue was sent before this, nearly: when the last message to be taken for the first time was sent, or when the queue was last seen empty, or else first looked at";
        QUEUE_WAIT = "walhouse_queue_wait_seconds", Histogram, ["queue"],
            "Time from when a message was sent until a worker took it for the first time";
        PAYLOADS_STORED = "walhouse_payloads_stored_total", Counter, [],
            "Payloads put into the object store, being too large for a queue; one that is put there again counts again";
        PAYLOAD_ERRORS = "walhouse_payload_errors_total", Counter, ["request"],
            "Payloads that could not be put into the object store or read from it, by which of the two: write or read";
        EVENTS_HANDLED = "walhouse_events_handled_total", Counter, ["worker", "outcome"],
            "Messages that came to an end at a worker, by outcome: done, known (an event of its id was done before), again, dead, lost or released";
        HANDLER_SECONDS = "walhouse_handler_seconds", Histogram, ["worker"],
            "Time that a worker had a message in hand";
        WORKER_IN_HAND = "walhouse_worker_in_hand", Gauge, ["worker"],
            "Messages that a worker has in hand";
        WORKER_OLDEST = "walhouse_worker_oldest_in_hand_timestamp_seconds", Gauge, ["worker"],
            "When a worker took the message that it has had in hand for longest; 0 without one";
        WORKER_TIMEOUT = "walhouse_worker_timeout_seconds", Gauge, ["worker"],
            "How long the handling of one message may take";
        WORKER_WAITS = "walhouse_worker_waits", Gauge, ["worker"],
            "1 while a worker waits for what it depends on";
        TAKE_ERRORS = "walhouse_worker_take_errors_total", Counter, ["worker", "kind"],
            "Requests of workers for messages that failed: transient ones are tried again";
    }
    "The process" {
        BUILD_INFO = "walhouse_build_info", Gauge, ["version"],
            "1, with the version as a label";
    }
}

/// The metrics of the process itself, and what they mean. Their names are those that all exporters use, so that dashboards for
/// any process work.
pub const PROCESS: &[(&str, &str, &str)] = &[
    ("process_cpu_seconds_total", "counter", "Time of processors that was used"),
    ("process_resident_memory_bytes", "gauge", "Memory that is resident"),
    ("process_virtual_memory_bytes", "gauge", "Memory that is mapped"),
    ("process_virtual_memory_max_bytes", "gauge", "Memory that may be mapped"),
    ("process_open_fds", "gauge", "File descriptors that are open"),
    ("process_max_fds", "gauge", "File descriptors that may be open"),
    ("process_threads", "gauge", "Threads"),
    ("process_start_time_seconds", "gauge", "When it began, as seconds since 1970"),
];
