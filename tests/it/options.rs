//! What `[tables."schema.name"]` makes different for one table.

use crate::rules::stop_reason;
use crate::support::{Daemon, TestDb, assert_equal, eventually, settled, walhouse};

const SECRET: &str = "canary";

/// Everything that ClickHouse shows of a table, older versions and tombstones too.
async fn everything(db: &TestDb, table: &str) -> String {
    db.ch.query(&format!("SELECT * FROM {table} ORDER BY ALL FORMAT TabSeparatedWithNames")).await
}

async fn shown(db: &TestDb, sql: &str, expected: &str) {
    eventually(std::time::Duration::from_secs(20), async || {
        let found = db.ch.try_query(sql).await?;
        if found == expected { Ok(()) } else { Err(format!("{sql}: {found:?}, not {expected:?}")) }
    })
    .await;
}

async fn verified(daemon: &Daemon) {
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
}

/// Why a table is left out, from the log.
async fn left_out(daemon: &Daemon, table: &str) -> String {
    let line = format!("a table is not replicated table=\"public.{table}\"");
    daemon.wait_log(&line, 1).await;
    daemon.log().lines().find(|logged| logged.contains(&line)).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_excluded_column_leaves_no_trace_in_copy_stream_and_lookups() {
    let db = TestDb::new("options_exclude").await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, notes text, v int, big text, more text NOT NULL);
            ALTER TABLE t ALTER notes SET STORAGE EXTERNAL, ALTER big SET STORAGE EXTERNAL;
            INSERT INTO t SELECT i, repeat('canary', 1000), i, repeat('b', 4000), 'canary' FROM generate_series(1, 3) i",
        )
        .await;
    let daemon = &mut Daemon::spawn(&db, "[tables.\"public.t\"]\nexclude_columns = [\"notes\", \"more\"]\n");
    daemon.wait_ready().await;
    // A toasted column that is left out needs no lookup, one that stays does.
    db.pg.execute("UPDATE t SET v = -v WHERE id = 1").await;
    db.pg.execute("UPDATE t SET big = 'small' WHERE id = 2").await;
    db.pg.execute("UPDATE t SET notes = 'canary', id = 30 WHERE id = 3; INSERT INTO t VALUES (4, 'canary', 4, NULL, 'canary')").await;
    let rows = "SELECT id, v, length(big) FROM t_current ORDER BY id FORMAT CSV";
    shown(&db, rows, "1,-1,4000\n2,2,5\n4,4,\\N\n30,3,4000").await;
    let names =
        "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 't' ORDER BY name FORMAT CSV";
    assert_eq!(db.ch.query(names).await.replace('"', ""), "_is_deleted\n_version\nbig\nid\nv");
    db.pg.execute("ALTER TABLE t REPLICA IDENTITY FULL").await;
    db.pg.execute("UPDATE t SET v = 100, notes = 'canary 2' WHERE id = 1; DELETE FROM t WHERE id = 2").await;
    shown(&db, rows, "1,100,4000\n4,4,\\N\n30,3,4000").await;
    assert!(!everything(&db, "t").await.contains(SECRET));
    verified(daemon).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_do_not_fit_their_table_keep_it_out_and_say_why() {
    let db = TestDb::new("options_unfit").await;
    let mut extra = String::new();
    let cases = [
        ("a", "exclude_columns = [\"note\"]", "names in exclude_columns a column note, which it does not have"),
        ("b", "mask = { emial = \"hash\" }", "names in mask a column emial, which it does not have"),
        ("c", "exclude_columns = [\"id\"]", "names in exclude_columns id, which is a column of its key"),
        ("d", "mask = { id = \"null\" }", "the mask of id would make one row of all"),
        ("e", "mask = { n = { fixed = \"x\" } }", "the mask of n is no value of that column"),
        ("f", "order_by = [\"id\"]", "order_by must have the columns of the key, each once: id, k"),
        ("g", "order_by = [\"id\", \"k\", \"n\"]", "order_by must have the columns of the key"),
        ("h", "partition_by = \"n\"", "partition_by in [tables.\\\"public.h\\\"] uses n, which its key has not"),
        ("i", "partition_by = \"intDiv(id, 10) + rand()\"", "ClickHouse refuses what"),
        ("j", "partition_by = \"nonsense(id)\"", "ClickHouse refuses what"),
        ("k", "settings = { index_granularty = 1 }", "ClickHouse refuses what"),
        ("l", "target = \"good_current\"", "its name in ClickHouse, good_current, is in use for public.good"),
        ("m", "target = \"_checkpoint\"", "which is walhouse's own: give it another with target"),
    ];
    db.pg.execute("CREATE TABLE good (id int PRIMARY KEY, email text)").await;
    for (table, options, _) in cases {
        db.pg
            .execute(&format!("CREATE TABLE {table} (id int, k int, n int NOT NULL, email text, PRIMARY KEY (id, k))"))
            .await;
        extra += &format!("[tables.\"public.{table}\"]\n{options}\n");
    }
    extra += "[tables.\"public.later\"]\ntarget = \"x\"\n";
    let daemon = &mut Daemon::spawn(&db, &extra);
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO good VALUES (1, 'a')").await;
    assert_equal(&db, "good").await;
    for (table, options, words) in cases {
        let why = left_out(daemon, table).await;
        assert!(why.contains(words), "{options}: {why}");
        // What PostgreSQL does to a published table must not happen to one that is left out.
        assert_eq!(
            db.pg.value(&format!("SELECT count(*) FROM pg_publication_tables WHERE tablename = '{table}'")).await,
            "0"
        );
    }
    // One of them is created to see what is wrong with it, at each look at the catalog, and does not stay.
    let there = "SELECT groupArray(name) FROM system.tables \
                 WHERE database = currentDatabase() AND name IN ('h', 'i', 'j', 'k')";
    eventually(std::time::Duration::from_secs(5), async || match db.ch.try_query(there).await?.as_str() {
        "[]" => Ok(()),
        there => Err(there.to_owned()),
    })
    .await;
    daemon.wait_log("options are given for a table that is not there", 1).await;
    let check = walhouse(daemon.config(), &["check"]).await;
    assert!(check.stdout.contains("names in mask a column emial"), "{check:?}");
    assert!(check.stdout.contains("public.later"), "{check:?}");
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sorting_key_partitions_target_and_settings_are_as_configured() {
    let db = TestDb::new("options_layout").await;
    db.pg
        .execute(
            "CREATE TABLE t (tenant int, at timestamptz, id bigint, v text, PRIMARY KEY (id, tenant, at));
            ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
            INSERT INTO t SELECT i % 7, timestamptz '2020-01-01' + i * interval '4 days', i, repeat('v', 3000) FROM generate_series(1, 1000) i",
        )
        .await;
    let extra = "[tables.\"public.t\"]\ntarget = \"Events by tenant\"\norder_by = [\"tenant\", \"at\", \"id\"]\n\
                 partition_by = \"toYYYYMM(at)\"\nsettings = { index_granularity = 512, fsync_after_insert = false, merge_selector_algorithm = \"Simple\" }\n";
    let daemon = &mut Daemon::spawn(&db, extra);
    daemon.wait_ready().await;
    let keys = "SELECT sorting_key, partition_key FROM system.tables WHERE database = currentDatabase() AND name = 'Events by tenant'";
    assert_eq!(db.ch.query(keys).await, "tenant, at, id\ttoYYYYMM(at)");
    let create = db.ch.query("SHOW CREATE TABLE `Events by tenant`").await;
    for setting in [
        "index_granularity = 512",
        // Small ones, for lookups; by the table's columns.
        "index_granularity_bytes = 65536",
        "fsync_after_insert = 0",
        "fsync_part_directory = 1",
        "merge_selector_algorithm = \\'Simple\\'",
    ] {
        assert!(create.contains(setting), "{create}");
    }
    // 4,000 days are more partitions than ClickHouse takes in one insert by itself.
    let rows = "SELECT count(), countIf(length(v) = 3000), sum(tenant) FROM `Events by tenant_current`";
    shown(&db, rows, "1000\t1000\t3003").await;
    // A change of a partition's column is a change of the key: its old row is in another partition.
    db.pg.execute("UPDATE t SET at = at + interval '400 days' WHERE id % 2 = 0").await;
    db.pg.execute("UPDATE t SET tenant = 9 WHERE id = 1; DELETE FROM t WHERE id > 800").await;
    shown(&db, rows, "800\t800\t2405").await;
    verified(daemon).await;
    db.cleanup().await;
}

const PEOPLE: &str = "CREATE TYPE state AS ENUM ('new', 'canary');
    CREATE TABLE t (email text PRIMARY KEY, phone text NOT NULL, born date, city text, state state, big text, v int, card bytea, salary numeric(10, 2));
    ALTER TABLE t ALTER big SET STORAGE EXTERNAL, ALTER city SET STORAGE EXTERNAL;
    INSERT INTO t SELECT 'canary' || i, 'canary', '1980-01-01', repeat('canary', 900), 'canary', repeat('canary', 800), i, '\\xcafe', 100.50
    FROM generate_series(1, 4) i;
    INSERT INTO t (email, phone) VALUES ('canary null', 'canary')";

const MASKS: &str = "[tables.\"public.t\"]\nmask = { email = \"hash\", phone = \"null\", born = { fixed = \"1900-01-01\" }, city = { fixed = \"it's\\\\\" }, state = \"hash\", big = \"hash\", card = \"hash\", salary = { fixed = \"0\" } }\n";

/// Runs through copy, stream and lookups, with the hash of the text that PostgreSQL is asked for.
async fn masked(db: &TestDb, daemon: &mut Daemon, digest: &str) {
    daemon.wait_ready().await;
    let big = |count: usize| {
        db.pg.value(
            format!("SELECT encode({}, 'hex')", digest.replace('$', &format!("repeat('canary', {count})"))).leak(),
        )
    };
    let row = |email: &'static str, big: String, v: &'static str| async move {
        let hash = |value: &str| {
            db.pg.value(format!("SELECT encode({}, 'hex')", digest.replace('$', &format!("'{value}'"))).leak())
        };
        let (email, state, card) = (hash(email).await, hash("canary").await, hash("\\xcafe").await);
        format!("{email}\t\\N\t1900-01-01\tit\\'s\\\\\t{state}\t{big}\t{v}\t{card}\t0.00")
    };
    let all = "SELECT * FROM t_current WHERE v IS NOT NULL ORDER BY v";
    let mut expected = Vec::new();
    for (email, v) in [("canary1", "1"), ("canary2", "2"), ("canary3", "3"), ("canary4", "4")] {
        expected.push(row(email, big(800).await, v).await);
    }
    shown(db, all, &expected.join("\n")).await;
    // Unchanged TOAST from ClickHouse, from the batch, with another key, and from PostgreSQL itself.
    db.pg.execute("UPDATE t SET v = 11 WHERE v = 1").await;
    settled(db).await;
    db.pg.execute("UPDATE t SET v = 12 WHERE v = 11; UPDATE t SET v = 13 WHERE v = 12").await;
    db.pg.execute("UPDATE t SET email = 'canary2a', v = 14 WHERE v = 2").await;
    db.pg
        .execute("BEGIN; UPDATE t SET big = repeat('canary', 700) WHERE v = 3; UPDATE t SET v = 15 WHERE v = 3; COMMIT")
        .await;
    db.pg.execute("DELETE FROM t WHERE v = 4; INSERT INTO t VALUES ('canary4', 'canary', NULL, NULL, NULL, repeat('canary', 600), 16)").await;
    let mut expected = vec![
        row("canary1", big(800).await, "13").await,
        row("canary2a", big(800).await, "14").await,
        row("canary3", big(700).await, "15").await,
    ];
    let fourth = row("canary4", big(600).await, "16").await;
    let fourth: Vec<_> = fourth
        .split('\t')
        .enumerate()
        .map(|(at, field)| if [2, 3, 4, 7, 8].contains(&at) { "\\N" } else { field })
        .collect();
    expected.push(fourth.join("\t"));
    shown(db, all, &expected.join("\n")).await;
    assert!(!everything(db, "t").await.contains(SECRET));
    assert!(!daemon.log().contains(SECRET));
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    // What verify says of a difference it says in masked keys.
    db.ch.query(&format!("INSERT INTO t (email, v, _version, _is_deleted) VALUES ('{}', 99, 340282366920938463463374607431768211455, 0)", "0".repeat(64))).await;
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert!(verify.code == Some(1) && verify.stdout.contains("0000000000000000"), "{verify:?}");
    assert!(!format!("{verify:?}").contains(SECRET), "{verify:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_value_never_arrives_and_is_masked_once() {
    let db = TestDb::new("options_mask").await;
    db.pg.execute(PEOPLE).await;
    masked(&db, &mut Daemon::spawn(&db, MASKS), "sha256(convert_to($, 'UTF8'))").await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salted_hash_is_another_and_verify_knows_it() {
    let db = TestDb::new("options_salt").await;
    db.pg.execute("CREATE EXTENSION pgcrypto").await;
    db.pg.execute(PEOPLE).await;
    let daemon = &mut Daemon::spawn(&db, &format!("[masking]\nsalt = \"pepper-and-salt\"\n{MASKS}"));
    masked(&db, daemon, "hmac($, 'pepper-and-salt', 'sha256')").await;
    for output in [daemon.log(), db.ch.query("SELECT shape FROM _tables FINAL").await] {
        assert!(!output.contains("pepper"), "{output}");
    }
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_option_that_is_altered_later_stops_its_table_and_no_other() {
    let db = TestDb::new("options_altered").await;
    let cases = [
        ("a", "mask = { v = \"hash\" }", "mask is another"),
        ("b", "exclude_columns = [\"v\"]", "exclude_columns is another"),
        ("c", "order_by = [\"k\", \"id\"]", "order_by is another"),
        ("d", "partition_by = \"id\"", "partition_by is another"),
    ];
    for (table, ..) in cases {
        db.pg.execute(&format!("CREATE TABLE {table} (id int, k int, v text, PRIMARY KEY (id, k))")).await;
    }
    db.pg.execute("CREATE TABLE salted (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY)").await;
    db.pg.execute("CREATE TABLE moves (id int PRIMARY KEY, v text); INSERT INTO moves VALUES (1, 'a')").await;
    let salted = "[tables.\"public.salted\"]\nmask = { v = \"hash\" }\n";
    let mut daemon = Daemon::spawn(&db, salted);
    daemon.wait_ready().await;
    daemon.kill9();
    for (table, ..) in cases {
        db.pg.execute(&format!("INSERT INTO {table} VALUES (1, 1, 'canary')")).await;
    }
    let options: String =
        cases.iter().map(|(table, options, _)| format!("[tables.\"public.{table}\"]\n{options}\n")).collect();
    let daemon = &mut Daemon::spawn(
        &db,
        &format!(
            "[masking]\nsalt = \"x\"\n{salted}{options}[tables.\"public.other\"]\nsettings = {{ index_granularity = 64 }}\n[tables.\"public.moves\"]\ntarget = \"elsewhere\"\n"
        ),
    );
    daemon.wait_ready().await;
    for (table, _, words) in cases {
        let reason = stop_reason(&db, table).await;
        assert!(reason.contains(words), "{reason}");
        assert!(!everything(&db, table).await.contains(SECRET));
    }
    assert!(stop_reason(&db, "salted").await.contains("masking.salt is another"));
    db.pg.execute("INSERT INTO other VALUES (1)").await;
    assert_equal(&db, "other").await;
    daemon.wait_log("settings have changed", 1).await;
    // Another name is no reason to stop.
    db.pg.execute("INSERT INTO moves VALUES (2, 'b')").await;
    shown(&db, "SELECT groupArray(v) FROM (SELECT v FROM elsewhere_current ORDER BY id)", "['a','b']").await;
    shown(&db, "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name LIKE 'moves%'", "0")
        .await;
    // The operator means it: the table is copied anew, as it is configured now.
    let resync = walhouse(daemon.config(), &["resync", "public.a"]).await;
    assert_eq!(resync.code, Some(0), "{resync:?}");
    shown(&db, "SELECT length(v) FROM a_current", "64").await;
    shown(&db, "SELECT count() FROM a WHERE v LIKE '%canary%'", "0").await;
    db.cleanup().await;
}
