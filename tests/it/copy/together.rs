//! The blocks of a chunk go into one insert: it is one part, and whatever befalls it, the rows are all there.

use std::time::Duration;

use super::{ONE_WORKER, ROWS, chunks, hold, wide};
use crate::support::{Daemon, Proxy, TestDb, assert_equal, eventually, signal};

/// Many blocks in a chunk.
const SMALL: &str = "[batch]\nmax_bytes = \"64KiB\"\n[memory]\nbudget = \"2MiB\"\n";

/// How many parts inserts have made of a table, merged or not.
async fn parts(db: &TestDb, table: &str) -> usize {
    let sql =
        format!("SELECT max(max_block_number) FROM system.parts WHERE database = '{}' AND table = '{table}'", db.name);
    db.ch.query(&sql).await.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_is_a_part_however_many_blocks_it_has() {
    let db = TestDb::new("copy_parts").await;
    wide(&db).await;
    let mut daemon = Daemon::spawn(&db, &format!("{ONE_WORKER}{SMALL}"));
    daemon.wait_ready().await;
    assert_eq!((chunks(&db).await.len(), parts(&db, "wide").await), (4, 4));
    assert_equal(&db, "wide").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_chunk_that_clickhouse_refuses_are_found_and_the_others_land() {
    let db = TestDb::new("copy_refused").await;
    wide(&db).await;
    let mut daemon = Daemon::spawn(&db, &format!("{ONE_WORKER}{SMALL}"));
    let holder = hold(&db, 1).await;
    let last = ROWS - 1;
    db.ch.query(&format!("ALTER TABLE wide ADD CONSTRAINT odd CHECK id NOT IN (15000, 15001, {last})")).await;
    holder.batch_execute("COMMIT").await.expect("the lock is given back");
    daemon.wait_ready().await;
    let letters = "SELECT operation, key FROM _dead_letters FINAL WHERE target = 'wide' ORDER BY key";
    let expected = [15_000, 15_001, last].map(|id| format!("copy\t{{\"id\":\"{id}\"}}")).join("\n");
    assert_eq!(db.ch.query(letters).await.replace('\\', ""), expected);
    let found = db.ch.query("SELECT count(), sum(id) FROM wide FINAL").await;
    assert_eq!(found, format!("{}\t{}", ROWS - 3, ROWS * (ROWS + 1) / 2 - 30_001 - last));
    drop(daemon);
    db.cleanup().await;
}

/// What is open of the one has many blocks when the other, which is shorter, is refused.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_chunks_that_are_copied_at_once_the_one_that_is_refused_loses_nothing_of_the_other() {
    let db = TestDb::new("copy_two").await;
    wide(&db).await;
    // The last chunk but one has more to it than the last; a row is a block.
    db.pg.execute("UPDATE wide SET note = repeat(md5(id::text), 300) WHERE id / 4096 = 3").await;
    let mut daemon = Daemon::spawn(&db, &format!("[source.snapshot]\nworkers = 2\n{SMALL}"));
    let holder = hold(&db, 1).await;
    let refused = ROWS - 1;
    db.ch.query(&format!("ALTER TABLE wide ADD CONSTRAINT odd CHECK id != {refused}")).await;
    holder.batch_execute("COMMIT").await.expect("the lock is given back");
    daemon.wait_ready().await;
    let found = db.ch.query("SELECT count(), sum(id) FROM wide FINAL").await;
    assert_eq!(found, format!("{}\t{}", ROWS - 1, ROWS * (ROWS + 1) / 2 - refused));
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_without_an_answer_is_filled_anew() {
    let db = TestDb::new("copy_cut").await;
    wide(&db).await;
    let proxy = Proxy::to(db.clickhouse.port()).await;
    let config = format!("{ONE_WORKER}{SMALL}[clickhouse]\nurl = \"http://127.0.0.1:{}\"\n", proxy.port());
    let mut daemon = Daemon::spawn(&db, &config);
    let holder = hold(&db, 1).await;
    proxy.hold_next_insert("wide");
    holder.batch_execute("COMMIT").await.expect("the lock is given back");
    proxy.holds().await;
    daemon.wait_log("a chunk was cut short; copying it again", 1).await;
    // It lands after all, beside the rows that were read again.
    proxy.release().await;
    daemon.wait_ready().await;
    assert_equal(&db, "wide").await;
    drop(daemon);
    db.cleanup().await;
}

/// ClickHouse gives up on an insert that brings nothing for half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn an_insert_does_not_wait_for_rows_for_long() {
    let db = TestDb::new("copy_idle").await;
    // More than the sockets on the way hold.
    db.pg
        .execute(
            "CREATE TABLE large (id int PRIMARY KEY, v text); ALTER TABLE large ALTER v SET STORAGE EXTERNAL;
            INSERT INTO large SELECT i, repeat(md5(i::text), 3200) FROM generate_series(1, 400) AS i",
        )
        .await;
    let proxy = Proxy::to(db.clickhouse.port()).await;
    proxy.slow_down(1 << 20);
    let config = format!("{ONE_WORKER}{SMALL}[clickhouse]\nurl = \"http://127.0.0.1:{}\"\n", proxy.port());
    let mut daemon = Daemon::spawn(&db, &config);
    daemon.wait_log("table adopted", 1).await;
    let before = proxy.passed();
    eventually(Duration::from_secs(30), async || match proxy.passed() - before {
        passed @ ..2_000_000 => Err(format!("{passed} bytes of an insert")),
        _ => Ok(()),
    })
    .await;
    let reader = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'walhouse copy' AND state = 'active'";
    let reader: u32 = db.pg.value(reader).await.parse().expect("a session copies");
    signal("STOP", &[reader]);
    proxy.slow_down(0);
    tokio::time::sleep(Duration::from_secs(33)).await;
    signal("CONT", &[reader]);
    daemon.wait_ready().await;
    assert!(!daemon.log().contains("cut short"), "the insert was left to the server");
    assert_equal(&db, "large").await;
    drop(daemon);
    db.cleanup().await;
}
