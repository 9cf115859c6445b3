//! The procedures of `docs/operations.md`, step by step.

use std::time::Duration;

use crate::support::{Daemon, TestDb, eventually, walhouse};

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_table_is_copied_anew_without_the_others() {
    let db = TestDb::new("anew").await;
    db.pg
        .execute(
            "CREATE TABLE item (id int8 PRIMARY KEY, sku int8 NOT NULL); CREATE TABLE other (id int8 PRIMARY KEY);
            INSERT INTO item VALUES (1, 10); INSERT INTO other VALUES (1)",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg
        .execute(
            "ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (sku); INSERT INTO item VALUES (1, 20);
            INSERT INTO other VALUES (2)",
        )
        .await;
    eventually(Duration::from_secs(30), async || {
        let exit = walhouse(daemon.config(), &["verify"]).await;
        let stopped = exit.stdout.contains("✗  public.item  stopped: ") && exit.stdout.contains("✓  public.other ");
        if stopped && exit.code == Some(1) { Ok(()) } else { Err(format!("{exit:?}")) }
    })
    .await;
    eventually(Duration::from_secs(20), async || {
        let ready = daemon.get("/readyz").await?;
        let note = "ready\nnote: 1 table stopped; walhouse verify says why\n";
        if ready.status == 200 && ready.body == note { Ok(()) } else { Err(ready.body) }
    })
    .await;

    let copied = db.ch.query("SELECT count() FROM _chunks").await;
    let exit = walhouse(daemon.config(), &["resync", "public.item"]).await;
    assert!(exit.code == Some(0) && exit.stderr.contains("public.item: done"), "{exit:?}");
    let exit = walhouse(daemon.config(), &["verify"]).await;
    assert!(exit.code == Some(0) && exit.stdout.ends_with("All 2 tables are equal.\n"), "{exit:?}");
    // One chunk more: that of the table that was copied again.
    let chunks: u64 = copied.parse().expect("a count");
    assert_eq!(db.ch.query("SELECT count() FROM _chunks").await, (chunks + 1).to_string());
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_copied_anew_after_a_gap() {
    let db = TestDb::new("gap").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY); INSERT INTO item SELECT generate_series(1, 100)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert!(daemon.sigterm(Duration::from_secs(20)).await.success());
    let drop_slot = format!("SELECT pg_drop_replication_slot('{}')", db.name);
    db.pg.execute(&drop_slot).await;
    db.pg.execute("DELETE FROM item WHERE id > 50").await;
    daemon.start();
    let (code, log) = daemon.wait_exit(Duration::from_secs(30)).await;
    assert_eq!(code, 3, "{log}");
    assert!(log.contains("is gone") && log.contains("To copy everything anew"), "{log}");

    db.ch.drop_database().await.expect("the database can be dropped");
    daemon.start();
    daemon.wait_ready().await;
    let exit = walhouse(daemon.config(), &["verify"]).await;
    assert!(exit.code == Some(0) && exit.stdout.ends_with("The table is equal.\n"), "{exit:?}");
    drop(daemon);
    db.cleanup().await;
}
