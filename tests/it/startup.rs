//! The first minute: what is wrong is named with its remedy, and nothing is half done; what is not there yet is waited for.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Postgres, PostgresOptions, TestDb, assert_equal, eventually, free_port,
    user, walhouse, write_config,
};

/// In every password of this file; must be in no output.
const CANARY: &str = "Canary4711";

/// Neither a slot nor a publication, and no database in ClickHouse.
async fn assert_nothing_done(db: &TestDb) {
    for thing in ["pg_replication_slots WHERE database = current_database()", "pg_publication"] {
        assert!(db.pg.query(&format!("SELECT 1 FROM {thing}")).await.is_empty(), "{thing}");
    }
    let found = db.ch.try_query("SELECT 1").await.expect_err("walhouse has created its database");
    assert!(found.contains("UNKNOWN_DATABASE"), "{found}");
}

/// `run` ends with `code` and says all of `words`; `check` finds the same.
async fn assert_refused(db: &TestDb, extra: &str, code: i32, words: &[&str]) {
    let loud = if extra.contains("[log]") { "" } else { "[log]\nlevel = \"trace\"\n" };
    let mut daemon = Daemon::spawn(db, &format!("{extra}{loud}"));
    let (found, log) = daemon.wait_exit(Duration::from_secs(30)).await;
    assert_eq!(found, code, "{extra}: {log}");
    assert!(words.iter().all(|word| log.contains(word)), "{extra}: {words:?} in {log}");
    assert!(!log.contains(CANARY), "{extra}: {log}");
    let check = walhouse(daemon.config(), &["check"]).await;
    assert_eq!(check.code, Some(if code == 2 { 2 } else { 1 }), "{extra}: {check:?}");
    let said = check.stdout + &check.stderr;
    assert!(said.contains(words[0]) && !said.contains(CANARY), "{extra}: {:?} in {said}", words[0]);
}

fn with_url(url: &str) -> String {
    format!("[source]\nurl = \"{url}\"\n")
}

/// A server that asks three roles for their passwords, each in another way.
async fn with_passwords(label: &str) -> TestDb {
    let mut hba = vec!["host all shut 127.0.0.1/32 reject".to_owned()];
    for (role, method) in [("scram", "scram-sha-256"), ("digest", "md5"), ("plain", "password")] {
        hba.push(format!("host all {role} 127.0.0.1/32 {method}"));
        hba.push(format!("local all {role} {method}"));
    }
    let postgres = Postgres::private(PostgresOptions { hba, ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), label).await;
    db.pg
        .execute(&format!(
            "CREATE ROLE scram SUPERUSER LOGIN PASSWORD '{CANARY}'; CREATE ROLE plain SUPERUSER LOGIN PASSWORD '{CANARY}';
            SET password_encryption = 'md5'; CREATE ROLE digest SUPERUSER LOGIN PASSWORD '{CANARY}';
            CREATE ROLE weak LOGIN; CREATE ROLE shut SUPERUSER LOGIN; CREATE ROLE humble LOGIN REPLICATION;
            CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item VALUES (1, 'a')"
        ))
        .await;
    db
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_refuses_is_named_with_its_remedy() {
    let db = with_passwords("start_refused").await;
    for role in ["scram", "digest"] {
        let words = [&format!("does not take the password of role \"{role}\"")[..], "correct source.password_file"];
        assert_refused(&db, &with_url(&db.pg.url_as(&format!("{role}:wrong{CANARY}"))), 3, &words).await;
        let words = [&format!("asks for the password of role \"{role}\"")[..], "set source.password_file"];
        assert_refused(&db, &with_url(&db.pg.url_as(role)), 3, &words).await;
    }
    let words = ["asks for the password in the clear", "it was not sent", "scram-sha-256"];
    assert_refused(&db, &with_url(&db.pg.url_as(&format!("plain:{CANARY}"))), 3, &words).await;
    for (role, words) in [
        ("ghost", ["does not let role \"ghost\" in", "add a pg_hba.conf entry for it, or create it"]),
        ("shut", ["does not let role \"shut\" in", "add a pg_hba.conf entry for it, or create it"]),
        ("weak", ["may not", "ALTER ROLE \"weak\" REPLICATION"]),
        ("humble", ["GRANT CREATE ON DATABASE", "to \"humble\""]),
    ] {
        let words = words.map(|word| word.replace("to \"", "TO \""));
        assert_refused(&db, &with_url(&db.pg.url_as(role)), 3, &[&words[0], &words[1]]).await;
    }
    let absent = db.pg.url().replace(&db.name, "no_such_shop");
    assert_refused(
        &db,
        &with_url(&absent),
        3,
        &["has no database \"no_such_shop\"", "correct source.url or create it"],
    )
    .await;
    assert_nothing_done(&db).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_can_not_be_found_is_named_with_its_remedy() {
    let db = TestDb::new("start_host").await;
    let mut daemon = Daemon::spawn(&db, &with_url("postgres://postgres@no-such-host.invalid/shop"));
    let words = "the host \"no-such-host.invalid\" of source.url can not be resolved";
    eventually(Duration::from_secs(30), async || if daemon.log().contains(words) { Ok(()) } else { Err(daemon.log()) })
        .await;
    // Where no name server answers at all, it may be back soon.
    if !daemon.log().contains("Temporary failure") && !daemon.log().contains("Try again") {
        let (code, log) = daemon.wait_exit(Duration::from_secs(10)).await;
        assert!(code == 3 && log.contains("correct the name, or use an address"), "{code}: {log}");
    }
    drop(daemon);
    assert_nothing_done(&db).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_wal_is_told_what_to_set() {
    let settings = vec![("wal_level", "replica".to_owned())];
    let postgres = Postgres::private(PostgresOptions { settings, ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), "start_wal").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY)").await;
    let words = ["ALTER SYSTEM SET wal_level = 'logical'", "wal_level is replica", "restart PostgreSQL"];
    assert_refused(&db, "", 3, &words).await;
    assert_nothing_done(&db).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_log_in_works_and_no_output_has_the_password() {
    let db = with_passwords("start_login").await;
    let file = db.directory.join("password");
    fs::write(&file, format!("{CANARY}\n")).expect("a file can be written");
    let port = db.postgres.port();
    let socket = |role: &str| {
        format!("postgres://{role}:{CANARY}@/{}?host={}&port={port}", db.name, db.postgres.directory().display())
    };
    let mut outputs = String::new();
    for (at, extra) in [
        with_url(&db.pg.url_as(&format!("scram:{CANARY}"))),
        with_url(&db.pg.url_as("digest")) + &format!("password = \"{CANARY}\"\n"),
        with_url(&db.pg.url_as("scram")) + &format!("password_file = \"{}\"\n", file.display()),
        with_url(&socket("scram")),
        with_url(&socket("digest")),
        with_url(&socket("plain")),
        with_url(&db.pg.url().replace("127.0.0.1", "localhost")),
    ]
    .iter()
    .enumerate()
    {
        let mut daemon = Daemon::spawn(&db, &format!("{extra}[log]\nlevel = \"trace\"\n"));
        daemon.wait_ready().await;
        db.pg.execute(&format!("INSERT INTO item VALUES (10 + {at}, 'over the stream')")).await;
        assert_equal(&db, "item").await;
        outputs += &daemon.metrics().await;
        for arguments in [&["config"][..], &["config", "--json"], &["check"], &["check", "--json"], &["verify"]] {
            let exit = walhouse(daemon.config(), arguments).await;
            assert_eq!(exit.code, Some(0), "{extra}: {arguments:?}: {exit:?}");
            assert!(
                arguments[0] != "config" || !extra.contains(CANARY) || exit.stdout.contains("redacted"),
                "{exit:?}"
            );
            outputs += &(exit.stdout + &exit.stderr);
        }
        assert!(daemon.sigterm(Duration::from_secs(20)).await.success(), "{}", daemon.log());
        outputs += &daemon.log();
    }
    let found = outputs.lines().find(|line| line.contains(CANARY));
    assert_eq!(found, None);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_not_there_yet_are_waited_for() {
    let (postgres, clickhouse) =
        (Postgres::private(PostgresOptions::default()), ClickHouse::private(ClickHouseOptions::default()));
    let db = TestDb::on(postgres.clone(), clickhouse.clone(), "start_wait").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1)").await;
    postgres.kill9();
    clickhouse.kill9();
    let mut daemon = Daemon::spawn(&db, "");
    let says = async |words: &str| {
        eventually(
            Duration::from_secs(20),
            async || if daemon.log().contains(words) { Ok(()) } else { Err(daemon.log()) },
        )
        .await;
    };
    says(&format!(
        "127.0.0.1:{} refuses connections; is PostgreSQL running, and does it listen there?",
        postgres.port()
    ))
    .await;
    let (healthy, ready) =
        (daemon.get("/healthz").await.expect("an answer"), daemon.get("/readyz").await.expect("an answer"));
    assert_eq!((healthy.status, ready.status), (200, 503));
    assert!(ready.body.contains("not streaming: "), "{}", ready.body);
    postgres.start();
    says("ClickHouse is away").await;
    says("ClickHouse can not be reached").await;
    let ready = daemon.get("/readyz").await.expect("an answer");
    assert!(ready.status == 503 && ready.body.contains("connecting to ClickHouse"), "{}", ready.body);
    assert!(db.pg.query("SELECT 1 FROM pg_replication_slots").await.is_empty(), "a slot holds WAL for nobody");
    clickhouse.start();
    daemon.wait_ready().await;
    assert_equal(&db, "item").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clickhouse_refuses_is_named_with_its_remedy() {
    let users = user("reader", CANARY, &["GRANT SELECT ON *.*"]);
    let clickhouse = ClickHouse::private(ClickHouseOptions { users, ..Default::default() });
    let db = TestDb::on(Postgres::shared(), clickhouse, "start_clickhouse").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY)").await;
    let login = |user: &str, password: &str| format!("[clickhouse]\nuser = \"{user}\"\npassword = \"{password}\"\n");
    let words = ["correct clickhouse.user and clickhouse.password_file"];
    assert_refused(&db, &login("reader", &format!("wrong{CANARY}")), 3, &words).await;
    assert_refused(&db, &login("nobody", CANARY), 3, &words).await;
    let words = ["CREATE DATABASE", "lacks the grant CREATE DATABASE", "walhouse check names what it needs"];
    assert_refused(&db, &login("reader", CANARY), 3, &words).await;
    assert_nothing_done(&db).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_in_the_configuration_is_named_by_its_key() {
    let db = TestDb::new("start_config").await;
    for (extra, words) in [
        ("[batch]\nmax_delay = \"soon\"\n", "batch.max_delay"),
        ("[batch]\nmax_rows = \"many\"\n", "batch.max_rows"),
        ("[batch]\nmax_rows = -1\n", "batch.max_rows"),
        ("[memory]\nbudget = \"1 heap\"\n", "memory.budget"),
        ("[memory]\nbudget = \"1MiB\"\n", "memory.budget"),
        ("[source]\nslot = \"Upper-Case\"\n", "source.slot"),
        ("[source]\ntables = [\"item\"]\n", "source.tables"),
        ("[source]\ntables = 5\n", "source.tables"),
        ("[source]\nslots = \"a\"\n", "source.slots: unknown key"),
        ("[source.snapshot]\nworkers = 0\n", "source.snapshot.workers"),
        ("[sauce]\nurl = \"a\"\n", "sauce: unknown"),
        ("[source]\nurl = \"mysql://root@localhost/shop\"\n", "source.url"),
        ("[source]\nurl = \"postgres://localhost/shop\"\n", "names no role"),
        ("[source]\npassword_file = \"/no/such/file\"\n", "source.password_file"),
        ("[clickhouse]\nurl = \"localhost:8123\"\n", "clickhouse.url"),
        ("[http]\nlisten = \"everywhere\"\n", "http.listen"),
        ("[log]\nformat = \"yaml\"\n", "log.format"),
        ("[log]\nlevel = \"loud=very\"\n", "log.level"),
        ("[log]\nlevel = \"verbose\"\n", "log.level"),
    ] {
        assert_refused(&db, extra, 2, &[words]).await;
    }
    let broken = db.directory.join("broken.toml");
    fs::write(&broken, "[source\nurl = ").expect("a file can be written");
    for (file, words) in [(&broken, "broken.toml"), (&db.directory.join("absent.toml"), "absent.toml")] {
        for command in ["run", "check", "verify", "config"] {
            let exit = walhouse(Path::new(file), &[command]).await;
            assert!(exit.code == Some(2) && exit.stderr.contains(words), "{exit:?}");
        }
    }
    let empty = db.directory.join("empty.toml");
    fs::write(&empty, "").expect("a file can be written");
    let exit = walhouse(&empty, &["run"]).await;
    assert!(exit.code == Some(2) && exit.stderr.contains("source.url"), "{exit:?}");
    assert_nothing_done(&db).await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_18_is_copied_streamed_and_resumed() {
    let postgres = Postgres::private(PostgresOptions { version: "18", ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), "start_18").await;
    db.pg
        .execute(
            "CREATE TABLE item (id int8 PRIMARY KEY, v text, big text, twice int8 GENERATED ALWAYS AS (id * 2) VIRTUAL);
            ALTER TABLE item ALTER big SET STORAGE EXTERNAL;
            INSERT INTO item SELECT i, 'copied', repeat(md5(i::text), 100) FROM generate_series(1, 2000) i",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("UPDATE item SET v = 'updated' WHERE id % 3 = 0; DELETE FROM item WHERE id % 7 = 0").await;
    daemon.kill9();
    db.pg.execute("UPDATE item SET id = -id WHERE id % 5 = 0; INSERT INTO item VALUES (0, 'zero')").await;
    daemon.start();
    daemon.wait_ready().await;
    assert_equal(&db, "item").await;
    db.pg
        .execute(
            "BEGIN; INSERT INTO item VALUES (9999, 'gone'); TRUNCATE item; INSERT INTO item VALUES (1, 'kept'); COMMIT",
        )
        .await;
    assert_equal(&db, "item").await;
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    let check = walhouse(&write_config(&db, "", free_port(), "check.toml"), &["check"]).await;
    assert_eq!(check.code, Some(0), "{check:?}");
    drop(daemon);
    db.cleanup().await;
}
