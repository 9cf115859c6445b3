//! Where the stream stands, and how to make it come once more.

use std::time::Duration;

use super::database::TestDb;
use super::equal::assert_equal_within;
use super::eventually;
use super::process::signal;

/// Waits until walhouse has acknowledged everything that was committed before this call.
///
/// Equality alone may be seen too early: before a change that breaks it has arrived.
pub(crate) async fn settled(db: &TestDb) {
    let position = db.pg.value("SELECT pg_current_wal_lsn()").await;
    let lag = format!(
        "SELECT confirmed_flush_lsn >= '{position}', confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
        db.name
    );
    eventually(Duration::from_secs(60), async || match db.pg.try_query(&lag).await?.pop() {
        Some(row) if row[0].as_deref() == Some("t") => Ok(()),
        row => Err(format!("the slot stands at {row:?}, not at {position}; stopped tables: {}", stopped(db).await?)),
    })
    .await;
}

/// Waits until walhouse has taken in everything that was committed before, and fails the test if the tables differ then.
pub(crate) async fn assert_settled_equal(db: &TestDb, tables: &[&str]) {
    settled(db).await;
    assert_eq!(stopped(db).await.as_deref(), Ok(""), "no table has a reason to stop");
    for table in tables {
        // Nothing is on its way any more, but for a copy.
        assert_equal_within(db, table, Duration::from_secs(10)).await;
    }
}

/// What `_tables` holds of tables that have stopped; empty when there are none.
pub(crate) async fn stopped(db: &TestDb) -> Result<String, String> {
    db.ch.try_query("SELECT table_name, reason FROM _tables FINAL WHERE status = 'stopped' ORDER BY table_name").await
}

/// A slot that stays where it was made, for the sake of the WAL after it.
pub(crate) struct Past {
    slot: String,
}

impl Past {
    /// From here on everything can be replayed. No transaction may be open.
    pub(crate) async fn begin(db: &TestDb) -> Self {
        let slot = format!("{}_past", db.name);
        db.pg.query(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
        Self { slot }
    }

    /// Sets slot and checkpoint back, to the beginning or to `position`. The daemon must not run; once it is started it
    /// replays what came after.
    pub(crate) async fn restore(&self, db: &TestDb, position: Option<&str>) {
        let (slot, past) = (&db.name, &self.slot);
        eventually(Duration::from_secs(20), async || {
            db.pg.try_query(&format!("SELECT pg_drop_replication_slot('{slot}')")).await
        })
        .await;
        db.pg.query(&format!("SELECT pg_copy_logical_replication_slot('{past}', '{slot}')")).await;
        if let Some(position) = position {
            db.pg.query(&format!("SELECT pg_replication_slot_advance('{slot}', '{position}')")).await;
        }
        let confirmed = format!(
            "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = '{slot}'"
        );
        let confirmed = db.pg.value(&confirmed).await;
        db.ch
            .query(&format!(
                "INSERT INTO _checkpoint (slot, epoch, lsn, ceiling, system_identifier, timeline, publication, revision)
                 SELECT slot, epoch, {confirmed}, ceiling, system_identifier, timeline, publication, revision + 1
                 FROM _checkpoint WHERE slot = '{slot}' ORDER BY revision DESC LIMIT 1"
            ))
            .await;
    }
}

/// The server's process behind a slot, standing still: the stream falls behind for as long as this lives.
///
/// It stands while it waits for something to do. Stopped elsewhere, it may hold one of the locks that live in shared
/// memory, and the whole server, which other tests use too, would stand with it.
pub(crate) struct FrozenStream {
    pid: u32,
}

impl FrozenStream {
    pub(crate) async fn of(db: &TestDb) -> Self {
        let active = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}' AND active", db.name);
        let pid = eventually(Duration::from_secs(20), async || {
            let rows = db.pg.try_query(&active).await?;
            rows.first().and_then(|row| row[0].as_deref()?.parse().ok()).ok_or("nobody reads the slot".to_owned())
        })
        .await;
        eventually(Duration::from_secs(20), async || {
            signal("STOP", &[pid]);
            let frozen = Self { pid };
            eventually(Duration::from_secs(5), async || match process(pid, "stat") {
                stat if stat.contains(") T ") => Ok(()),
                stat => Err(format!("it does not stand still: {stat}")),
            })
            .await;
            let call = process(pid, "syscall");
            let waits = EPOLL_WAITS.iter().any(|number| call.split(' ').next() == Some(*number));
            if waits { Ok(frozen) } else { Err(format!("it is at work: {call}")) }
        })
        .await
    }
}

/// The numbers of the system calls in which PostgreSQL waits for its sockets: epoll_wait and epoll_pwait on x86-64, and
/// the latter on arm64.
const EPOLL_WAITS: [&str; 3] = ["232", "281", "22"];

/// What the kernel tells of a process.
fn process(pid: u32, what: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default()
}

impl Drop for FrozenStream {
    fn drop(&mut self) {
        signal("CONT", &[self.pid]);
    }
}
