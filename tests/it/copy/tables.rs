//! Which tables are copied, and under which names.

use std::time::{Duration, Instant};

use crate::support::{Daemon, TestDb, assert_equal, assert_settled_equal, eventually, walhouse};

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_later_is_adopted_within_seconds_and_copied() {
    let db = TestDb::new("copy_later").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let began = Instant::now();
    db.pg.execute("CREATE TABLE late (id int PRIMARY KEY, v text); INSERT INTO late SELECT i, 'a' FROM generate_series(1, 500) i").await;
    eventually(Duration::from_secs(5), async || {
        let status = db.ch.query("SELECT status FROM _tables FINAL WHERE table_name = 'late'").await;
        if status == "streaming" { Ok(()) } else { Err(format!("its status is {status:?}")) }
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(5));
    db.pg.execute("UPDATE late SET v = 'b' WHERE id % 2 = 0; DELETE FROM late WHERE id = 7").await;
    assert_equal(&db, "late").await;
    drop(daemon);
    db.cleanup().await;
}

/// Sessions are kept for the next table, and the server may have ended them meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ended_while_it_was_idle_is_not_used_again() {
    let db = TestDb::new("copy_idle").await;
    db.pg.execute("CREATE TABLE early (id int PRIMARY KEY); INSERT INTO early VALUES (1)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let kept = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'walhouse copy'";
    let ended = db.pg.query(&format!("SELECT pg_terminate_backend(pid, 5000) {kept}")).await;
    assert!(ended.len() >= 2, "one that looks at tables and one that reads them are kept: {}", ended.len());
    db.pg.execute("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)").await;
    eventually(Duration::from_secs(10), async || {
        let status = db.ch.query("SELECT status FROM _tables FINAL WHERE table_name = 'late'").await;
        if status == "streaming" { Ok(()) } else { Err(format!("its status is {status:?}")) }
    })
    .await;
    assert_equal(&db, "late").await;
    let log = daemon.log();
    assert!(!log.contains("trying again") && !log.contains("copying it again"), "{log}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_small_and_empty_tables_of_two_schemas_are_copied_at_once() {
    let db = TestDb::new("copy_many").await;
    db.pg
        .execute(
            "CREATE SCHEMA crm; CREATE SCHEMA \"Odd one\"; CREATE SCHEMA hidden;
            DO $$ BEGIN FOR i IN 1..100 LOOP
                EXECUTE format('CREATE TABLE small_%s (id int PRIMARY KEY, v text)', i);
                EXECUTE format('INSERT INTO small_%s SELECT j, md5(j::text) FROM generate_series(1, %s) j', i, (i % 4) * 10);
            END LOOP; END $$;
            CREATE TABLE crm.contact (id int PRIMARY KEY, v text); INSERT INTO crm.contact VALUES (1, 'a'), (2, NULL);
            CREATE TABLE \"Odd one\".\"It\"\"s\" (id int PRIMARY KEY); INSERT INTO \"Odd one\".\"It\"\"s\" VALUES (1);
            CREATE TABLE hidden.secret (id int PRIMARY KEY); INSERT INTO hidden.secret VALUES (1);
            CREATE TABLE crm.clash_current (id int PRIMARY KEY); CREATE TABLE crm.clash (id int PRIMARY KEY);
            CREATE TABLE crm_contact (id int PRIMARY KEY)",
        )
        .await;
    let mut daemon = Daemon::spawn(
        &db,
        "[source]\ntables = [\"public.*\", \"crm.*\", \"Odd*.*\"]\nexclude = [\"public.crm_contact\"]\n",
    );
    daemon.wait_ready().await;
    for i in 1..=100 {
        assert_equal(&db, &format!("small_{i}")).await;
    }
    assert_equal(&db, "crm.contact").await;
    assert_equal(&db, "Odd one.It\"s").await;
    db.pg.execute("INSERT INTO crm.contact VALUES (3, 'c'); INSERT INTO small_4 VALUES (1, 'first')").await;
    assert_equal(&db, "crm.contact").await;
    assert_equal(&db, "small_4").await;
    assert_eq!(
        db.ch
            .query("SELECT count() FROM system.tables WHERE database = currentDatabase() AND name LIKE '%secret%'")
            .await,
        "0"
    );
    // The view of one would have the name of the other.
    let log = daemon.log();
    let refused = log.lines().find(|line| line.contains("a table is not replicated")).expect("one of two is refused");
    assert!(refused.contains("crm.clash") && refused.contains("is in use for"), "{refused}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_partitioned_table_move_between_partitions() {
    let db = TestDb::new("copy_partitions").await;
    db.pg
        .execute(
            "CREATE TABLE event (id int, region text, at date, v text, PRIMARY KEY (id, region, at)) PARTITION BY LIST (region);
            CREATE TABLE event_eu PARTITION OF event FOR VALUES IN ('eu') PARTITION BY RANGE (at);
            CREATE TABLE event_eu_1 PARTITION OF event_eu FOR VALUES FROM ('2024-01-01') TO ('2024-07-01');
            CREATE TABLE event_eu_2 PARTITION OF event_eu FOR VALUES FROM ('2024-07-01') TO ('2025-01-01');
            CREATE TABLE event_us PARTITION OF event FOR VALUES IN ('us');
            CREATE TABLE event_rest (v text, at date NOT NULL, gone int, id int NOT NULL, region text NOT NULL);
            ALTER TABLE event_rest DROP COLUMN gone;
            ALTER TABLE event ATTACH PARTITION event_rest DEFAULT;
            INSERT INTO event SELECT i, (ARRAY['eu', 'us', 'asia'])[1 + i % 3], date '2024-01-01' + i % 366, 'copied'
            FROM generate_series(1, 3000) i WHERE i % 366 < 365",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_equal(&db, "event").await;
    let leaves = "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name LIKE 'event\\_%' AND engine != 'View'";
    assert_eq!(db.ch.query(leaves).await, "0", "one target for all partitions");

    db.pg
        .execute(
            "UPDATE event SET region = 'us' WHERE region = 'eu' AND id % 2 = 0;
            UPDATE event SET region = 'mars', v = 'moved' WHERE region = 'us' AND id % 5 = 0;
            UPDATE event SET at = '2024-12-31' WHERE region = 'eu' AND at < '2024-07-01' AND id % 7 = 0;
            UPDATE event SET v = 'stayed' WHERE id % 11 = 0; DELETE FROM event WHERE id % 13 = 0;
            INSERT INTO event_eu_2 VALUES (9001, 'eu', '2024-08-01', 'by the leaf')",
        )
        .await;
    assert_equal(&db, "event").await;
    db.pg.execute("INSERT INTO event VALUES (9002, 'eu', '2024-02-02', 'before'); TRUNCATE event; INSERT INTO event VALUES (1, 'eu', '2024-03-01', 'after')").await;
    assert_equal(&db, "event").await;
    drop(daemon);
    db.cleanup().await;
}

const NAMES: [&str; 14] = [
    "two words",
    "quote \" double",
    "it's",
    "back`tick",
    "back\\slash \\n",
    "emoji 😀",
    "select",
    "question ? mark ??",
    "braces {} {x:String}",
    "UPPER Case",
    "1 digit first",
    "dot.ted",
    "per%cent $1 $$ -- /* ",
    "sixty-three bytes: ääääääääääääääääääääää",
];

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_hurt_survive_for_tables_and_columns() {
    let db = TestDb::new("copy_names").await;
    let columns: Vec<_> = NAMES.iter().map(|name| format!("{} text", quoted(name))).collect();
    for (at, name) in NAMES.iter().enumerate() {
        let table = quoted(name);
        // Each table has one of the names as its key, too.
        db.pg
            .execute(&format!(
                "CREATE TABLE {table} ({}, big text, PRIMARY KEY ({}));
                ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL;
                INSERT INTO {table} SELECT {}, repeat('b', 4000) FROM generate_series(1, 5) i",
                columns.join(", "),
                quoted(NAMES[(at + 1) % NAMES.len()]),
                (0..NAMES.len()).map(|column| format!("i || ' {column}'")).collect::<Vec<_>>().join(", "),
            ))
            .await;
    }
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    for (at, name) in NAMES.iter().enumerate() {
        assert_equal(&db, &format!("public.{name}")).await;
        let (table, key, other) =
            (quoted(name), quoted(NAMES[(at + 1) % NAMES.len()]), quoted(NAMES[(at + 2) % NAMES.len()]));
        // The update leaves a toasted value alone, which takes a lookup by the odd key.
        db.pg
            .execute(&format!(
                "UPDATE {table} SET {other} = 'changed' WHERE {key} LIKE '1%'; DELETE FROM {table} WHERE {key} LIKE '2%';
                UPDATE {table} SET {key} = 'new key' WHERE {key} LIKE '3%'; INSERT INTO {table} ({key}) VALUES ('inserted')"
            ))
            .await;
    }
    for name in NAMES {
        assert_equal(&db, &format!("public.{name}")).await;
    }
    let last = quoted(NAMES[0]);
    db.pg.execute(&format!("TRUNCATE {last}")).await;
    assert_equal(&db, &format!("public.{}", NAMES[0])).await;
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_can_not_be_replicated_is_named_and_stops_nothing() {
    let db = TestDb::new("copy_refused").await;
    db.pg
        .execute(
            "CREATE TABLE good (id int PRIMARY KEY); INSERT INTO good VALUES (1);
            CREATE TABLE keyless (id int, v text); INSERT INTO keyless VALUES (1, 'a');
            CREATE TABLE _checkpoint (id int PRIMARY KEY, v text); INSERT INTO _checkpoint VALUES (1, 'a');
            CREATE TABLE swap (id int PRIMARY KEY DEFERRABLE, v text); INSERT INTO swap VALUES (1, 'a');
            CREATE TABLE silent (id int PRIMARY KEY, v text); ALTER TABLE silent REPLICA IDENTITY NOTHING;
            CREATE TABLE versioned (id int PRIMARY KEY, _version text); INSERT INTO versioned VALUES (1, 'a');
            CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, v text); INSERT INTO unlogged VALUES (1, 'a')",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_equal(&db, "good").await;
    let published = db.pg.value("SELECT string_agg(tablename, ' ') FROM pg_publication_tables").await;
    assert_eq!(published, "good");
    let log = daemon.log();
    for (table, why) in [
        ("keyless", "it has no primary key; ALTER TABLE"),
        ("_checkpoint", "which is walhouse's own: give it another with target, or exclude it in source.exclude"),
        ("swap", "its primary key is deferrable"),
        ("silent", "its replica identity is NOTHING; ALTER TABLE"),
        ("versioned", "its column _version has a name that every table in ClickHouse needs"),
        ("unlogged", "it is unlogged"),
    ] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(&format!("table=\"public.{table}\""))).collect();
        assert!(
            lines.len() == 1 && lines[0].contains("not replicated") && lines[0].contains(why),
            "{table}: {lines:?}"
        );
        // What the application does goes on.
        let column = if table == "versioned" { "_version" } else { "v" };
        db.pg.execute(&format!("UPDATE {table} SET {column} = 'b'; DELETE FROM {table}")).await;
    }
    db.pg.execute("ALTER TABLE keyless ADD PRIMARY KEY (id); INSERT INTO keyless VALUES (2, 'b')").await;
    assert_equal(&db, "keyless").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_others_under_the_same_names_are_left_alone() {
    let db = TestDb::new("taken").await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); CREATE TABLE mine (id int PRIMARY KEY);
            INSERT INTO t VALUES (1); INSERT INTO u VALUES (1); INSERT INTO mine VALUES (1)",
        )
        .await;
    db.ch.create_database().await;
    db.ch.query("CREATE TABLE t (precious String) ENGINE = MergeTree ORDER BY ()").await;
    db.ch.query("INSERT INTO t VALUES ('kept')").await;
    db.ch.query("CREATE TABLE u_current (precious String) ENGINE = MergeTree ORDER BY ()").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["mine"]).await;
    for (table, theirs) in [("t", "t"), ("u", "u_current")] {
        let why = format!("ClickHouse has a table {theirs} that is not walhouse's: rename that one");
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains(&format!("table=\"public.{table}\""))).unwrap_or_default();
        assert!(line.contains(&why), "{line}");
    }
    assert_eq!(db.ch.query("SELECT * FROM t").await, "kept");
    // Freed, the name is taken.
    db.ch.query("RENAME TABLE t TO elsewhere").await;
    assert_equal(&db, "t").await;
    daemon.sigterm(Duration::from_secs(20)).await;
    // Another slot, and the same database.
    let slot = format!("{}_other", db.name);
    let mut other = Daemon::spawn(&db, &format!("[source]\nslot = \"{slot}\""));
    other.wait_ready().await;
    let why = format!("the table mine in ClickHouse belongs to the slot {}: choose another database", db.name);
    assert!(other.log().contains(&why), "{}", other.log());
    other.sigterm(Duration::from_secs(20)).await;
    db.pg.query(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    db.cleanup().await;
}
