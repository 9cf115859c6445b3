//! Both readers, driven by themselves on one WAL: what they hand over is the same, message by message.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use walhouse::config::{ByteSize, SourceConfig};
use walhouse::event::{Event, Lsn, Op, Span};
use walhouse::lane::{Delivery, LaneReceiver, Room, lane};
use walhouse::postgres::connection::ReplicationConnection;
use walhouse::postgres::lock::SlotLock;
use walhouse::postgres::outlet::Outlet;
use walhouse::postgres::source::{Reader, Settings, Source};
use walhouse::postgres::sql;

use super::alone;
use crate::support::{ClickHouse, Load, Pg, Postgres, PostgresOptions, TestDb, eventually, seeded_rng};

const PREPARE: &str = "CREATE TYPE mood AS ENUM ('calm', 'wild');
    CREATE TABLE whole (id int PRIMARY KEY, v text, mood mood); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE event (day date, id int, v text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
    CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
    CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
    CREATE TABLE filtered (id int PRIMARY KEY, v text, kept bool);
    CREATE TABLE apart (id int PRIMARY KEY);";

/// What the load has not: truncates, relations that change, rows of one record, nothing at all, and much at once.
const MIXTURE: &str = "INSERT INTO whole SELECT i, 'first', 'calm' FROM generate_series(1, 500) i;
    UPDATE whole SET mood = 'wild' WHERE id % 3 = 0; UPDATE whole SET id = id + 1000 WHERE id % 5 = 0;
    INSERT INTO event SELECT date '2024-01-01' + i % 50, i, 'e' FROM generate_series(1, 300) i;
    UPDATE event SET day = day + 20 WHERE day < '2024-02-01' AND id % 2 = 0;
    BEGIN; INSERT INTO apart VALUES (1), (2); SAVEPOINT a; DELETE FROM apart; SAVEPOINT b; INSERT INTO apart VALUES (9);
        ROLLBACK TO a; INSERT INTO apart VALUES (3); RELEASE a; COMMIT;
    BEGIN; TRUNCATE whole, apart; INSERT INTO whole VALUES (1, 'after', NULL); COMMIT;
    BEGIN; SAVEPOINT s; INSERT INTO apart VALUES (50); ROLLBACK TO s; COMMIT;
    BEGIN; CREATE TEMP TABLE nothing (a int); COMMIT; DROP TABLE nothing;
    INSERT INTO filtered SELECT i, repeat('f', i % 90), i % 2 = 0 FROM generate_series(1, 300) i;
    UPDATE filtered SET kept = NOT kept WHERE id % 3 = 0; DELETE FROM filtered WHERE id % 7 = 0;
    ALTER TABLE whole ADD COLUMN more int DEFAULT 7; UPDATE whole SET v = 'wider';
    BEGIN; INSERT INTO whole VALUES (2, 'x', 'wild', 1); ALTER TABLE whole DROP COLUMN mood;
        INSERT INTO whole VALUES (3, 'y', 2); COMMIT;
    ALTER TABLE event RENAME COLUMN v TO renamed; INSERT INTO event VALUES ('2024-02-28', 1, 'after');
    SELECT pg_logical_emit_message(true, 'walhouse', 'inside'), pg_logical_emit_message(false, 'walhouse', 'outside');";

/// More than a session keeps in memory, in subtransactions.
const LARGE: &str =
    "BEGIN; INSERT INTO filtered SELECT i, repeat('0123456789', 20), true FROM generate_series(1000, 6000) i;
    SAVEPOINT a; UPDATE filtered SET v = 'x' WHERE id >= 1000; ROLLBACK TO a;
    SAVEPOINT b; UPDATE filtered SET v = 'y' WHERE id >= 3000; COMMIT;";

/// Ends the sessions that catch up, and says how many there were.
const TERMINATE: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE application_name = 'walhouse catch-up' AND datname = current_database()";

pub(super) fn source(db: &TestDb, slot: &str, sessions: usize) -> SourceConfig {
    let mut source = SourceConfig::new(db.pg.url().parse().expect("a URL"));
    source.slot = slot.to_owned();
    source.catch_up_sessions = Some(sessions);
    source.catch_up_window = ByteSize(64 << 10);
    source.catch_up_lag = ByteSize(64 << 10);
    source
}

pub(super) async fn position(pg: &Pg, what: &str) -> Lsn {
    pg.value(&format!("SELECT ({what})::text")).await.parse().expect("an LSN")
}

/// A slot of the database that nobody else reads, and where it stands.
pub(super) async fn slot(db: &TestDb, name: &str) -> (String, Lsn) {
    let slot = format!("{}_{name}", db.name);
    let made = format!("SELECT lsn FROM pg_create_logical_replication_slot('{slot}', 'pgoutput')");
    let at = db.pg.value(&made).await;
    (slot, at.parse().expect("an LSN"))
}

/// A message with all that goes into a version and a row, and the shape that holds for it.
#[derive(Default)]
struct Script {
    shapes: HashMap<u32, String>,
    lines: Vec<String>,
    end: Lsn,
}

impl Script {
    fn add(&mut self, delivery: &Delivery) {
        let hex = |span: Span| format!("{:02x?}", span.bytes(&delivery.data));
        for event in &delivery.events {
            let line = match event {
                Event::Relation(relation) => {
                    self.shapes.insert(relation.oid, format!("{relation:?}"));
                    continue;
                }
                Event::Idle(at) => {
                    self.end = self.end.max(*at);
                    continue;
                }
                Event::Commit { end } => {
                    self.end = self.end.max(*end);
                    format!("commit {end}")
                }
                Event::Change(change) => {
                    let row = match change.op {
                        Op::Insert { new } => format!("insert {}", hex(new)),
                        Op::Delete { old, old_is_key } => format!("delete {} {old_is_key}", hex(old)),
                        Op::Update { old, old_is_key, new } => {
                            format!("update {:?} {old_is_key} {}", old.map(hex), hex(new))
                        }
                    };
                    format!("{} {row} {}", change.record, self.shapes[&change.relation])
                }
                Event::Message { record, transactional, prefix, content } => {
                    format!("message {record} {transactional} {} {}", hex(*prefix), hex(*content))
                }
                other => format!("{other:?}"),
            };
            self.lines.push(line);
        }
    }
}

/// How a reading went.
pub(super) struct Reading {
    script: Script,
    pub(super) readers: Vec<Reader>,
}

/// Reads a slot from `start` up to `end`; `meet` sees every group before it is taken, with the number of those before.
async fn read(source: SourceConfig, start: Lsn, end: Lsn, room: usize, meet: impl AsyncFnMut(usize)) -> Reading {
    Drive { room, ..Drive::new(source, start, end) }.run(meet).await
}

/// What a slot is read with.
pub(super) struct Drive {
    pub(super) source: SourceConfig,
    pub(super) start: Lsn,
    pub(super) end: Lsn,
    /// The end of the WAL.
    pub(super) flushed: Lsn,
    pub(super) room: usize,
    /// The checkpoint.
    pub(super) stored: watch::Sender<Lsn>,
    pub(super) stop: CancellationToken,
}

impl Drive {
    pub(super) fn new(source: SourceConfig, start: Lsn, end: Lsn) -> Self {
        let (stored, stop) = (watch::channel(start).0, CancellationToken::new());
        Self { source, start, end, flushed: end, room: 1 << 20, stored, stop }
    }

    pub(super) async fn run(self, mut meet: impl AsyncFnMut(usize)) -> Reading {
        let Self { source, start, end, flushed, room, stored, stop } = self;
        let connection = ReplicationConnection::connect(&source.url, "test").await.expect("a connection");
        let client = sql::connect(&source, "test lock").await.expect("a session");
        let lock = Arc::new(SlotLock::take(client, &source.slot).await.expect("nobody else has it"));
        let (sender, receiver, _durable) = lane(start);
        let LaneReceiver { mut deliveries, .. } = receiver;
        let (_flushed, flushed) = watch::channel(flushed);
        let readers = Arc::new(std::sync::Mutex::new(Vec::new()));
        let told = Arc::clone(&readers);
        let began = Box::new(move |reader| told.lock().expect("nobody panics here").push(reader));
        let settings = Settings { source, lock, flushed, began };
        let outlet = Outlet::new(start, vec![sender], Room::new(room), stored.subscribe().into());
        let mut source = Source::start(connection, outlet, settings).await.expect("the slot can be read");
        let mut script = Script::default();
        let reading = Box::pin(async {
            let ended = source.run(&stop).await;
            source.release_lanes();
            source.finish().await;
            ended
        });
        let taking = async {
            let mut count = 0;
            while let Some(delivery) = deliveries.recv().await {
                meet(count).await;
                count += 1;
                script.add(&delivery);
                if script.end >= end {
                    stop.cancel();
                }
            }
        };
        let both = async { tokio::join!(reading, taking) };
        let (ended, ()) = tokio::time::timeout(Duration::from_secs(120), both).await.expect("it comes to an end");
        ended.expect("the slot was read");
        let readers = readers.lock().expect("nobody panics here").clone();
        Reading { script, readers }
    }
}

fn assert_same(streamed: &Script, other: &Script) {
    for (index, line) in streamed.lines.iter().enumerate() {
        assert_eq!(Some(line), other.lines.get(index), "message {index} of {}", streamed.lines.len());
    }
    assert_eq!(streamed.lines.len(), other.lines.len());
}

async fn publish(db: &TestDb, version: &str) {
    // Column lists came with PostgreSQL 15.
    let columns = if version == "14" { "" } else { "(id, v)" };
    db.pg
        .execute(&format!(
            "CREATE PUBLICATION walhouse FOR TABLE item, line, account, whole, event, apart, filtered {columns}
            WITH (publish_via_partition_root = true)"
        ))
        .await;
}

/// One WAL with everything in it, streamed, and read in windows by one session and by three.
async fn same(version: &'static str) {
    let settings = vec![("logical_decoding_work_mem", "64kB".to_owned())];
    let postgres = Postgres::private(PostgresOptions { version, settings, ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), &format!("readers_{version}")).await;
    let mut rng = seeded_rng();
    db.pg.execute(PREPARE).await;
    Load::prepare(&db, &mut rng).await;
    publish(&db, version).await;
    let (main, start) = slot(&db, "main").await;
    let load = Load::start(&db, &mut rng, 6);
    load.wait_commits(60).await;
    for statement in MIXTURE.split_inclusive(";\n") {
        db.pg.execute(statement).await;
        load.wait_commits(3).await;
    }
    db.pg.execute(LARGE).await;
    db.pg.execute("CHECKPOINT; SELECT pg_switch_wal(); INSERT INTO apart VALUES (100)").await;
    load.wait_commits(200).await;
    load.stop().await;
    let end = position(&db.pg, "pg_current_wal_flush_lsn()").await;
    let streamed = read(source(&db, &main, 0), start, end, 1 << 20, async |_| {}).await;
    assert_eq!(streamed.readers, [Reader::Streaming]);
    println!("{} messages", streamed.script.lines.len());
    for sessions in [1, 3] {
        let caught = read(source(&db, &main, sessions), start, end, 1 << 20, async |_| {}).await;
        assert_eq!(caught.readers[0], Reader::CatchUp);
        assert_same(&streamed.script, &caught.script);
    }
    let kinds = ["message", "truncate", "insert", "update None", "update Some", "delete", "Begin", "commit"];
    for kind in kinds {
        let found = streamed.script.lines.iter().any(|line| line.to_lowercase().contains(&kind.to_lowercase()));
        assert!(found, "no {kind} was among it");
    }
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_readers_hand_over_the_same_on_postgres_14() {
    same("14").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_readers_hand_over_the_same_on_postgres_15() {
    same("15").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_readers_hand_over_the_same_on_postgres_17() {
    same("17").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_readers_hand_over_the_same_on_postgres_18() {
    same("18").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_interrupted_comes_once() {
    let db = alone("interrupted").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY, v text); CREATE PUBLICATION walhouse FOR TABLE item").await;
    let (main, start) = slot(&db, "main").await;
    db.pg.execute("INSERT INTO item VALUES (0, 'before')").await;
    // Rows with a record of their own, and rows that share one.
    let file = db.postgres.directory().join("rows");
    let large = format!(
        "INSERT INTO item SELECT i, repeat('v', 400) FROM generate_series(1, 20000) i;
        CREATE TEMP TABLE rows AS SELECT i, repeat('w', 300) FROM generate_series(20001, 40000) i;
        COPY rows TO '{file}'; BEGIN; UPDATE item SET v = v || 'x'; COPY item FROM '{file}';
        UPDATE item SET v = 'u' WHERE id % 2 = 0; COMMIT; INSERT INTO item VALUES (-1, 'after')",
        file = file.display()
    );
    db.pg.execute(&large).await;
    let end = position(&db.pg, "pg_current_wal_flush_lsn()").await;
    let streamed = read(source(&db, &main, 0), start, end, 1 << 20, async |_| {}).await;
    for at in [1, 5, 12, 20] {
        let mut source = source(&db, &main, 1);
        source.catch_up_window = ByteSize::mib(16);
        let broken = read(source, start, end, 1 << 10, async |count| {
            if count == at {
                assert_eq!(db.pg.value(&format!("{TERMINATE} AND state = 'active'")).await, "1", "all was sent");
                eventually(Duration::from_secs(10), async || {
                    let left = db.pg.value(TERMINATE).await;
                    if left == "0" { Ok(()) } else { Err(left) }
                })
                .await;
            }
        })
        .await;
        assert_eq!(broken.readers, [Reader::CatchUp, Reader::Streaming], "at {at}");
        assert_same(&streamed.script, &broken.script);
    }
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_transaction_that_was_opened_on_the_way_it_streams() {
    let db = alone("opened").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY, v text); CREATE PUBLICATION walhouse FOR TABLE item").await;
    let (main, start) = slot(&db, "main").await;
    let old = db.pg.connect().await.expect("PostgreSQL takes connections");
    old.batch_execute("BEGIN; INSERT INTO item VALUES (-1, 'old')").await.expect("a row can be inserted");
    let mut ends = Vec::new();
    // Far more than the server shall decode again for one window, and then as much once more.
    for id in 0..60 {
        let rows = format!("INSERT INTO item SELECT {id}000 + i, repeat('v', 1500) FROM generate_series(1, 200) i");
        db.pg.execute(&rows).await;
        db.pg.execute("CHECKPOINT").await;
        ends.push(position(&db.pg, "pg_current_wal_flush_lsn()").await);
    }
    old.batch_execute("COMMIT").await.expect("it can be committed");
    let (end, flushed) = (ends[ends.len() / 2], position(&db.pg, "pg_current_wal_flush_lsn()").await);
    let mut streamed = read(source(&db, &main, 0), start, flushed, 1 << 20, async |_| {}).await;
    let caught = Drive { flushed, ..Drive::new(source(&db, &main, 1), start, end) }.run(async |_| {}).await;
    assert_eq!(caught.readers, [Reader::CatchUp, Reader::Streaming]);
    // It stopped somewhere behind the end.
    streamed.script.lines.truncate(caught.script.lines.len());
    assert_same(&streamed.script, &caught.script);
    db.cleanup().await;
}

/// The end of a segment, and behind it at once a commit of a transaction that began before: a bound within the segment's
/// header has the commit begin behind it, and yet it is the first record that ends there.
async fn commit_behind_a_header(db: &TestDb) -> Option<(Lsn, Lsn)> {
    const HEADER: u64 = 40;
    let begun = db.pg.connect().await.expect("PostgreSQL takes connections");
    begun.batch_execute("BEGIN; INSERT INTO item VALUES (random() * 1e9, 'v')").await.expect("a row can be inserted");
    db.pg.query("SELECT pg_switch_wal()").await;
    begun.batch_execute("COMMIT").await.expect("it can be committed");
    let end = position(&db.pg, "pg_current_wal_insert_lsn()").await;
    let segment = end.0 & !((16 << 20) - 1);
    // Nothing else was written: a commit with nothing beside it is short.
    (end.0 - segment < HEADER + 100).then_some((Lsn(segment + 16), Lsn(segment + HEADER)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_two_windows_have_comes_once() {
    let db = alone("twice").await;
    db.pg.execute("CREATE TABLE item (id int, v text); CREATE PUBLICATION walhouse FOR TABLE item").await;
    for _ in 0..5 {
        let (main, start) = slot(&db, &format!("main_{:08x}", rand::random::<u32>())).await;
        let Some((bound, commit)) = commit_behind_a_header(&db).await else { continue };
        db.pg.execute("INSERT INTO item SELECT i, repeat('v', 900) FROM generate_series(1, 20000) i").await;
        let end = position(&db.pg, "pg_current_wal_flush_lsn()").await;
        let streamed = read(source(&db, &main, 0), start, end, 1 << 20, async |_| {}).await;
        let begin = format!("commit: {commit:?}");
        assert!(streamed.script.lines[0].contains(&begin), "{begin} {:?}", streamed.script.lines[0]);
        let mut source = source(&db, &main, 2);
        source.catch_up_window = ByteSize(bound.since(start));
        let caught = read(source, start, end, 1 << 20, async |_| {}).await;
        assert_eq!(caught.readers[0], Reader::CatchUp);
        assert_same(&streamed.script, &caught.script);
        return db.cleanup().await;
    }
    panic!("something else was written each time");
}
