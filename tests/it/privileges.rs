//! The least privileges, word for word as the README gives them: enough to run, to check and to verify.

use std::time::Duration;

use crate::support::{ClickHouse, ClickHouseOptions, Daemon, Postgres, TestDb, eventually, settled, user, walhouse};

const CLICKHOUSE_GRANTS: [&str; 4] = [
    "GRANT CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP TABLE, DROP VIEW, ALTER TABLE, SELECT, INSERT, OPTIMIZE, TRUNCATE ON analytics.*",
    "GRANT TABLE ENGINE ON ReplacingMergeTree",
    "GRANT SELECT ON system.processes",
    "GRANT SELECT ON system.parts",
];
/// As the configuration that ClickHouse's own packages bring.
const CLICKHOUSE_SETTINGS: &str = "<access_control_improvements>
    <select_from_system_db_requires_grant>true</select_from_system_db_requires_grant>
    <select_from_information_schema_requires_grant>true</select_from_information_schema_requires_grant>
    </access_control_improvements>";

const TABLES: &str = "CREATE TABLE item (id int8 PRIMARY KEY, name text, body text);
    INSERT INTO item SELECT i, 'item ' || i, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 200))
        FROM generate_series(1, 100) i;
    CREATE TABLE gone (id int8 PRIMARY KEY); INSERT INTO gone SELECT generate_series(1, 10)";

/// A shop of an owner's own, and a role beside it.
async fn shop(label: &str) -> (TestDb, String, String) {
    let clickhouse = ClickHouse::private(ClickHouseOptions {
        users: user("walhouse", "secret", &CLICKHOUSE_GRANTS),
        settings: CLICKHOUSE_SETTINGS.to_owned(),
        ..ClickHouseOptions::default()
    });
    let db = TestDb::on(Postgres::shared(), clickhouse, label).await;
    let (owner, role) = (format!("{}_owner", db.name), format!("{}_role", db.name));
    db.pg
        .execute(&format!(
            "CREATE ROLE {owner}; CREATE ROLE {role} LOGIN REPLICATION; GRANT CREATE ON SCHEMA public TO {owner};
            SET ROLE {owner}; {TABLES}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}; RESET ROLE;
            GRANT USAGE ON SCHEMA public TO {role}"
        ))
        .await;
    (db, owner, role)
}

/// Copies, streams everything that needs a right of its own, stops, and is equal.
async fn replicates(db: TestDb, owner: &str, role: &str) {
    let extra = format!(
        "[source]\nurl = \"{}\"\n[clickhouse]\ndatabase = \"analytics\"\nuser = \"walhouse\"\npassword = \"secret\"\n",
        db.pg.url_as(role)
    );
    let mut daemon = Daemon::spawn(&db, &extra);
    daemon.wait_ready().await;
    // A TRUNCATE, values that the stream leaves out, and a key change that carries them along.
    db.pg
        .execute("TRUNCATE gone; UPDATE item SET name = 'x' WHERE id < 50; UPDATE item SET id = -id WHERE id > 90")
        .await;
    // Changes of shape, in place and by a copy, and a dead letter.
    db.pg
        .execute(
            "ALTER TABLE item ADD COLUMN price int DEFAULT 1, ADD COLUMN sold date; ALTER TABLE item RENAME body TO text;
            UPDATE item SET price = 2 WHERE id < 5; INSERT INTO item (id, sold) VALUES (1000, 'infinity')",
        )
        .await;
    settled(&db).await;
    db.pg.execute("ALTER TABLE item DROP COLUMN price; DELETE FROM item WHERE id = 1000").await;
    let exit = walhouse(daemon.config(), &["resync", "public.gone"]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    let exit = eventually(Duration::from_secs(30), async || {
        let exit = walhouse(daemon.config(), &["verify", "--timeout", "10s"]).await;
        if exit.code == Some(0) { Ok(exit) } else { Err(format!("{exit:?}")) }
    })
    .await;
    assert!(exit.stdout.ends_with("All 2 tables are equal.\n"), "{exit:?}");
    let exit = walhouse(daemon.config(), &["check"]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    // What the metrics ask for.
    eventually(Duration::from_secs(60), async || {
        let slot = daemon.metric("walhouse_slot_state", "active").await;
        let parts = daemon.metric("walhouse_clickhouse_parts", "").await;
        if slot == 1.0 && parts > 0.0 { Ok(()) } else { Err(format!("slot {slot}, parts {parts}")) }
    })
    .await;
    assert!(daemon.sigterm(Duration::from_secs(20)).await.success(), "{}", daemon.log());
    drop(daemon);
    let (pg, names) = (crate::support::Pg::new(db.postgres.clone(), "postgres"), [owner.to_owned(), role.to_owned()]);
    db.cleanup().await;
    for name in names {
        pg.execute(&format!("DROP ROLE {name}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_the_tables_owner_publishes_them_by_itself() {
    let (db, owner, role) = shop("owner").await;
    db.pg.execute(&format!("GRANT CREATE ON DATABASE {} TO {role}; GRANT {owner} TO {role}", db.name)).await;
    replicates(db, &owner, &role).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_only_read_uses_the_publication_that_an_admin_made() {
    let (db, owner, role) = shop("admin").await;
    db.pg.execute("CREATE PUBLICATION walhouse FOR TABLE item, gone WITH (publish_via_partition_root = true)").await;
    replicates(db, &owner, &role).await;
}
