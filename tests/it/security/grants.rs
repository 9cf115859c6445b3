//! Each grant that is documented, taken away: what is missing is named, with what gives it back.

use crate::privileges::{CLICKHOUSE_SETTINGS, documented};
use crate::queue::with_outbox;
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Exit, Pg, Postgres, Sqs, TestDb, free_port, settled, user, walhouse,
    write_config,
};

const ROLE_TABLES: &str = "CREATE TABLE item (id int8 PRIMARY KEY); INSERT INTO item VALUES (1)";

/// `GRANT A, B ON c` as one grant for each right.
fn single(grants: &[String]) -> Vec<(String, String)> {
    let one = |grant: &String| {
        let (rights, on) = grant.trim_start_matches("GRANT ").split_once(" ON ").expect("a grant");
        rights.split(", ").map(|right| (right.to_owned(), on.to_owned())).collect::<Vec<_>>()
    };
    grants.iter().flat_map(one).collect()
}

async fn checked(db: &TestDb, config: &str) -> Exit {
    walhouse(&write_config(db, config, free_port(), "grants.toml"), &["check"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_grant_that_is_missing_is_named() {
    let all = single(&documented().2);
    assert_eq!(all.len(), 13, "{all:?}");
    // One who has all of them, and for each one who has the others.
    let with = |left_out: Option<usize>| {
        let kept = all.iter().enumerate().filter(|(at, _)| Some(*at) != left_out);
        kept.map(|(_, (right, on))| format!("GRANT {right} ON {on}")).collect::<Vec<_>>()
    };
    let named = |left_out: Option<usize>| left_out.map_or("walhouse".to_owned(), |at| format!("without_{at}"));
    let everybody = std::iter::once(None).chain((0..all.len()).map(Some));
    let users: String = everybody
        .map(|left_out| {
            let grants = with(left_out);
            user(&named(left_out), "secret", &grants.iter().map(String::as_str).collect::<Vec<_>>())
        })
        .collect();
    let clickhouse = ClickHouse::private(ClickHouseOptions {
        users,
        settings: CLICKHOUSE_SETTINGS.to_owned(),
        ..ClickHouseOptions::default()
    });
    let db = TestDb::on(Postgres::shared(), clickhouse, "grants").await;
    db.pg.execute(ROLE_TABLES).await;
    let as_user = async |left_out: Option<usize>| {
        let user = named(left_out);
        let config = format!("[clickhouse]\ndatabase = \"analytics\"\nuser = \"{user}\"\npassword = \"secret\"\n");
        checked(&db, &config).await
    };
    let fine = as_user(None).await;
    assert!(fine.code == Some(0) && fine.stdout.contains("all that is needed"), "{fine:?}");
    for (at, (right, on)) in all.iter().enumerate() {
        let lacks = as_user(Some(at)).await;
        // ClickHouse gives these with CREATE TABLE and DROP TABLE.
        if right.ends_with(" VIEW") {
            assert!(lacks.stdout.contains("all that is needed"), "without {right}: {lacks:?}");
            continue;
        }
        let remedy = format!("GRANT {right} ON {} TO `without_{at}`", on.replace("analytics.", "`analytics`."));
        assert!(lacks.stdout.contains(&remedy), "without {right} ON {on}: {lacks:?}");
        // The metrics alone may be missing.
        assert_eq!(lacks.code, Some(i32::from(on != "system.parts")), "without {right} ON {on}: {lacks:?}");
    }
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_right_in_postgresql_that_is_missing_is_named() {
    let db = TestDb::new("rights").await;
    let role = format!("{}_role", db.name);
    db.pg.execute(ROLE_TABLES).await;
    let give = [
        format!("ALTER ROLE {role} REPLICATION"),
        format!("ALTER ROLE {role} LOGIN"),
        format!("GRANT CONNECT ON DATABASE {} TO {role}", db.name),
        format!("GRANT USAGE ON SCHEMA public TO {role}"),
        format!("GRANT SELECT ON public.item TO {role}"),
    ];
    let take = [
        (format!("ALTER ROLE {role} NOREPLICATION"), "REPLICATION"),
        (format!("ALTER ROLE {role} NOLOGIN"), "not permitted to log in"),
        (format!("REVOKE CONNECT ON DATABASE {} FROM {role}", db.name), "GRANT CONNECT ON DATABASE"),
        (format!("REVOKE USAGE ON SCHEMA public FROM {role}"), "GRANT USAGE ON SCHEMA"),
        (format!("REVOKE SELECT ON public.item FROM {role}"), "GRANT SELECT ON"),
    ];
    db.pg
        .execute(&format!(
            "CREATE ROLE {role}; REVOKE CONNECT ON DATABASE {} FROM PUBLIC; REVOKE USAGE ON SCHEMA public FROM PUBLIC;
             CREATE PUBLICATION walhouse FOR TABLE item WITH (publish_via_partition_root = true); {}",
            db.name,
            give.join("; ")
        ))
        .await;
    let config = format!("[source]\nurl = \"{}\"\n", db.pg.url_as(&role));
    let fine = checked(&db, &config).await;
    assert_eq!(fine.code, Some(0), "{fine:?}");
    for ((take, named), give) in take.iter().zip(&give) {
        db.pg.execute(take).await;
        let lacks = checked(&db, &config).await;
        assert!(lacks.code == Some(1) && lacks.stdout.contains(named), "{take}: {lacks:?}");
        db.pg.execute(give).await;
    }
    // Without a publication, and without the right to make one.
    db.pg.execute("DROP PUBLICATION walhouse").await;
    let lacks = checked(&db, &config).await;
    assert!(lacks.code == Some(1) && lacks.stdout.contains("GRANT CREATE ON DATABASE"), "{lacks:?}");
    let pg = Pg::new(db.postgres.clone(), "postgres");
    db.cleanup().await;
    pg.execute(&format!("DROP ROLE {role}")).await;
}

/// The statements of the page, as they stand there.
fn statements() -> String {
    let page = include_str!("../../../docs/security.md");
    let section = page.split("## Who may write events").nth(1).and_then(|rest| rest.split("```").nth(1));
    section.and_then(|block| block.strip_prefix("sql\n")).expect("the page's statements").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_write_events_is_postgresqls_to_say() {
    const WRITE: &str = "SELECT pg_logical_emit_message(true, 'walhouse.outbox', '{\"eventType\": \"SecurityEventOccurred\", \
                         \"payload\": {\"eventType\": \"login\", \"actingUserId\": \"u\", \"outcome\": \"success\"}}'::text)";
    let (db, sqs) = (with_outbox("who_may").await, Sqs::shared());
    let (app, other) = (format!("{}_app", db.name), format!("{}_other", db.name));
    db.pg.execute(&format!("CREATE ROLE {app} LOGIN; CREATE ROLE {other} LOGIN")).await;
    db.pg.execute(include_str!("../../../migrations/postgres/0001_ddl_trigger.sql")).await;
    let mut daemon = Daemon::spawn(&db, &Sqs::config(sqs.port(), &crate::queue::prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let (as_app, as_other) = (db.pg.connect_as(&app).await.unwrap(), db.pg.connect_as(&other).await.unwrap());
    as_other.batch_execute(WRITE).await.expect("as PostgreSQL comes, whoever may connect may write");
    db.pg.execute(&statements().replace("shop_app", &app)).await;
    let refused = as_other.batch_execute(WRITE).await.expect_err("it may not any more");
    assert_eq!(refused.code().map(|code| code.code()), Some("42501"), "{refused:?}");
    as_app.batch_execute(WRITE).await.expect("it was granted");
    // The trigger's messages are written with its owner's rights.
    let owner = format!("{}_owner", db.name);
    db.pg
        .execute(&format!(
            "CREATE ROLE {owner} LOGIN; GRANT CREATE ON SCHEMA public TO {owner}; ALTER TABLE item OWNER TO {owner}"
        ))
        .await;
    let as_owner = db.pg.connect_as(&owner).await.unwrap();
    as_owner
        .batch_execute("ALTER TABLE item ADD COLUMN more int; INSERT INTO item VALUES (1, 'a', 1)")
        .await
        .expect("SQL");
    settled(&db).await;
    assert!(daemon.metric("walhouse_ddl_messages_total", "understood").await > 0.0, "{}", daemon.metrics().await);
    sqs.take(&format!("{}audit-log-queue", crate::queue::prefix(&db)), 2).await;
    drop((as_app, as_other, as_owner, daemon));
    let pg = Pg::new(db.postgres.clone(), "postgres");
    db.cleanup().await;
    for role in [app, other, owner] {
        pg.execute(&format!("DROP ROLE {role}")).await;
    }
}
