//! Who walhouse is: certificates of the client, and passwords.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{CANARY, connect, encrypted, path, refused, server, url};
use crate::support::{Authority, Front, TestDb};
use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use walhouse::config::SourceConfig;
use walhouse::postgres::sql;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_for_a_certificate_gets_the_right_one_or_none() {
    let hba = [
        "hostssl all certified 127.0.0.1/32 cert",
        "hostssl all twofold 127.0.0.1/32 scram-sha-256 clientcert=verify-full",
        "host all certified,twofold 127.0.0.1/32 reject",
    ];
    let (db, authority, ca) = server("tls_certified", hba.map(str::to_owned).to_vec()).await;
    db.pg
        .execute(&format!(
            "CREATE ROLE certified SUPERUSER LOGIN; CREATE ROLE twofold SUPERUSER LOGIN PASSWORD '{CANARY}'"
        ))
        .await;
    let secure = format!("sslmode=verify-full&sslrootcert={ca}");
    let (certificate, key) = authority.issue_client("certified").write(&db.directory, "certified");
    let with = |certificate: &str, key: &str| format!("{secure}&sslcert={certificate}&sslkey={key}");
    let own = with(&path(&certificate), &path(&key));
    encrypted(connect(&url(&db, "certified", "localhost", &own)).await, true);
    refused(connect(&url(&db, "certified", "localhost", &secure)).await, &["valid client certificate"]);
    refused(connect(&url(&db, "certified", "localhost", "sslmode=disable")).await, &["pg_hba.conf rejects"]);
    // It is for another role.
    refused(connect(&url(&db, &format!("twofold:{CANARY}"), "localhost", &own)).await, &["\"twofold\""]);
    let (other, other_key) = authority.issue_client("twofold").write(&db.directory, "twofold");
    let twofold = with(&path(&other), &path(&other_key));
    encrypted(connect(&url(&db, &format!("twofold:{CANARY}"), "localhost", &twofold)).await, true);
    refused(connect(&url(&db, &format!("twofold:wrong{CANARY}"), "localhost", &twofold)).await, &["\"twofold\""]);

    let (foreign, foreign_key) = Authority::new("nobody").issue_client("certified").write(&db.directory, "foreign");
    let said = ["does not take the client's certificate", "set source.sslcert"];
    refused(connect(&url(&db, "certified", "localhost", &with(&path(&foreign), &path(&foreign_key)))).await, &said);
    let said = ["source.sslkey: ", "does not belong to the certificate"];
    assert!(!refused(
        connect(&url(&db, "certified", "localhost", &with(&path(&certificate), &path(&other_key)))).await,
        &said
    ));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("a file's mode can be set");
    refused(connect(&url(&db, "certified", "localhost", &own)).await, &["others may read it", "chmod 06"]);
    db.cleanup().await;
}

/// A server with TLS, and a role for each way to prove a password.
async fn with_passwords(label: &str) -> (TestDb, Authority, String) {
    let roles = [("scram", "scram-sha-256"), ("digest", "md5"), ("plain", "password")];
    let hba = roles.map(|(role, method)| format!("host all {role} 127.0.0.1/32 {method}"));
    let (db, authority, ca) = server(label, hba.to_vec()).await;
    db.pg
        .execute(&format!(
            "CREATE ROLE scram SUPERUSER LOGIN PASSWORD '{CANARY}'; CREATE ROLE plain SUPERUSER LOGIN PASSWORD '{CANARY}';
             SET password_encryption = 'md5'; CREATE ROLE digest SUPERUSER LOGIN PASSWORD '{CANARY}'"
        ))
        .await;
    (db, authority, ca)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_goes_out_as_it_may_and_never_in_the_clear() {
    let (db, authority, ca) = with_passwords("tls_password").await;
    let at = async |role: &str, parameters: &str| {
        connect(&url(&db, &format!("{role}:{CANARY}"), "localhost", parameters)).await
    };
    let secure = format!("sslmode=verify-full&sslrootcert={ca}");
    for role in ["scram", "digest", "plain"] {
        encrypted(at(role, &secure).await, true);
        encrypted(at(role, &format!("{secure}&channel_binding=disable")).await, true);
    }
    encrypted(at("scram", &format!("{secure}&channel_binding=require")).await, true);
    let unbound = ["channel_binding=require asks for it", "scram-sha-256"];
    for role in ["digest", "plain", "postgres"] {
        refused(at(role, &format!("{secure}&channel_binding=require")).await, &unbound);
    }
    refused(at("scram", "sslmode=disable&channel_binding=require").await, &unbound);
    for role in ["scram", "digest"] {
        encrypted(at(role, "sslmode=disable").await, false);
    }
    let said = ["asks for the password in the clear", "it was not sent", "scram-sha-256"];
    assert!(!refused(at("plain", "sslmode=disable").await, &said));

    // The hash is the one that the certificate was signed with; for some there is none.
    let longer = Authority::signing_with("longer", &PKCS_ECDSA_P384_SHA384);
    db.postgres.show(&longer.issue(&["localhost"]), &authority).await;
    let secure = format!("sslmode=verify-full&sslrootcert={}", path(&longer.write(&db.directory, "longer")));
    encrypted(at("scram", &format!("{secure}&channel_binding=require")).await, true);
    let without = Authority::signing_with("without", &PKCS_ED25519);
    db.postgres.show(&without.issue(&["localhost"]), &authority).await;
    let secure = format!("sslmode=verify-full&sslrootcert={}", path(&without.write(&db.directory, "without")));
    encrypted(at("scram", &secure).await, true);
    refused(at("scram", &format!("{secure}&channel_binding=require")).await, &unbound);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_in_between_with_a_trusted_certificate_does_not_get_far() {
    let (db, authority, ca) = with_passwords("tls_between").await;
    let front = Front::between(db.postgres.port(), &authority.issue(&["localhost"])).await;
    let at = async |parameters: &str| {
        let url = format!("postgres://scram:{CANARY}@localhost:{}/{}", front.port(), db.name);
        connect(&format!("{url}?sslmode=verify-full&sslrootcert={ca}&{parameters}")).await
    };
    for binding in ["", "channel_binding=prefer", "channel_binding=require"] {
        refused(at(binding).await, &["channel binding"]);
    }
    // It is what the certificate is bound to that gives it away: nothing else would.
    encrypted(at("channel_binding=disable").await, true);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_cancel_goes_over_tls_too() {
    let (db, authority, ca) = server("tls_cancel", Vec::new()).await;
    // Takes nobody who does not begin with TLS.
    let front = Front::between(db.postgres.port(), &authority.issue(&["localhost"])).await;
    let url = format!("postgres://postgres@localhost:{}/{}", front.port(), db.name);
    let source = SourceConfig::new(format!("{url}?sslmode=verify-full&sslrootcert={ca}").parse().expect("a URL"));
    let client = sql::connect(&source, "test cancel").await.expect("a session");
    let slow = client.batch_execute("SELECT pg_sleep(600)");
    let cancel = async {
        let running =
            "SELECT count(*)::text FROM pg_stat_activity WHERE application_name = 'test cancel' AND state = 'active'";
        while db.pg.value(running).await != "1" {}
        sql::cancel(&source.url, &client).await.expect("the request can be sent");
    };
    let (ended, ()) = tokio::join!(slow, cancel);
    let code = ended.expect_err("it was cancelled").code().map(|code| code.code().to_owned());
    assert_eq!(code.as_deref(), Some("57014"));
    db.cleanup().await;
}
