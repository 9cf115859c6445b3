//! With the DDL triggers of `migrations/postgres`: what the catalog alone leaves in doubt is followed in place.

mod failures;
mod forged;

use std::time::Duration;

use crate::support::{
    ClickHouse, Daemon, Past, Postgres, PostgresOptions, TestDb, assert_equal, assert_settled_equal, eventually,
    settled, signal, stopped,
};

const MIGRATION: &str = include_str!("../../migrations/postgres/0001_ddl_trigger.sql");
/// What the lane says when the catalog shows something else than the messages did, at the same point.
const DIFFERS: &str = "the catalog shows a change that was not told";

/// A table of three rows, replicated, and another one beside it; with the triggers.
async fn replicated_on(db: TestDb) -> (TestDb, Daemon) {
    db.pg.execute(MIGRATION).await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text, n int NOT NULL); CREATE TABLE other (id int PRIMARY KEY);
             INSERT INTO t SELECT i, 'copied', i FROM generate_series(1, 3) i; INSERT INTO other VALUES (1)",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_equal(&db, "t").await;
    (db, daemon)
}

async fn replicated(label: &str) -> (TestDb, Daemon) {
    replicated_on(TestDb::new(label).await).await
}

async fn copies(daemon: &Daemon) -> f64 {
    daemon.metric("walhouse_shape_changes_total", "copied").await
}

async fn understood(daemon: &Daemon) -> f64 {
    daemon.metric("walhouse_ddl_messages_total", "understood").await
}

async fn uuid(db: &TestDb, table: &str) -> String {
    db.ch
        .query(&format!("SELECT uuid FROM system.tables WHERE database = currentDatabase() AND name = '{table}'"))
        .await
}

async fn columns(db: &TestDb, table: &str) -> String {
    let sql = format!(
        "SELECT arrayStringConcat(groupArray(name), ' ') FROM (SELECT name FROM system.columns WHERE database = currentDatabase()
         AND table = '{table}' AND name NOT IN ('_version', '_is_deleted') ORDER BY name)"
    );
    db.ch.query(&sql).await
}

async fn wait_for_column(db: &TestDb, table: &str, column: &str) {
    eventually(Duration::from_secs(40), async || match columns(db, table).await {
        found if found.split(' ').any(|name| name == column) => Ok(()),
        found => Err(found),
    })
    .await;
}

/// Changes of shape that were in doubt without the triggers, with rows before, between and after.
const AMBIGUOUS: &[(&str, &str)] = &[
    ("again", "ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN v text DEFAULT 'new'"),
    ("at once", "ALTER TABLE t DROP COLUMN v, ADD COLUMN v int DEFAULT 7"),
    (
        "with rows between",
        "BEGIN; INSERT INTO t (id, n) VALUES (10, 1); UPDATE t SET v = 'before' WHERE id = 1; ALTER TABLE t ADD COLUMN w int DEFAULT 9;
         INSERT INTO t (id, n, w) VALUES (11, 1, 2); DELETE FROM t WHERE id = 2; ALTER TABLE t RENAME v TO x; ALTER TABLE t DROP COLUMN n;
         INSERT INTO t (id, x) VALUES (12, 'after'); UPDATE t SET w = 1 WHERE id = 10; COMMIT",
    ),
    (
        "exchanged",
        "BEGIN; ALTER TABLE t ADD COLUMN u text DEFAULT 'u'; UPDATE t SET v = 'v' || id; ALTER TABLE t RENAME v TO x;
         INSERT INTO t (id, x, u, n) VALUES (20, 'x', 'u2', 1); ALTER TABLE t RENAME u TO v; UPDATE t SET v = 'late' WHERE id = 1;
         ALTER TABLE t RENAME x TO u; INSERT INTO t (id, u, v, n) VALUES (21, 'u', 'v', 1); COMMIT",
    ),
    (
        "added after the next change",
        "BEGIN; ALTER TABLE t ADD COLUMN a int DEFAULT 1; INSERT INTO t (id, n) VALUES (30, 1); ALTER TABLE t ALTER a SET DEFAULT 2;
         INSERT INTO t (id, n) VALUES (31, 1); ALTER TABLE t ADD COLUMN b int DEFAULT 3; COMMIT; ALTER TABLE t ALTER b DROP DEFAULT",
    ),
    (
        "arrays again and again",
        "ALTER TABLE t ADD COLUMN a int[]; UPDATE t SET a = '{1}' WHERE id = 1; ALTER TABLE t DROP COLUMN a; ALTER TABLE t ADD COLUMN a text[];
         UPDATE t SET a = '{x}' WHERE id = 1; ALTER TABLE t DROP COLUMN a; ALTER TABLE t ADD COLUMN a int; UPDATE t SET a = 5 WHERE id = 3",
    ),
    (
        "rolled back in part",
        "DO $$ BEGIN ALTER TABLE t ADD COLUMN d int DEFAULT 1; INSERT INTO t (id, n) VALUES (40, 1);
         BEGIN ALTER TABLE t DROP COLUMN d; ALTER TABLE t RENAME n TO m; INSERT INTO t (id, m) VALUES (41, 1); RAISE 'no';
         EXCEPTION WHEN OTHERS THEN NULL; END; INSERT INTO t (id, n, d) VALUES (42, 1, 2); END $$",
    ),
    (
        "a key that is made anew",
        "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (id); BEGIN; ALTER TABLE t DROP CONSTRAINT t_pkey;
         ALTER TABLE t ADD PRIMARY KEY (n); ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (id); COMMIT",
    ),
];

async fn ambiguous(label: &str, server: impl Fn() -> Option<&'static str>) {
    let postgres = match server() {
        None => Postgres::shared(),
        Some(version) => Postgres::private(PostgresOptions { version, ..PostgresOptions::default() }),
    };
    for (name, change) in AMBIGUOUS {
        println!("{name}: {change}");
        let db = TestDb::on(postgres.clone(), ClickHouse::shared(), label).await;
        let (db, daemon) = replicated_on(db).await;
        let before = uuid(&db, "t").await;
        db.pg.execute("INSERT INTO t VALUES (4, 'old shape', 4)").await;
        db.pg.execute(change).await;
        db.pg
            .execute(
                "INSERT INTO t (id) SELECT 5 WHERE false; DELETE FROM t WHERE id = 3; INSERT INTO other VALUES (2)",
            )
            .await;
        assert_settled_equal(&db, &["t", "other"]).await;
        // Whoever looks at the catalog finds nothing else.
        tokio::time::sleep(Duration::from_secs(4)).await;
        settled(&db).await;
        assert_settled_equal(&db, &["t", "other"]).await;
        assert_eq!(copies(&daemon).await, 0.0, "{name}");
        assert_eq!(uuid(&db, "t").await, before, "{name}");
        assert!(understood(&daemon).await >= 1.0);
        assert!(!daemon.log().contains(DIFFERS), "{name}");
        drop(daemon);
        db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_doubt_without_it_is_followed_in_place() {
    ambiguous("ddl_ambiguous", || None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_doubt_without_it_is_followed_in_place_on_postgres_14() {
    ambiguous("ddl_ambiguous14", || Some("14")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_doubt_without_it_is_followed_in_place_on_postgres_18() {
    ambiguous("ddl_ambiguous18", || Some("18")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_column_keeps_what_it_had_beside_the_one_that_has_its_name() {
    let (db, daemon) = replicated("ddl_aside").await;
    db.pg.execute("ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN v int DEFAULT 7; ALTER TABLE t DROP COLUMN v, ADD COLUMN v date").await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(columns(&db, "t").await, "id n v v__dropped v__dropped_2");
    assert_eq!(db.ch.query("SELECT v__dropped, v__dropped_2, v FROM t FINAL WHERE id = 1").await, "copied\t7\t\\N");
    assert_eq!(copies(&daemon).await, 0.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_shape_waits_neither_for_a_row_nor_for_a_look() {
    let (db, daemon) = replicated("ddl_at_once").await;
    db.pg.execute("ALTER TABLE other ADD COLUMN first int").await;
    wait_for_column(&db, "other", "first").await;
    // Whoever looks at the catalog stands still.
    let looks = "SELECT pid FROM pg_stat_activity WHERE application_name = 'walhouse' AND backend_type = 'client backend' AND datname = current_database()";
    let pid: u32 = db.pg.value(looks).await.parse().expect("a pid");
    signal("STOP", &[pid]);
    db.pg.execute("ALTER TABLE other ADD COLUMN second int DEFAULT 5").await;
    let found = tokio::time::timeout(Duration::from_secs(30), wait_for_column(&db, "other", "second")).await;
    signal("CONT", &[pid]);
    found.expect("it needs no look");
    assert_settled_equal(&db, &["other"]).await;
    db.pg.execute("ALTER TABLE t RENAME TO renamed").await;
    eventually(Duration::from_secs(20), async || {
        db.ch.try_query("SELECT count() FROM renamed_current").await.map(drop)
    })
    .await;
    assert_settled_equal(&db, &["renamed"]).await;
    assert_eq!(copies(&daemon).await, 0.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_walhouse_was_away_is_followed_in_place() {
    let (db, mut daemon) = replicated("ddl_down").await;
    let before = uuid(&db, "t").await;
    settled(&db).await;
    let past = Past::begin(&db).await;
    daemon.kill9();
    for change in [
        "INSERT INTO t VALUES (5, 'old shape', 5)",
        "ALTER TABLE t ADD COLUMN w int DEFAULT 9",
        "INSERT INTO t VALUES (6, 'new shape', 6, NULL)",
        "ALTER TABLE t DROP COLUMN v",
        "INSERT INTO t VALUES (7, 7, 7)",
        "ALTER TABLE t ADD COLUMN v text DEFAULT 'again'",
        "UPDATE t SET v = 'set' WHERE id = 6",
        "ALTER TABLE t RENAME n TO m",
        "UPDATE t SET m = 8 WHERE id = 5",
    ] {
        db.pg.execute(change).await;
    }
    daemon.start();
    assert_settled_equal(&db, &["t"]).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(copies(&daemon).await, 0.0);
    // Every message is seen once more, and once more after that.
    for _ in 0..2 {
        daemon.kill9();
        past.restore(&db, None).await;
        daemon.start();
        daemon.wait_ready().await;
        db.pg.execute("UPDATE t SET m = m + 1 WHERE id = 7").await;
        assert_settled_equal(&db, &["t"]).await;
        assert_eq!(copies(&daemon).await, 0.0);
    }
    assert_eq!(uuid(&db, "t").await, before);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_change_under_load_and_kills_without_a_copy() {
    let (db, mut daemon) = replicated("ddl_load").await;
    let before = uuid(&db, "t").await;
    let pg = db.pg.connect().await.expect("a session");
    let load = tokio::spawn(async move {
        for i in 0..600 {
            let id = 100 + i % 50;
            let sql = format!(
                "INSERT INTO t (id, n) VALUES ({id}, {i}) ON CONFLICT (id) DO UPDATE SET n = excluded.n; DELETE FROM t WHERE id = {}",
                100 + (i * 7) % 50
            );
            pg.batch_execute(&sql).await.expect("the load runs");
        }
    });
    for round in 0..6 {
        db.pg
            .execute(&format!(
                "ALTER TABLE t ADD COLUMN IF NOT EXISTS a int DEFAULT {round}; UPDATE t SET a = id WHERE id % 2 = 0;
                 ALTER TABLE t ADD COLUMN c{round} int DEFAULT {round}; ALTER TABLE t DROP COLUMN a; UPDATE t SET c{round} = id WHERE id % 3 = 0"
            ))
            .await;
        if round % 2 == 1 {
            db.pg.execute(&format!("ALTER TABLE t RENAME c{} TO d{round}", round - 1)).await;
            daemon.kill9();
            daemon.start();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    load.await.expect("the load ends");
    assert_settled_equal(&db, &["t"]).await;
    assert!(!daemon.log().contains("a table is copied anew"), "it was copied anew");
    assert_eq!(uuid(&db, "t").await, before);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_values_is_copied_as_soon_as_it_is_told() {
    for (label, change) in [
        ("using", "ALTER TABLE t ALTER n TYPE int USING n * 100"),
        ("volatile", "ALTER TABLE t ADD COLUMN r float8 DEFAULT random()"),
        ("type", "ALTER TABLE t ALTER n TYPE int8"),
    ] {
        println!("{label}: {change}");
        let (db, daemon) = replicated(&format!("ddl_anew_{label}")).await;
        let before = uuid(&db, "t").await;
        // Nothing of it before the change is lost, and nothing after it.
        db.pg
            .execute(&format!(
                "BEGIN; INSERT INTO t VALUES (4, 'before', 4); {change}; INSERT INTO t VALUES (5, 'after', 5); COMMIT"
            ))
            .await;
        daemon.wait_log("a table is copied anew", 1).await;
        eventually(Duration::from_secs(60), async || match uuid(&db, "t").await {
            after if after != before => Ok(()),
            _ => Err("it is the same target still".to_owned()),
        })
        .await;
        assert_settled_equal(&db, &["t"]).await;
        assert_eq!(copies(&daemon).await, 1.0);
        drop(daemon);
        db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_stops_the_table_where_it_changed() {
    let (db, daemon) = replicated("ddl_key").await;
    // Under FULL the stream does not tell of it.
    db.pg.execute("ALTER TABLE t REPLICA IDENTITY FULL").await;
    db.pg
        .execute(
            "BEGIN; INSERT INTO t VALUES (4, 'before', 4); ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (n);
             INSERT INTO t VALUES (4, 'after', 5); COMMIT",
        )
        .await;
    eventually(Duration::from_secs(20), async || match stopped(&db).await? {
        reason if reason.contains("its key is another now") && reason.contains("walhouse resync") => Ok(()),
        reason => Err(reason),
    })
    .await;
    db.pg.execute("INSERT INTO other VALUES (2)").await;
    settled(&db).await;
    assert_equal(&db, "other").await;
    assert_eq!(db.ch.query("SELECT v FROM t FINAL WHERE id = 4").await, "before");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_is_renamed_concerns_every_table_with_the_type() {
    let db = TestDb::new("ddl_enum").await;
    db.pg
        .execute(
            "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN feeling AS mood;
             CREATE TABLE a (id int PRIMARY KEY, m mood); CREATE TABLE b (id int PRIMARY KEY, m feeling); CREATE TABLE c (id int PRIMARY KEY, m mood[]);
             INSERT INTO a VALUES (1, 'sad'); INSERT INTO b VALUES (1, 'sad'); INSERT INTO c VALUES (1, '{sad,ok}')",
        )
        .await;
    let (db, daemon) = replicated_on(db).await;
    db.pg.execute("ALTER TYPE mood ADD VALUE 'happy' BEFORE 'ok'; ALTER DOMAIN feeling SET DEFAULT 'ok'").await;
    db.pg.execute("INSERT INTO a VALUES (2, 'happy'); INSERT INTO b VALUES (2, DEFAULT)").await;
    assert_settled_equal(&db, &["a", "b", "c"]).await;
    assert!(understood(&daemon).await >= 4.0, "of each table with the type");
    assert_eq!(copies(&daemon).await, 0.0);
    db.pg.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'low'").await;
    for table in ["a", "b", "c"] {
        assert_equal(&db, table).await;
    }
    assert_settled_equal(&db, &["a", "b", "c", "t"]).await;
    assert_eq!(copies(&daemon).await, 3.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_of_a_table_is_what_its_catalog_shows() {
    let db = TestDb::new("ddl_catalog").await;
    db.pg
        .execute(
            "CREATE EXTENSION hstore; CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN price AS numeric(12, 2);
             CREATE DOMAIN prices AS price[]; CREATE DOMAIN dear AS price DEFAULT 9;
             CREATE TABLE \"odd name\" (\"The Key\" uuid, b varchar(7) NOT NULL, PRIMARY KEY (b, \"The Key\"));
             CREATE TABLE r (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
             CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (10);
             CREATE TABLE r2 PARTITION OF r FOR VALUES FROM (10) TO (30) PARTITION BY RANGE (at);
             CREATE TABLE r3 PARTITION OF r2 FOR VALUES FROM (10) TO (20);
             CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)",
        )
        .await;
    let (db, daemon) = replicated_on(db).await;
    let tables = ["odd name", "r", "child", "t"];
    db.pg
        .execute(
            "ALTER TABLE \"odd name\" ADD a mood DEFAULT 'ok', ADD c mood[], ADD d price DEFAULT 1.5, ADD e prices, ADD f dear, ADD g pair, ADD h hstore,
                ADD i timestamptz(3) DEFAULT '2024-02-29 12:00:00.5+03', ADD j interval DEFAULT '1 day', ADD k bytea DEFAULT '\\x00ff', ADD l float8 DEFAULT 1e300,
                ADD m money DEFAULT 5, ADD n box[], ADD o int[][], ADD p char(5) DEFAULT 'x', ADD q json, ADD r int4range, ADD s \"char\", ADD t bit varying(3),
                ADD \"?`\" text DEFAULT 'it''s', ALTER b DROP DEFAULT, ALTER b TYPE varchar(9);
             ALTER TABLE \"odd name\" ALTER q SET STORAGE PLAIN; CREATE UNIQUE INDEX one ON \"odd name\" (\"The Key\"); ALTER TABLE \"odd name\" ALTER \"The Key\" SET NOT NULL;
             ALTER TABLE parent ADD x int DEFAULT 3; ALTER TABLE r ADD z text; CREATE TABLE r4 PARTITION OF r2 FOR VALUES FROM (20) TO (30);
             ALTER TABLE t ADD old price; DROP DOMAIN dear CASCADE; DROP TABLE IF EXISTS nothing; CREATE TABLE IF NOT EXISTS t (id int);
             CREATE TEMP TABLE t2 AS SELECT 1 AS id; ALTER TABLE t2 ADD x int; DROP TABLE t2",
        )
        .await;
    settled(&db).await;
    assert!(understood(&daemon).await >= 8.0, "{}", understood(&daemon).await);
    assert_eq!(daemon.metric("walhouse_ddl_messages_total", "refused").await, 0.0);
    db.pg.execute("INSERT INTO r VALUES (1, 25, 'z'); INSERT INTO child VALUES (1, 2); INSERT INTO \"odd name\" (\"The Key\", b) VALUES (gen_random_uuid(), 'b')").await;
    assert_settled_equal(&db, &tables).await;
    // The catalog is looked at meanwhile, and shows what was told.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(!daemon.log().contains(DIFFERS));
    assert_settled_equal(&db, &tables).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_come_or_go_with_a_partition_are_told() {
    let db = TestDb::new("ddl_part").await;
    db.pg
        .execute(
            "CREATE TABLE r (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
             CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (10); CREATE TABLE r2 PARTITION OF r FOR VALUES FROM (10) TO (20);
             INSERT INTO r SELECT i, i % 20 FROM generate_series(1, 100) i",
        )
        .await;
    let (db, daemon) = replicated_on(db).await;
    db.pg.execute("CREATE TABLE r3 PARTITION OF r FOR VALUES FROM (20) TO (30); INSERT INTO r VALUES (1, 25); ALTER TABLE r ADD x int").await;
    db.pg.execute("INSERT INTO r VALUES (2, 25, 7)").await;
    assert_settled_equal(&db, &["r"]).await;
    assert_eq!(copies(&daemon).await, 0.0);
    for change in [
        "CREATE TABLE r4 (id int NOT NULL, at int NOT NULL, x int); INSERT INTO r4 VALUES (1, 35); ALTER TABLE r ATTACH PARTITION r4 FOR VALUES FROM (30) TO (40)",
        "ALTER TABLE r DETACH PARTITION r1",
        "DROP TABLE r4",
    ] {
        println!("{change}");
        let before = copies(&daemon).await;
        db.pg.execute(change).await;
        assert_equal(&db, "r").await;
        assert_settled_equal(&db, &["r"]).await;
        assert!(copies(&daemon).await > before);
    }
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_all_the_columns_there_can_be_is_told_of() {
    let (db, daemon) = replicated("ddl_wide").await;
    let columns: Vec<String> =
        (1..1598).map(|i| format!("a_column_with_a_rather_long_name_{i} numeric(10, 2)")).collect();
    db.pg.execute(&format!("CREATE TABLE wide (id int PRIMARY KEY, {})", columns.join(", "))).await;
    db.pg.execute("INSERT INTO wide (id) VALUES (1)").await;
    assert_equal(&db, "wide").await;
    let before = understood(&daemon).await;
    db.pg.execute("ALTER TABLE wide ADD last int DEFAULT 5; ALTER TABLE wide RENAME last TO latest; ALTER TABLE wide DROP COLUMN latest").await;
    db.pg.execute("ALTER TABLE wide ADD last int DEFAULT 6; INSERT INTO wide (id) VALUES (2)").await;
    assert_settled_equal(&db, &["wide"]).await;
    assert_eq!(understood(&daemon).await, before + 4.0);
    assert_eq!(copies(&daemon).await, 0.0);
    drop(daemon);
    db.cleanup().await;
}
