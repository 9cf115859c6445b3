//! `walhouse verify` beside a daemon: masks, dead letters, a load.

use serde_json::Value;

use crate::support::{Daemon, LOAD_TABLES, Load, TestDb, seeded_rng, settled, walhouse};

/// Changes a row of ClickHouse by hand, past everything that walhouse would write.
async fn tamper(db: &TestDb, table: &str, change: &str, condition: &str) {
    let sql = format!(
        "INSERT INTO {table} SELECT * REPLACE ({change}, bitNot(toUInt128(0)) AS _version) FROM {table} FINAL WHERE {condition}"
    );
    db.ch.query(&sql).await;
}

async fn json(daemon: &Daemon, arguments: &[&str]) -> Value {
    let exit = walhouse(daemon.config(), &[&["verify", "--json"], arguments].concat()).await;
    serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{error}: {exit:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_column_that_differs_is_named_and_shows_no_more_than_its_mask() {
    let db = TestDb::new("verify_masked").await;
    db.pg
        .execute(
            "CREATE TABLE t (id int8 PRIMARY KEY, email text, phone text, name text);
             INSERT INTO t SELECT i, 'canary-mail-' || i, 'canary-phone', 'name' || i FROM generate_series(1, 5) i",
        )
        .await;
    let options = "[tables.\"public.t\"]\nmask = { email = \"hash\", phone = \"null\" }\n\
                   [masking]\nsalt = \"0123456789abcdef0123456789abcdef\"";
    let mut daemon = Daemon::spawn(&db, options);
    daemon.wait_ready().await;
    settled(&db).await;
    assert_eq!(json(&daemon, &[]).await["equal"], true);

    let hash = db.ch.query("SELECT email FROM t FINAL WHERE id = 2").await;
    tamper(&db, "t", "'forged' AS email", "id = 2").await;
    tamper(&db, "t", "'leaked' AS phone", "id = 3").await;
    let told = json(&daemon, &[]).await;
    let mut found = told["compared"][0]["differing"].as_array().expect("an array").clone();
    found.sort_by_key(|key| key["key"].to_string());
    let expected =
        |key: &str, column: &str| serde_json::json!({"key": key, "difference": "different", "columns": [column]});
    assert_eq!(found, [expected("id=2", "email"), expected("id=3", "phone")]);

    let exit = walhouse(daemon.config(), &["verify", "--show-values"]).await;
    assert_eq!(exit.code, Some(1), "{exit:?}");
    for line in [
        format!("email: \"{hash}\" in PostgreSQL, \"forged\" in ClickHouse"),
        "phone: NULL in PostgreSQL, \"leaked\" in ClickHouse".to_owned(),
    ] {
        assert!(exit.stdout.contains(&line), "{line} is not in {exit:?}");
    }
    assert!(!format!("{exit:?}{told}").contains("canary"), "{exit:?}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_a_dead_letter_is_named_as_such_whatever_its_key_is() {
    let db = TestDb::new("verify_letter").await;
    db.pg
        .execute(
            "CREATE TABLE t (b bool, at timestamptz, raw bytea, n numeric(9, 3), f float8, c char(4), d date,
                 PRIMARY KEY (b, at, raw, n, f, c));
             CREATE TABLE other (id int8 PRIMARY KEY, v int)",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg
        .execute(
            "INSERT INTO t VALUES (true, '2024-07-01 02:00:00.5+02', '\\x00ff', 1.500, 0.1, 'it''s', '2024-01-01'),
                 (false, '1965-01-01Z', '', -2, '-0', 'a', '2024-01-01');
             UPDATE t SET d = '0044-03-15 BC' WHERE b;
             INSERT INTO t VALUES (true, '2024-07-01Z', '\\x5c27', 0, 1e300, '', '0044-03-14 BC');
             INSERT INTO other VALUES (1, 1)",
        )
        .await;
    settled(&db).await;
    tamper(&db, "other", "2 AS v", "id = 1").await;
    let told = json(&daemon, &[]).await;
    let key = |table: usize, at: usize| &told["compared"][table]["differing"][at];
    assert_eq!(
        (key(0, 0)["columns"].clone(), key(0, 0)["dead_letter"].clone()),
        (serde_json::json!(["v"]), Value::Null)
    );
    let differing = told["compared"][1]["differing"].as_array().expect("an array");
    let mut kinds: Vec<_> =
        differing.iter().map(|key| (key["difference"].as_str(), key["columns"].to_string())).collect();
    kinds.sort();
    assert_eq!(kinds, [(Some("different"), "[\"d\"]".to_owned()), (Some("missing"), "null".to_owned())], "{told}");
    for key in differing {
        assert!(key["dead_letter"].as_str().is_some_and(|said| said.starts_with("column d: ")), "{key}");
    }
    let exit = walhouse(daemon.config(), &["verify"]).await;
    assert!(exit.stdout.contains(": different: d; has a dead letter: column d: "), "{exit:?}");
    assert!(!exit.stdout.contains("0044"), "{exit:?}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_meanwhile_is_not_told_to_differ_and_what_differs_is() {
    let mut rng = seeded_rng();
    let db = TestDb::new("verify_load").await;
    Load::prepare(&db, &mut rng).await;
    // The load leaves these alone.
    db.pg.execute("INSERT INTO account SELECT i, 1000 FROM generate_series(10001, 20000) i").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let load = Load::start(&db, &mut rng, 1);
    load.wait_commits(100).await;
    for look in 0..3 {
        let told = json(&daemon, &[]).await;
        let compared = told["compared"].as_array().expect("an array");
        assert_eq!(compared.len(), LOAD_TABLES.len(), "{told}");
        for table in compared {
            assert_eq!(
                (&table["differing_total"], &table["unexamined"]),
                (&0.into(), &0.into()),
                "look {look}: {table}"
            );
        }
    }
    tamper(&db, "account", "7 AS balance", "id = 10500").await;
    let told = json(&daemon, &["--table", "public.account"]).await;
    let expected = serde_json::json!([{"key": "id=10500", "difference": "different", "columns": ["balance"]}]);
    assert_eq!(told["compared"][0]["differing"], expected, "{told}");
    assert!(load.stop().await > 200);
    drop(daemon);
    db.cleanup().await;
}
