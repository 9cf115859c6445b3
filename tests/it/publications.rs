//! Publications that somebody else made: lists of columns, row filters, schemas, all tables, generated columns.

use crate::support::{
    ClickHouse, Daemon, Past, Postgres, PostgresOptions, TestDb, assert_equal, assert_settled_equal, eventually,
    settled, walhouse,
};
use std::time::Duration;

const VIA_ROOT: &str = "WITH (publish_via_partition_root = true)";

async fn publish(db: &TestDb, what: &str) {
    db.pg.execute(&format!("CREATE PUBLICATION walhouse {what} {VIA_ROOT}")).await;
}

async fn verified(daemon: &Daemon) {
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
}

async fn shown(db: &TestDb, sql: &str, expected: &str) {
    eventually(Duration::from_secs(20), async || {
        let found = db.ch.try_query(sql).await?;
        if found == expected { Ok(()) } else { Err(format!("{sql}: {found:?}, not {expected:?}")) }
    })
    .await;
}

async fn left_out(daemon: &Daemon, table: &str) -> String {
    let line = format!("a table is not replicated table=\"public.{table}\"");
    daemon.wait_log(&line, 1).await;
    daemon.log().lines().find(|logged| logged.contains(&line)).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_columns_holds_for_copy_stream_and_lookups() {
    let db = TestDb::new("published_columns").await;
    db.pg
        .execute(
            "CREATE TABLE t (gone int, secret text, v int, id int PRIMARY KEY, big text, other text);
            ALTER TABLE t DROP COLUMN gone, ALTER big SET STORAGE EXTERNAL, ALTER secret SET STORAGE EXTERNAL;
            INSERT INTO t SELECT repeat('canary', 1000), i, i, repeat('b', 4000), 'canary' FROM generate_series(1, 3) i;
            CREATE TABLE part (id int, at int, secret text, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
            CREATE TABLE part_1 (v text, secret text, at int NOT NULL, gone int, id int NOT NULL); ALTER TABLE part_1 DROP COLUMN gone;
            ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (0) TO (10);
            CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20);
            INSERT INTO part VALUES (1, 1, 'canary', 'a'), (2, 11, 'canary', 'b');
            CREATE TABLE keyless_list (id int PRIMARY KEY, v text, w text)",
        )
        .await;
    publish(&db, "FOR TABLE t (id, v, big), part (v, at, id), keyless_list (v)").await;
    let daemon = &mut Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("UPDATE t SET v = -v, secret = 'canary' WHERE id = 1").await;
    db.pg.execute("UPDATE t SET id = 30 WHERE id = 3; INSERT INTO t VALUES ('canary', 4, 4, 'x', 'canary')").await;
    db.pg
        .execute(
            "UPDATE part SET at = 12 WHERE id = 1; UPDATE part SET v = 'c', at = 2, secret = 'canary' WHERE id = 2",
        )
        .await;
    let columns =
        "SELECT groupArray(name) FROM (SELECT name FROM system.columns WHERE database = currentDatabase() AND table = ";
    assert_eq!(
        db.ch.query(&format!("{columns}'t' ORDER BY position)")).await,
        "['v','id','big','_version','_is_deleted']"
    );
    shown(
        &db,
        "SELECT id, v, length(big) FROM t_current ORDER BY id FORMAT CSV",
        "1,-1,4000\n2,2,4000\n4,4,1\n30,3,4000",
    )
    .await;
    shown(&db, "SELECT id, at, v FROM part_current ORDER BY id FORMAT CSV", "1,12,\"a\"\n2,2,\"c\"").await;
    assert!(left_out(daemon, "keyless_list").await.contains("does not carry id, a column of its key"));
    let check = walhouse(daemon.config(), &["check"]).await;
    assert!(check.stdout.contains("does not carry id, a column of its key"), "{check:?}");
    verified(daemon).await;
    // Another list: what it has not streamed is copied anew.
    db.pg.execute("ALTER PUBLICATION walhouse SET TABLE t (id, v, other), part (v, at, id)").await;
    db.pg.execute("UPDATE t SET other = 'later' WHERE id = 2").await;
    shown(
        &db,
        "SELECT id, v, other FROM t_current ORDER BY id FORMAT CSV",
        "1,-1,\"canary\"\n2,2,\"later\"\n4,4,\"canary\"\n30,3,\"canary\"",
    )
    .await;
    shown(
        &db,
        "SELECT count() FROM system.columns WHERE database = currentDatabase() AND table = 't' AND name = 'big'",
        "0",
    )
    .await;
    settled(&db).await;
    verified(daemon).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_filter_holds_for_the_copy_and_rows_enter_and_leave_it() {
    let db = TestDb::new("published_rows").await;
    db.pg
        .execute(
            "CREATE TABLE t (id int, region text, v int, big text, PRIMARY KEY (id, region));
            ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
            INSERT INTO t SELECT i, CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, i, i || repeat('b', 4000) FROM generate_series(1, 10) i;
            CREATE TABLE wide (id int PRIMARY KEY, state text, big text); ALTER TABLE wide REPLICA IDENTITY FULL;
            ALTER TABLE wide ALTER big SET STORAGE EXTERNAL;
            INSERT INTO wide SELECT i, CASE WHEN i < 3 THEN NULL ELSE 'open' END, i || repeat('b', 4000) FROM generate_series(1, 6) i",
        )
        .await;
    publish(&db, "FOR TABLE t WHERE (region = 'eu' OR id = 1), wide WHERE (state <> 'it''s \\ closed')").await;
    let past = Past::begin(&db).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let rows = "SELECT id, region, v, substring(big, 1, 2) FROM t_current ORDER BY id FORMAT CSV";
    shown(&db, rows, "1,\"us\",1,\"1b\"\n2,\"eu\",2,\"2b\"\n4,\"eu\",4,\"4b\"\n6,\"eu\",6,\"6b\"\n8,\"eu\",8,\"8b\"\n10,\"eu\",10,\"10\"").await;
    let wide = "SELECT id, state, substring(big, 1, 2), length(big) FROM wide_current ORDER BY id FORMAT CSV";
    shown(&db, wide, "3,\"open\",\"3b\",4001\n4,\"open\",\"4b\",4001\n5,\"open\",\"5b\",4001\n6,\"open\",\"6b\",4001")
        .await;
    assert!(
        db.ch.query("SELECT groupArray(id) FROM wide").await.len() == "[3,4,5,6]".len(),
        "the copy took a row that is not published"
    );

    // Into the filter, an INSERT whose toasted value only PostgreSQL has; out of it, a DELETE.
    db.pg.execute("UPDATE t SET region = 'eu' WHERE id = 3; UPDATE t SET region = 'us' WHERE id = 4").await;
    db.pg.execute("UPDATE t SET region = 'asia' WHERE id = 1; UPDATE t SET v = 60 WHERE id = 6; UPDATE t SET v = 50 WHERE id = 5").await;
    db.pg
        .execute("UPDATE wide SET state = 'open' WHERE id = 1; UPDATE wide SET state = 'it''s \\ closed' WHERE id = 3")
        .await;
    // In and out again before the value can be asked for, and in once more.
    db.pg
        .execute(
            "BEGIN; UPDATE t SET region = 'eu', v = 70 WHERE id = 7; UPDATE t SET region = 'us' WHERE id = 7; COMMIT",
        )
        .await;
    db.pg.execute("BEGIN; UPDATE t SET region = 'eu' WHERE id = 9; UPDATE t SET v = 90 WHERE id = 9; UPDATE t SET region = 'us' WHERE id = 9; UPDATE t SET region = 'eu', v = 91 WHERE id = 9; COMMIT").await;
    let first = "1,\"asia\",1,\"1b\"";
    let after = "3,\"eu\",3,\"3b\"\n6,\"eu\",60,\"6b\"\n8,\"eu\",8,\"8b\"\n9,\"eu\",91,\"9b\"\n10,\"eu\",10,\"10\"";
    shown(&db, rows, &format!("{first}\n2,\"eu\",2,\"2b\"\n{after}")).await;
    shown(&db, wide, "1,\"open\",\"1b\",4001\n4,\"open\",\"4b\",4001\n5,\"open\",\"5b\",4001\n6,\"open\",\"6b\",4001")
        .await;
    let seen = "SELECT count() FROM t WHERE id = 7 AND _is_deleted = 0";
    assert_eq!(db.ch.query(seen).await, "0", "a row that is not published any more was read");
    assert!(
        daemon.metric("walhouse_toast_lookups_total", "postgres").await >= 3.0,
        "only PostgreSQL has what enters the filter"
    );
    verified(&daemon).await;

    daemon.sigterm(Duration::from_secs(20)).await;
    past.restore(&db, None).await;
    db.pg.execute("DELETE FROM t WHERE id = 2").await;
    daemon.start();
    daemon.wait_ready().await;
    shown(&db, rows, &format!("{first}\n{after}")).await;
    verified(&daemon).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_of_a_partition_root_holds_for_its_leaves() {
    let db = TestDb::new("published_leaves").await;
    db.pg
        .execute(
            "CREATE TABLE part (id int, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
            CREATE TABLE part_1 (v text, gone int, at int NOT NULL, id int NOT NULL); ALTER TABLE part_1 DROP COLUMN gone;
            ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (0) TO (10);
            CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20);
            INSERT INTO part SELECT i, i % 20, 'v' FROM generate_series(1, 100) i",
        )
        .await;
    publish(&db, "FOR TABLE part WHERE (at % 3 = 0)").await;
    let daemon = &mut Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("UPDATE part SET at = 12 WHERE id = 1; UPDATE part SET at = 13 WHERE id = 3; UPDATE part SET v = 'w' WHERE id > 90; DELETE FROM part WHERE id = 6").await;
    let expected = db
        .pg
        .value(
            "SELECT string_agg(id || ',' || at || ',\"' || v || '\"', E'\\n' ORDER BY id) FROM part WHERE at % 3 = 0",
        )
        .await;
    shown(&db, "SELECT id, at, v FROM part_current ORDER BY id FORMAT CSV", &expected).await;
    verified(daemon).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_of_a_table_is_altered_and_the_table_is_copied_anew() {
    let db = TestDb::new("published_altered").await;
    db.pg
        .execute(
            "CREATE SCHEMA s; CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE s.both (id int PRIMARY KEY, v int);
            INSERT INTO s.both VALUES (1, 1), (2, 2); INSERT INTO t VALUES (2, 2), (7, 7)",
        )
        .await;
    publish(&db, "FOR TABLE t WHERE (id > 5), s.both WHERE (id > 1), TABLES IN SCHEMA s").await;
    let daemon = &mut Daemon::spawn(&db, "[source]\ntables = [\"public.*\", \"s.*\"]\n");
    daemon.wait_ready().await;
    // With its schema, all of its rows are published.
    db.pg.execute("INSERT INTO s.both VALUES (0, 0); INSERT INTO t VALUES (1, 1), (6, 6)").await;
    assert_equal(&db, "s.both").await;
    shown(&db, "SELECT groupArray(id) FROM (SELECT id FROM t_current ORDER BY id)", "[6,7]").await;
    db.pg.execute("ALTER PUBLICATION walhouse DROP TABLE t").await;
    db.pg.execute("UPDATE t SET v = 70 WHERE id = 7").await;
    db.pg.execute("ALTER PUBLICATION walhouse ADD TABLE t WHERE (id < 7)").await;
    db.pg.execute("ALTER PUBLICATION walhouse DROP TABLES IN SCHEMA s").await;
    shown(&db, "SELECT groupArray(id) FROM (SELECT id FROM t_current ORDER BY id)", "[1,2,6]").await;
    shown(&db, "SELECT groupArray(id) FROM s_both_current", "[2]").await;
    settled(&db).await;
    daemon.wait_ready().await;
    verified(daemon).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_of_a_table_is_altered_while_it_is_resynced() {
    let db = TestDb::new("published_crossing").await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v int, secret text);
            INSERT INTO t SELECT i, i, 'canary' FROM generate_series(1, 4) i",
        )
        .await;
    publish(&db, "FOR TABLE t (id, v)").await;
    let daemon = &mut Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    for (what, rows, expected) in [
        ("t (id, v, secret)", "SELECT id, v, secret FROM t_current ORDER BY id", "1,10,canary\n3,3,canary\n4,4,canary"),
        ("t (id, v)", "SELECT * FROM t_current ORDER BY id", "1,100\n3,3\n4,4"),
        ("t WHERE (id > 2)", "SELECT * FROM t_current ORDER BY id", "3,3,canary\n4,4,canary"),
    ] {
        // A copy does not begin its first chunk before whoever writes the table now has ended.
        let session = db.pg.connect().await.expect("PostgreSQL takes one more session");
        session.batch_execute("BEGIN; LOCK TABLE t IN ROW EXCLUSIVE MODE").await.unwrap();
        let asked = walhouse(daemon.config(), &["resync", "public.t", "--no-wait"]).await;
        assert_eq!(asked.code, Some(0), "{asked:?}");
        shown(&db, "SELECT JSONExtractString(fresh, 'membership') != '' FROM _tables FINAL", "1").await;
        db.pg.execute("UPDATE t SET v = v * 10 WHERE id = 1; DELETE FROM t WHERE id = 2").await;
        db.pg.execute(&format!("ALTER PUBLICATION walhouse SET TABLE {what}")).await;
        session.batch_execute("COMMIT").await.unwrap();
        shown(&db, &format!("{rows} FORMAT CSV"), &expected.replace("canary", "\"canary\"")).await;
        let left = "SELECT (SELECT count() FROM _tables FINAL WHERE fresh != ''), (SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = 't__resync')";
        shown(&db, left, "0\t0").await;
        settled(&db).await;
        verified(daemon).await;
    }
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_a_schema_and_all_tables_are_taken_as_they_are_published() {
    for (label, what) in [("published_schema", "FOR TABLES IN SCHEMA public, s"), ("published_all", "FOR ALL TABLES")] {
        let db = TestDb::new(label).await;
        db.pg
            .execute(
                "CREATE SCHEMA s; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a');
                CREATE TABLE s.t (id int PRIMARY KEY, v text); INSERT INTO s.t VALUES (1, 'a');
                CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY HASH (id);
                CREATE TABLE s.part_0 PARTITION OF part FOR VALUES WITH (MODULUS 1, REMAINDER 0); INSERT INTO part VALUES (1, 'a');
                CREATE TABLE hidden (id int PRIMARY KEY, v text); INSERT INTO hidden VALUES (1, 'a')",
            )
            .await;
        publish(&db, what).await;
        let daemon =
            &mut Daemon::spawn(&db, "[source]\ntables = [\"public.*\", \"s.*\"]\nexclude = [\"public.hidden\"]\n");
        daemon.wait_ready().await;
        db.pg.execute("CREATE TABLE late (id int PRIMARY KEY, v text); INSERT INTO late VALUES (1, 'a'); INSERT INTO late VALUES (2, 'b')").await;
        for table in ["t", "s.t", "part", "late", "hidden"] {
            db.pg
                .execute(&format!("INSERT INTO {table} VALUES (7, 'b'); UPDATE {table} SET v = 'c' WHERE id = 1"))
                .await;
        }
        for table in ["late", "t", "s.t", "part"] {
            assert_equal(&db, table).await;
        }
        assert_settled_equal(&db, &["late"]).await;
        assert_eq!(
            db.ch
                .query("SELECT count() FROM system.tables WHERE database = currentDatabase() AND name LIKE '%hidden%'")
                .await,
            "0"
        );
        verified(daemon).await;
        db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_leaves_changes_out_is_refused_at_the_start_and_later() {
    for (label, with, remedy) in [
        (
            "published_kinds",
            "publish = 'insert, update', publish_via_partition_root = true",
            "SET (publish = 'insert, update, delete, truncate')",
        ),
        (
            "published_truncate",
            "publish = 'insert, update, delete', publish_via_partition_root = true",
            "SET (publish = 'insert, update, delete, truncate')",
        ),
        ("published_leaves", "publish_via_partition_root = false", "SET (publish_via_partition_root = true)"),
    ] {
        let db = TestDb::new(label).await;
        db.pg.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
        db.pg.execute(&format!("CREATE PUBLICATION walhouse FOR ALL TABLES WITH ({with})")).await;
        let mut daemon = Daemon::spawn(&db, "");
        let (code, log) = daemon.wait_exit(Duration::from_secs(30)).await;
        assert!(code != 0 && log.contains(remedy), "{log}");
        assert_eq!(
            db.pg.value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()").await,
            "0"
        );
        // Mended, it runs; altered again, it halts.
        let mended = remedy.trim_end_matches('`');
        db.pg.execute(&format!("ALTER PUBLICATION walhouse {mended}")).await;
        daemon.start();
        daemon.wait_ready().await;
        db.pg
            .execute(&format!("ALTER PUBLICATION walhouse SET ({})", with.split(", publish_via").next().unwrap()))
            .await;
        let (code, log) = daemon.wait_exit(Duration::from_secs(30)).await;
        assert!(code != 0 && log.contains("ALTER PUBLICATION") | log.contains("the publication was altered"), "{log}");
        db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_are_replicated_where_the_publication_carries_them() {
    let postgres = Postgres::private(PostgresOptions { version: "18", ..Default::default() });
    for (label, what, with, columns) in [
        ("generated_none", "FOR ALL TABLES", "publish_via_partition_root = true", "['id','v','after']"),
        (
            "generated_stored",
            "FOR ALL TABLES",
            "publish_via_partition_root = true, publish_generated_columns = stored",
            "['id','v','twice','after']",
        ),
        ("generated_listed", "FOR TABLE t (id, twice)", "publish_via_partition_root = true", "['id','twice']"),
    ] {
        let db = TestDb::on(postgres.clone(), ClickHouse::shared(), label).await;
        db.pg
            .execute(
                "CREATE TABLE t (id int PRIMARY KEY, v int, twice text GENERATED ALWAYS AS (repeat('x', v * 2)) STORED,
                    thrice int GENERATED ALWAYS AS (v * 3) VIRTUAL, after int);
                INSERT INTO t (id, v) VALUES (1, 1), (2, NULL)",
            )
            .await;
        db.pg.execute(&format!("CREATE PUBLICATION walhouse {what} WITH ({with})")).await;
        let daemon = &mut Daemon::spawn(&db, "");
        daemon.wait_ready().await;
        db.pg.execute("INSERT INTO t (id, v) VALUES (3, 3); UPDATE t SET v = 2000 WHERE id = 1; UPDATE t SET after = 1 WHERE id = 1").await;
        settled(&db).await;
        let names = "SELECT groupArray(name) FROM (SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 't_current' ORDER BY position)";
        assert_eq!(db.ch.query(names).await, columns);
        assert_eq!(db.ch.query("SELECT groupArray(id) FROM (SELECT id FROM t_current ORDER BY id)").await, "[1,2,3]");
        if columns.contains("twice") {
            shown(
                &db,
                "SELECT groupArray(length(twice)) FROM (SELECT twice FROM t_current WHERE id != 2 ORDER BY id)",
                "[4000,6]",
            )
            .await;
            shown(&db, "SELECT twice IS NULL FROM t_current WHERE id = 2", "1").await;
        }
        assert_eq!(crate::support::stopped(&db).await.as_deref(), Ok(""));
        verified(daemon).await;
        db.cleanup().await;
    }
}
