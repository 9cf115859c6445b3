//! Tables that wait for their copy.

use super::{equal, watched};
use crate::support::{Daemon, TestDb, eventually, hold_copy, steps, take};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_waits_for_a_lock_is_told_with_who_holds_it() {
    let db = TestDb::new("book_copy").await;
    // A row in each page: so many chunks that the copy can not be over before it is held.
    db.pg
        .execute(
            "CREATE TABLE item (id int8 PRIMARY KEY, filler text) WITH (fillfactor = 10);
            INSERT INTO item SELECT i, repeat('x', 900) FROM generate_series(1, 20000) i",
        )
        .await;
    let daemon = Daemon::spawn(&db, "[source.snapshot]\nworkers = 1\n");
    let forgotten = hold_copy(&db, "item", 1).await;
    forgotten.batch_execute("SET application_name = 'shop'").await.unwrap();
    eventually(Duration::from_secs(20), async || daemon.get("/metrics").await.map(drop)).await;
    let prometheus = watched(&db, &daemon, "WalhouseCopyStuck", &[("30m", "4m")]).await;
    prometheus.fires("WalhouseCopyStuck").await;
    assert_eq!(daemon.metric("walhouse_copy_pending_tables", "").await, 1.0);

    let taken = steps("WalhouseCopyStuck", &db);
    let [status, blocker, oldest, end] = &taken[..] else { panic!("{taken:?}") };
    let found = take(status, &db, &daemon).await;
    assert!(found.contains("public.item: ") && found.contains(" rows copied"), "{found}");
    let found = take(blocker, &db, &daemon).await;
    let [pid, "postgres", "shop", "idle in transaction", ..] = found.split('\t').collect::<Vec<_>>()[..] else {
        panic!("{found}")
    };
    let found = take(oldest, &db, &daemon).await;
    assert!(found.contains(&format!("{pid}\tpostgres\tshop\t")), "{found}");
    take(&end.with("4711", pid), &db, &daemon).await;
    prometheus.rests("WalhouseCopyStuck").await;
    equal(&daemon).await;
    drop((prometheus, daemon));
    db.cleanup().await;
}
