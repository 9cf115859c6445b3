//! Types within types: what changes in one of them changes the text of values that nobody touched.

use super::copies;
use crate::support::{Daemon, TestDb, assert_equal, assert_settled_equal};

const MIGRATION: &str = include_str!("../../../migrations/postgres/0001_ddl_trigger.sql");

const TYPES: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE empty AS ();
    CREATE TYPE inner_type AS (n int, m mood); CREATE TYPE outer_type AS (i inner_type[], e empty);
    CREATE DOMAIN checked AS outer_type; CREATE TYPE moods AS RANGE (subtype = mood); CREATE TABLE of_rows (a int, b text);
    CREATE TABLE within (id int PRIMARY KEY, c checked, r moods, s datemultirange, w of_rows); CREATE TABLE plain (id int PRIMARY KEY);
    INSERT INTO within VALUES (1, ROW(ARRAY[(1, 'sad')::inner_type, NULL], ROW()::empty), '[sad,ok]', NULL, ROW(1, 'b')), (2, NULL, NULL, NULL, NULL);
    INSERT INTO plain VALUES (1)";

/// Of these, each makes another text of the first row.
const CHANGES: [&str; 7] = [
    "ALTER TYPE inner_type ADD ATTRIBUTE t text",
    "ALTER TYPE inner_type DROP ATTRIBUTE n",
    "ALTER TYPE mood RENAME VALUE 'sad' TO 'low'",
    "ALTER TYPE empty ADD ATTRIBUTE one int, ADD ATTRIBUTE two int",
    "ALTER TABLE of_rows ADD COLUMN c int",
    "ALTER TABLE of_rows DROP COLUMN a",
    "DROP TABLE IF EXISTS nothing; DROP TYPE IF EXISTS nothing; ALTER TYPE outer_type DROP ATTRIBUTE e",
];

async fn follows(label: &str, first: &str) -> (TestDb, Daemon) {
    let db = TestDb::new(label).await;
    db.pg.execute(first).await;
    db.pg.execute(TYPES).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_equal(&db, "within").await;
    // These change no value that is there.
    db.pg
        .execute("ALTER TYPE mood ADD VALUE 'happy' BEFORE 'ok'; ALTER TYPE inner_type RENAME ATTRIBUTE m TO feeling")
        .await;
    db.pg.execute("CREATE TYPE of_nobody AS (a mood); ALTER TYPE of_nobody ADD ATTRIBUTE b int").await;
    assert_settled_equal(&db, &["within", "plain"]).await;
    assert_eq!(copies(&daemon).await, 0.0);
    for (number, change) in (1..).zip(CHANGES) {
        println!("{change}");
        let before = db.pg.query("SELECT within::text FROM within WHERE id = 1").await;
        db.pg.execute(change).await;
        assert_ne!(db.pg.query("SELECT within::text FROM within WHERE id = 1").await, before);
        assert_equal(&db, "within").await;
        db.pg.execute(&format!("INSERT INTO within SELECT {number} * 10, c, r, s, w FROM within WHERE id = 1")).await;
        assert_settled_equal(&db, &["within", "plain"]).await;
        assert_eq!(copies(&daemon).await, f64::from(number), "after {change}");
    }
    (db, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_within_a_type_is_copied() {
    let (db, daemon) = follows("within", "SELECT").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_within_a_type_is_told_of_every_table_with_it() {
    let (db, daemon) = follows("within_told", MIGRATION).await;
    assert!(!daemon.log().contains("the catalog shows a change that was not told"), "{}", daemon.log());
    assert!(daemon.metric("walhouse_ddl_messages_total", "understood").await >= 7.0);
    // A type that takes attributes with it.
    db.pg.execute("CREATE TYPE gone AS (a int); ALTER TYPE outer_type ADD ATTRIBUTE g gone").await;
    assert_settled_equal(&db, &["within"]).await;
    db.pg.execute("DROP TYPE gone CASCADE").await;
    assert_settled_equal(&db, &["within", "plain"]).await;
    assert!(!daemon.log().contains("the catalog shows a change that was not told"), "{}", daemon.log());
    drop(daemon);
    db.cleanup().await;
}
