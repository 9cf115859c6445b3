//! A certificate while walhouse runs: it expires, and is renewed.

use std::time::Duration;

use super::{CANARY, path, server, url};
use crate::support::{Daemon, assert_equal, eventually, walhouse};

/// Ends every session of walhouse's, as a restart of the server would.
const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name LIKE 'walhouse%' AND datname = current_database()";

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_is_told_of_and_waited_for_and_nothing_is_lost() {
    let hba = "hostssl all streamer 127.0.0.1/32 scram-sha-256 clientcert=verify-full".to_owned();
    let (db, authority, ca) = server("tls_renewal", vec![hba]).await;
    db.pg
        .execute(&format!(
            "CREATE ROLE streamer SUPERUSER LOGIN PASSWORD '{CANARY}';
             CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item SELECT i, 'copied' FROM generate_series(1, 500) i"
        ))
        .await;
    let client = authority.issue_client("streamer");
    let (certificate, key) = client.write(&db.directory, "streamer");
    let parameters = format!("sslmode=verify-full&sslrootcert={ca}&channel_binding=require");
    let source = url(&db, &format!("streamer:{CANARY}"), "localhost", &parameters);
    let extra = format!(
        "[source]\nurl = \"{source}\"\nsslcert = \"{}\"\nsslkey = \"{}\"\n[log]\nlevel = \"trace\"\n",
        path(&certificate),
        path(&key)
    );
    let mut daemon = Daemon::spawn(&db, &extra);
    daemon.wait_ready().await;
    db.pg.execute("UPDATE item SET v = 'streamed' WHERE id % 2 = 0").await;
    assert_equal(&db, "item").await;
    let sessions = "SELECT count(*) FILTER (WHERE NOT s.ssl)::text || ' of ' || (count(*) > 0)::text FROM pg_stat_ssl s \
                    JOIN pg_stat_activity a USING (pid) WHERE a.application_name LIKE 'walhouse%'";
    assert_eq!(db.pg.value(sessions).await, "0 of true", "every session is encrypted");

    db.postgres.show(&authority.issue_expired(&["localhost"]), &authority).await;
    db.pg.execute(TERMINATE).await;
    let said = "its certificate has expired on 2021-02-03T00:00:00Z; renew it there";
    // More than once: it is tried again, with a pause between.
    daemon.wait_log(said, 3).await;
    eventually(Duration::from_secs(30), async || {
        let ready = daemon.get("/readyz").await?;
        if ready.status == 503 && ready.body.contains("has expired on") { Ok(()) } else { Err(ready.body) }
    })
    .await;
    db.pg.execute("DELETE FROM item WHERE id % 3 = 0; INSERT INTO item VALUES (1000, 'meanwhile')").await;
    let before = daemon.streams();
    db.postgres.show(&authority.issue(&["localhost"]), &authority).await;
    daemon.wait_streams(before).await;
    assert_equal(&db, "item").await;

    let mut outputs = daemon.metrics().await;
    for arguments in [&["config"][..], &["config", "--json"], &["check"], &["check", "--json"], &["status"]] {
        let exit = walhouse(daemon.config(), arguments).await;
        outputs += &(exit.stdout + &exit.stderr);
    }
    assert!(daemon.sigterm(Duration::from_secs(20)).await.success(), "{}", daemon.log());
    outputs += &daemon.log();
    // The key's own lines, and the password.
    let lines = client.key.lines().filter(|line| line.len() > 20 && !line.starts_with("---"));
    for secret in lines.chain([CANARY]) {
        let found = outputs.lines().find(|line| line.contains(secret));
        assert_eq!(found, None);
    }
    db.cleanup().await;
}
