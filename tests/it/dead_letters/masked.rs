//! A value that is masked is in no dead letter either.

use super::letters;
use crate::support::{Daemon, TestDb, settled};

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_has_the_masks_of_its_table() {
    let db = TestDb::new("dead_masked").await;
    db.pg
        .execute(
            "CREATE TABLE t (id text PRIMARY KEY, d date, email text, phone text, secret text);
             INSERT INTO t VALUES ('canary-key-1', 'infinity', 'canary-mail', 'canary-phone', 'canary-secret')",
        )
        .await;
    let options = "[tables.\"public.t\"]\nexclude_columns = [\"secret\"]\n\
                   mask = { id = \"hash\", email = \"hash\", phone = \"null\" }";
    let mut daemon = Daemon::spawn(&db, options);
    daemon.wait_ready().await;
    db.pg
        .execute(
            "INSERT INTO t VALUES ('canary-key-2', '-infinity', 'canary-mail', 'canary-phone', 'canary-secret');
             UPDATE t SET email = 'canary-other' WHERE id = 'canary-key-1';
             UPDATE t SET id = 'canary-key-3' WHERE id = 'canary-key-2'",
        )
        .await;
    settled(&db).await;
    let found = letters(&db, "t").await;
    assert!(found.len() >= 4, "{found:?}");
    let all = db.ch.query("SELECT * FROM _dead_letters FORMAT JSONEachRow").await;
    assert!(!all.contains("canary") && !daemon.log().contains("canary"), "{all}");
    drop(daemon);
    db.cleanup().await;
}
