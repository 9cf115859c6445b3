//! Messages that the triggers did not write: whoever may connect can write one.

use super::{copies, replicated, uuid};
use crate::support::{assert_settled_equal, stopped};

/// What the triggers wrote last, as another session could have written it down.
async fn overheard(db: &crate::support::TestDb) -> String {
    db.pg
        .value(&format!(
            "SELECT encode(substr(data, position('\\x77616c686f7573652e64646c00'::bytea IN data) + 17), 'hex')
             FROM pg_logical_slot_peek_binary_changes('{}_ear', NULL, NULL, 'proto_version', '1', 'publication_names', 'walhouse', 'messages', 'true')
             WHERE position('\\x77616c686f7573652e64646c00'::bytea IN data) = 11 ORDER BY lsn DESC LIMIT 1",
            db.name
        ))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_nobody_vouches_for_changes_nothing() {
    let (db, daemon) = replicated("ddl_forged").await;
    let role = format!("{}_hostile", db.name);
    db.pg.execute(&format!("CREATE ROLE {role} LOGIN")).await;
    db.pg.query(&format!("SELECT pg_create_logical_replication_slot('{}_ear', 'pgoutput')", db.name)).await;
    db.pg.execute("ALTER TABLE t ADD COLUMN w int DEFAULT 5").await;
    assert_settled_equal(&db, &["t", "other"]).await;
    let (columns, target) = (super::columns(&db, "t").await, uuid(&db, "t").await);
    let hostile = db.pg.connect_as(&role).await.expect("anybody may connect");
    let emit = |content: String| format!("SELECT pg_logical_emit_message(true, 'walhouse.ddl', {content})");
    let genuine = overheard(&db).await;
    // The same, of another transaction; with another table's oid; cut; of another form.
    let text = format!("convert_from(decode('{genuine}', 'hex'), 'UTF8')");
    let oid = db.pg.value("SELECT 'other'::regclass::oid").await;
    let of_t = db.pg.value("SELECT 't'::regclass::oid").await;
    for content in [
        format!("decode('{genuine}', 'hex')"),
        format!("replace({text}, '{of_t}', '{oid}')"),
        format!("substr({text}, 66)"),
        format!("repeat('0', 64) || substr({text}, 65)"),
        format!("left({text}, 200)"),
        "''".to_owned(),
        "'{}'".to_owned(),
        "repeat('0', 64) || ' {\"v\": 1, \"xid\": \"1\", \"dropped\": [1]}'".to_owned(),
        "repeat('x', 3000000)".to_owned(),
        "'\\xff00fe'::bytea".to_owned(),
    ] {
        hostile.batch_execute(&emit(content)).await.expect("anybody may write a message");
    }
    // Others' messages, and such as stand outside of a transaction.
    hostile
        .batch_execute(&format!(
            "SELECT pg_logical_emit_message(true, 'app', 'x'), pg_logical_emit_message(false, 'walhouse.ddl', {text}),
             pg_logical_emit_message(true, '', ''), pg_logical_emit_message(false, 'walhouse.ddl.more', '')"
        ))
        .await
        .expect("anybody may write a message");
    db.pg.execute("UPDATE t SET v = 'after' WHERE id = 2; INSERT INTO other VALUES (2)").await;
    assert_settled_equal(&db, &["t", "other"]).await;
    assert_eq!((super::columns(&db, "t").await, uuid(&db, "t").await), (columns, target));
    assert_eq!(stopped(&db).await.as_deref(), Ok(""));
    assert_eq!(daemon.metric("walhouse_ddl_messages_total", "refused").await, 10.0);
    assert_eq!(daemon.log().matches("a DDL message is passed over").count(), 1, "it is not said of each");
    // What is genuine still counts.
    db.pg.execute("ALTER TABLE t DROP COLUMN w; ALTER TABLE t ADD COLUMN w text DEFAULT 'text'").await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(copies(&daemon).await, 0.0);
    drop((hostile, daemon));
    db.pg.execute(&format!("DROP ROLE {role}")).await;
    db.cleanup().await;
}
