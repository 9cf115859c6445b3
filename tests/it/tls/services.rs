//! TLS to ClickHouse, SQS and S3. None of the servers here has it: what is before them does.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::{path, protection};
use crate::support::{
    Authority, Daemon, Front, Pair, Sqs, TestDb, assert_equal, free_port, put, self_signed, write_config,
};

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_has_to_prove_itself_as_postgres_has() {
    let db = TestDb::new("tls_clickhouse").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item VALUES (1, 'a')").await;
    let authority = Authority::new("the test's own");
    let ca = path(&authority.write(&db.directory, "ca"));
    let front = Front::to(db.clickhouse.port(), &authority.issue(&["localhost", "127.0.0.1"])).await;
    let at = |host: &str, keys: &str| format!("[clickhouse]\nurl = \"https://{host}:{}\"\n{keys}", front.port());
    let trusted = format!("sslrootcert = \"{ca}\"\n");
    let says = async |extra: String, words: &[&str]| {
        let (_, said) = protection(&db, &extra, "ClickHouse").await;
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
    };
    says(at("localhost", &trusted), &["ok: TLS, the certificate is trusted and names the host (verify-full)"]).await;
    says(at("127.0.0.1", &trusted), &["ok: TLS, ", "(verify-full)"]).await;
    says(at("localhost", "sslmode = \"require\"\n"), &["ok: TLS, nothing is known of who answers (require)"]).await;
    let unknown =
        ["failed: TLS to ClickHouse: ", "signed by nobody who is trusted here", "→ set clickhouse.sslrootcert"];
    says(at("localhost", ""), &unknown).await;
    says(
        at("localhost", "sslrootcert = \"/no/such.pem\"\n"),
        &["failed: ", "clickhouse.sslrootcert", "can not be read"],
    )
    .await;

    front.show(&authority.issue(&["ch.internal"]));
    says(at("localhost", &trusted), &["failed: ", "is for ch.internal and not for localhost", "clickhouse.url"]).await;
    says(at("localhost", &format!("{trusted}sslmode = \"verify-ca\"\n")), &["ok: TLS, ", "whatever host it names"])
        .await;
    front.show(&authority.issue_expired(&["localhost"]));
    says(at("localhost", &trusted), &["failed: ", "has expired on 2021-02-03", "renew it"]).await;
    front.show(&self_signed(&["localhost"]));
    says(at("localhost", &trusted), &["failed: TLS to ClickHouse: its certificate is"]).await;
    let plain = format!("[clickhouse]\nurl = \"https://localhost:{}\"\n{trusted}", db.clickhouse.port());
    says(plain, &["failed: TLS to ClickHouse: it does not answer as TLS does", "correct the port in clickhouse.url"])
        .await;

    front.show(&authority.issue(&["localhost"]));
    let mut daemon = Daemon::spawn(&db, &at("localhost", &trusted));
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO item SELECT i, repeat('x', 100) FROM generate_series(2, 5000) i").await;
    assert_equal(&db, "item").await;
    front.show(&authority.issue_expired(&["localhost"]));
    db.pg.execute("UPDATE item SET v = 'meanwhile' WHERE id % 2 = 0").await;
    daemon.wait_log("TLS to ClickHouse: its certificate has expired on 2021-02-03", 1).await;
    front.show(&authority.issue(&["localhost"]));
    assert_equal(&db, "item").await;
    assert!(daemon.sigterm(Duration::from_secs(20)).await.success(), "{}", daemon.log());
    db.cleanup().await;
}

/// What `check` says, with these roots in the place of the system's.
fn checked(config: &std::path::Path, roots: &str) -> String {
    let output = tokio::task::block_in_place(|| {
        Command::new(env!("CARGO_BIN_EXE_walhouse"))
            .args(["check", "--config"])
            .arg(config)
            .env("SSL_CERT_FILE", roots)
            .stdin(Stdio::null())
            .output()
    });
    String::from_utf8_lossy(&output.expect("walhouse can be started").stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_and_buckets_are_reached_over_tls_with_an_authority_of_ones_own() {
    let (db, sqs) = (TestDb::new("tls_services").await, Sqs::shared());
    let authority = Authority::new("the test's own");
    let ca = path(&authority.write(&db.directory, "ca"));
    let other = path(&Authority::new("somebody else").write(&db.directory, "other"));
    let pair: Pair = authority.issue(&["localhost"]);
    let front = Front::to(sqs.port(), &pair).await;
    let bucket = db.name.replace('_', "-");
    assert_eq!(put(sqs.port(), &format!("/{bucket}"), "").await.expect("an S3").status, 200);
    let extra = format!(
        "{}[objects]\nurl = \"s3://{bucket}/some\"\nendpoint_url = \"https://localhost:{}\"\nregion = \"eu-central-1\"\n",
        Sqs::handled(front.port(), &format!("{}-", db.name)).replace("http://127.0.0.1", "https://localhost"),
        front.port()
    );
    let config = write_config(&db, &extra, free_port(), "services.toml");
    let found = checked(&config, &ca);
    assert!(found.contains("✓ queue       SQS") && found.contains("can be written"), "{found}");
    let found = checked(&config, &other);
    assert!(found.contains("can not be reached") && found.contains("can not be used"), "{found}");
    db.cleanup().await;
}
