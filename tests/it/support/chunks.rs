//! The chunks of a copy, one at a time.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::TestDb;

/// Chunks that are stored as done, with the time at which each was.
pub(crate) async fn chunks(db: &TestDb) -> Vec<String> {
    let stored =
        db.ch.try_query("SELECT leaf, first_block, row_count, copied_at FROM _chunks FINAL ORDER BY ALL").await;
    stored.unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Lets the copy of a table go on a chunk at a time until some are done. The next one waits for as long as the
/// transaction of the session that is returned is open.
///
/// A lock that is asked for while a chunk is read stands before the next chunk's: however slow this session is, the
/// copy does not run away from it.
pub(crate) async fn hold_copy(db: &TestDb, table: &str, done: usize) -> Client {
    let holder = db.pg.connect().await.expect("a session");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let lock = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
        holder.batch_execute(&lock).await.expect("the lock");
        if chunks(db).await.len() >= done {
            return holder;
        }
        assert!(Instant::now() < deadline, "{:?}", chunks(db).await);
        holder.batch_execute("COMMIT").await.expect("the lock is given back");
    }
}
