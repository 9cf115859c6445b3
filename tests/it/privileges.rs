//! The least privileges, as the README's own statements give them: enough to run, to check and to verify, to handle events and
//! to look after what could not be handled.

use std::time::Duration;

use crate::queue::{LOGIN, OUTBOX, prefix};
use crate::recovery::blocks;
use crate::reports::{ROWS, ask, ended, schema};
use crate::support::{
    Ch, ClickHouse, ClickHouseOptions, Daemon, Pg, Postgres, Sqs, TestDb, eventually, free_port, settled, user,
    walhouse, write_config,
};

const README: &str = include_str!("../../README.md");
/// As the configuration that ClickHouse's own packages bring.
pub(crate) const CLICKHOUSE_SETTINGS: &str = "<access_control_improvements>
    <select_from_system_db_requires_grant>true</select_from_system_db_requires_grant>
    <select_from_information_schema_requires_grant>true</select_from_information_schema_requires_grant>
    </access_control_improvements>";

const TABLES: &str = "CREATE TABLE item (id int8 PRIMARY KEY, name text, body text);
    INSERT INTO item SELECT i, 'item ' || i, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 200))
        FROM generate_series(1, 100) i;
    CREATE TABLE gone (id int8 PRIMARY KEY); INSERT INTO gone SELECT generate_series(1, 10)";

/// The statements for PostgreSQL, for whoever publishes by itself and for whoever reads what others publish, and the grants in
/// ClickHouse, each for a user of its own choice.
pub(crate) fn documented() -> (&'static str, &'static str, Vec<String>) {
    let section = README.split("\n## Privileges\n").nth(1).and_then(|rest| rest.split("\n## ").next());
    let statements = blocks(section.expect("the README's section"), "sql");
    let [publishes, reads, clickhouse] = statements[..] else { panic!("{statements:?}") };
    let grants = clickhouse.split(';').map(|statement| statement.split_whitespace().collect::<Vec<_>>().join(" "));
    let grants: Vec<_> = grants.filter_map(|grant| grant.strip_suffix(" TO walhouse").map(str::to_owned)).collect();
    assert!(grants.len() > 2 && grants.iter().all(|grant| grant.starts_with("GRANT ")), "{grants:?}");
    (publishes, reads, grants)
}

/// A database of an owner's own, and a role beside it to which only the README's statements give anything.
struct Shop {
    db: TestDb,
    owner: String,
    role: String,
}

impl Shop {
    async fn new(label: &str, tables: &str) -> Self {
        let grants = documented().2;
        let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
        let clickhouse = ClickHouse::private(ClickHouseOptions {
            users: user("walhouse", "secret", &grants),
            settings: CLICKHOUSE_SETTINGS.to_owned(),
            ..ClickHouseOptions::default()
        });
        let db = TestDb::on(Postgres::shared(), clickhouse, label).await;
        let (owner, role) = (format!("{}_owner", db.name), format!("{}_role", db.name));
        db.pg
            .execute(&format!(
                "CREATE ROLE {owner}; GRANT CREATE ON SCHEMA public TO {owner}; SET ROLE {owner}; {tables}; RESET ROLE"
            ))
            .await;
        Self { db, owner, role }
    }

    /// Does what the README says, with the names that this test has.
    async fn grant(&self, statements: &str, tables: &str) {
        let statements = statements
            .replace("PUBLICATION walhouse", "PUBLICATION @")
            .replace("walhouse", &self.role)
            .replace('@', "walhouse")
            .replace("shop_owner", &self.owner)
            .replace("DATABASE shop", &format!("DATABASE {}", self.db.name))
            .replace("sales_order, customer", tables);
        self.db.pg.execute(&statements).await;
    }

    fn config(&self) -> String {
        format!(
            "[source]\nurl = \"{}\"\n[clickhouse]\ndatabase = \"analytics\"\nuser = \"walhouse\"\npassword = \"secret\"\n",
            self.db.pg.url_as(&self.role)
        )
    }

    async fn cleanup(self) {
        let pg = Pg::new(self.db.postgres.clone(), "postgres");
        self.db.cleanup().await;
        for name in [self.owner, self.role] {
            pg.execute(&format!("DROP ROLE {name}")).await;
        }
    }
}

/// Both sides are equal, and `check` finds nothing.
async fn all_is_well(daemon: &Daemon, tables: usize) {
    let exit = eventually(Duration::from_secs(60), async || {
        let exit = walhouse(daemon.config(), &["verify", "--timeout", "10s"]).await;
        if exit.code == Some(0) { Ok(exit) } else { Err(format!("{exit:?}")) }
    })
    .await;
    assert!(exit.stdout.ends_with(&format!("All {tables} tables are equal.\n")), "{exit:?}");
    let exit = walhouse(daemon.config(), &["check"]).await;
    // The daemon has the slot, and of that it warns.
    assert!(exit.code == Some(0) && exit.stdout.ends_with("Ready, with 1 warning.\n"), "{exit:?}");
}

/// Copies, streams everything that needs a right of its own, stops, and is equal.
async fn replicates(shop: Shop) {
    let db = &shop.db;
    let mut daemon = Daemon::spawn(db, &shop.config());
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
    settled(db).await;
    let listed = walhouse(daemon.config(), &["dlq", "list"]).await;
    assert!(listed.code == Some(0) && listed.stdout.contains("public.item: 1"), "{listed:?}");
    db.pg.execute("ALTER TABLE item DROP COLUMN price; DELETE FROM item WHERE id = 1000").await;
    let exit = walhouse(daemon.config(), &["resync", "public.gone"]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    all_is_well(&daemon, 2).await;
    let purged = walhouse(daemon.config(), &["dlq", "purge", "--table", "public.item", "--yes"]).await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
    // What the metrics ask for.
    eventually(Duration::from_secs(60), async || {
        let slot = daemon.metric("walhouse_slot_state", "active").await;
        let parts = daemon.metric("walhouse_clickhouse_parts", "").await;
        if slot == 1.0 && parts > 0.0 { Ok(()) } else { Err(format!("slot {slot}, parts {parts}")) }
    })
    .await;
    assert!(daemon.sigterm(Duration::from_secs(20)).await.success(), "{}", daemon.log());
    drop(daemon);
    shop.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_the_tables_owner_publishes_them_by_itself() {
    let shop = Shop::new("owner", TABLES).await;
    shop.grant(documented().0, "").await;
    replicates(shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_only_read_uses_the_publication_that_an_admin_made() {
    let shop = Shop::new("admin", TABLES).await;
    shop.grant(documented().1, "item, gone").await;
    replicates(shop).await;
}

/// Provisions, has each worker do its work and the star schema made, and brings a letter home.
async fn handles_events(shop: Shop) {
    let (db, sqs) = (&shop.db, Sqs::shared());
    db.pg.execute(ROWS).await;
    let objects = format!("[objects]\nurl = \"file://{}/objects\"\n", db.directory.display());
    let queues = Sqs::handled(sqs.port(), &prefix(db));
    let config = format!("{}{queues}{objects}[warehouse]\nenabled = true\n", shop.config());
    let made = walhouse(&write_config(db, &config, free_port(), "provision.toml"), &["provision"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    let mut daemon = Daemon::spawn(db, &config);
    daemon.wait_ready().await;
    daemon.wait_log("the star schema is there", 1).await;
    eventually(Duration::from_secs(30), async || {
        let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'outbox_event'";
        if db.pg.value(published).await == "1" { Ok(()) } else { Err("the outbox table is not published".to_owned()) }
    })
    .await;

    let analytics = Ch::new(db.clickhouse.clone(), "analytics");
    db.pg
        .execute(&format!("INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{LOGIN}')"))
        .await;
    for (operation, report) in [("reportGeneration", "product_performance"), ("dataExport", "merchant_orders")] {
        let parameters = serde_json::json!({ "report": report, "format": "parquet" });
        let row = ended(&analytics, &ask(db, operation, "1", parameters).await).await;
        assert_eq!(row["status"], "succeeded", "{row}");
    }
    eventually(Duration::from_secs(60), async || {
        match analytics.try_query("SELECT arraySort(groupArray(event_type)) FROM audit_log FINAL").await?.as_str() {
            "['data_export','login']" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;

    // A row that its table does not take is a letter, and lands by way of the queue once it does.
    analytics.query("ALTER TABLE product ADD CONSTRAINT cheap CHECK price < 1000").await;
    db.pg.execute("UPDATE product SET price = 5000 WHERE id = 4").await;
    settled(db).await;
    let dead = format!("{}data-sync-dlq", prefix(db));
    eventually(Duration::from_secs(60), async || match sqs.count(&dead).await {
        1 => Ok(()),
        other => Err(format!("{other} letters")),
    })
    .await;
    analytics.query("ALTER TABLE product DROP CONSTRAINT cheap").await;
    let home = walhouse(daemon.config(), &["dlq", "redrive", "--queue", "data-sync"]).await;
    assert!(home.code == Some(0) && home.stdout.contains("1 sent home"), "{home:?}");
    all_is_well(&daemon, 6).await;
    assert_eq!(sqs.count(&dead).await, 0);
    drop(daemon);
    shop.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_of_a_member_of_the_tables_owner_need_nothing_more() {
    let shop = Shop::new("owner_events", &format!("{}; {OUTBOX}", schema())).await;
    shop.grant(documented().0, "").await;
    handles_events(shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_of_a_role_that_may_only_read_need_nothing_more() {
    let shop = Shop::new("admin_events", &format!("{}; {OUTBOX}", schema())).await;
    shop.grant(documented().1, "sales_order, order_item, product, customer, merchant_account, users, outbox_event")
        .await;
    // Whoever reads the events in the WAL need not read the table.
    shop.db.pg.execute(&format!("REVOKE SELECT ON outbox_event FROM {}", shop.role)).await;
    handles_events(shop).await;
}
