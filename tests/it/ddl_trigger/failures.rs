//! A trigger that fails, and users who have no part in it: their commands go on all the same.

use std::time::Duration;

use super::{copies, replicated, understood};
use crate::support::{Daemon, assert_equal, assert_settled_equal, walhouse};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_does_not_fail_with_the_trigger() {
    for harm in [
        "DROP MATERIALIZED VIEW walhouse.ddl_key",
        "REFRESH MATERIALIZED VIEW walhouse.ddl_key WITH NO DATA",
        "CREATE OR REPLACE FUNCTION walhouse.ddl_emit(body json) RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'",
        "DROP FUNCTION walhouse.ddl_describe(oid)",
    ] {
        println!("{harm}");
        let (db, daemon) = replicated("ddl_harm").await;
        db.pg.execute(harm).await;
        db.pg
            .execute(
                "ALTER TABLE t ADD COLUMN w int DEFAULT 5; INSERT INTO t VALUES (4, 'after', 4, 4); CREATE TABLE more (id int PRIMARY KEY);
                 CREATE TYPE mood AS ENUM ('a'); ALTER TABLE t RENAME v TO x; DROP TABLE more; UPDATE t SET x = 'more' WHERE id = 2",
            )
            .await;
        // As without it.
        assert_settled_equal(&db, &["t"]).await;
        // Only that a table is gone may still be told.
        let heard = understood(&daemon).await;
        assert!(heard <= 1.0, "{heard}");
        // And as with it, once it is installed again.
        db.pg.execute(super::MIGRATION).await;
        db.pg.query("REFRESH MATERIALIZED VIEW walhouse.ddl_key").await;
        // walhouse looks for another key once in a second.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let before = copies(&daemon).await;
        db.pg.execute("ALTER TABLE t DROP COLUMN x; ALTER TABLE t ADD COLUMN x text DEFAULT 'again'").await;
        assert_settled_equal(&db, &["t"]).await;
        assert_eq!((copies(&daemon).await, understood(&daemon).await), (before, heard + 2.0));
        drop(daemon);
        db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_owns_a_table_may_change_it_without_a_right_on_the_trigger() {
    let (db, daemon) = replicated("ddl_user").await;
    let role = format!("{}_owner", db.name);
    db.pg
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; ALTER TABLE t OWNER TO {role}; GRANT CREATE ON SCHEMA public TO {role}"
        ))
        .await;
    let owner = db.pg.connect_as(&role).await.expect("the owner may connect");
    for refused in
        ["SELECT key FROM walhouse.ddl_key", "SELECT walhouse.ddl_emit('{}')", "SELECT walhouse.ddl_tell('{1}')"]
    {
        assert!(owner.batch_execute(refused).await.is_err(), "{refused}");
    }
    // Whatever the session has set, or put in the way.
    owner
        .batch_execute(
            "CREATE FUNCTION public.json_agg(json) RETURNS json LANGUAGE sql AS $$ SELECT 1/0, $1 LIMIT 0 $$; ",
        )
        .await
        .expect_err("a function with two columns");
    owner
        .batch_execute(
            "SET search_path = public, pg_catalog; SET DateStyle = 'German'; SET TimeZone = 'Asia/Tokyo'; SET bytea_output = 'escape';
             CREATE FUNCTION public.left(text, int) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'in the way'; END $$;
             ALTER TABLE t ADD COLUMN at timestamptz DEFAULT '2024-02-29 12:00:00+00', ADD COLUMN raw bytea DEFAULT '\\x00ff';
             ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN v text DEFAULT 'again'",
        )
        .await
        .expect("the owner may change the table");
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!((copies(&daemon).await, understood(&daemon).await), (0.0, 4.0));
    drop(owner);
    drop(daemon);
    db.pg.execute(&format!("REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}")).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_the_key_goes_on_as_without_the_trigger() {
    let (db, daemon) = replicated("ddl_keyless").await;
    drop(daemon);
    let role = format!("{}_role", db.name);
    db.pg
        .execute(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION; GRANT USAGE ON SCHEMA public TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
        ))
        .await;
    let mut daemon = Daemon::spawn(&db, &format!("[source]\nurl = \"{}\"", db.pg.url_as(&role)));
    daemon.wait_ready().await;
    db.pg.execute("ALTER TABLE t ADD COLUMN w int DEFAULT 5; INSERT INTO t VALUES (4, 'after', 4, 4)").await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(understood(&daemon).await, 0.0);
    assert!(daemon.log().contains("walhouse.ddl_key can not be read"), "{}", daemon.log());
    db.pg
        .execute(&format!("GRANT USAGE ON SCHEMA walhouse TO {role}; GRANT SELECT ON walhouse.ddl_key TO {role}"))
        .await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    db.pg.execute("ALTER TABLE t DROP COLUMN w; ALTER TABLE t ADD COLUMN w int DEFAULT 6").await;
    assert_equal(&db, "t").await;
    assert_eq!(understood(&daemon).await, 2.0);
    drop(daemon);
    db.pg.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_whether_it_is_there_and_whether_it_can_be_read() {
    let (db, daemon) = replicated("ddl_check").await;
    let said = async || {
        let check = walhouse(daemon.config(), &["check"]).await;
        assert_eq!(check.code, Some(0), "{check:?}");
        check.stdout.lines().find(|line| line.contains("DDL trigger")).map(str::to_owned).expect("a line")
    };
    assert!(said().await.contains("installed: changes of shape"), "{}", said().await);
    for (harm, what) in [
        ("ALTER EVENT TRIGGER walhouse_ddl DISABLE", "it is disabled"),
        (
            "ALTER EVENT TRIGGER walhouse_ddl ENABLE; REFRESH MATERIALIZED VIEW walhouse.ddl_key WITH NO DATA",
            "it has no key",
        ),
        ("DROP MATERIALIZED VIEW walhouse.ddl_key", "only a part"),
        // As the page on operations has it.
        (
            "DROP EVENT TRIGGER walhouse_ddl; DROP EVENT TRIGGER walhouse_drop; DROP SCHEMA walhouse CASCADE",
            "not installed",
        ),
    ] {
        db.pg.execute(harm).await;
        assert!(said().await.contains(what), "{what}: {}", said().await);
    }
    db.pg.execute("ALTER TABLE t ADD COLUMN w int DEFAULT 5; INSERT INTO t VALUES (4, 'after', 4, 4)").await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}
