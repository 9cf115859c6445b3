//! Certificates that are signed with RSA-PSS, as some authorities do: the hash that SCRAM is bound with is not in the name of
//! the algorithm, but in its parameters.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{connect, encrypted, path, refused, url};
use crate::support::{Authority, Front, Pair, Postgres, PostgresOptions, TestDb};

const PASSWORD: &str = "Canary4711";

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output();
    let output = output.expect("openssl can be started");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An authority's certificate at `pss-HASH.crt`, and a server's for localhost, signed by it with RSA-PSS and this hash.
fn issue(directory: &Path, hash: &str, name: &str) -> Pair {
    let pss = "-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:-1";
    openssl(
        directory,
        &format!(
            "req -x509 -newkey rsa:2048 -nodes -keyout {name}-ca.key -out {name}-ca.crt -days 2 -subj /CN={name} -{hash} {pss}"
        ),
    );
    openssl(directory, &format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN=localhost"));
    fs::write(directory.join(format!("{name}.ext")), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
        .expect("a file");
    openssl(
        directory,
        &format!(
            "x509 -req -in {name}.csr -CA {name}-ca.crt -CAkey {name}-ca.key -CAcreateserial -out {name}.crt -days 2 \
             -extfile {name}.ext -{hash} {pss}"
        ),
    );
    let text = |file: String| fs::read_to_string(directory.join(file)).expect("openssl has written it");
    Pair { certificate: text(format!("{name}.crt")), key: text(format!("{name}.key")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn scram_is_bound_to_a_certificate_that_is_signed_with_rsa_pss() {
    let hba = vec!["host all scram 127.0.0.1/32 scram-sha-256".to_owned()];
    let postgres = Postgres::private(PostgresOptions { hba, ..Default::default() });
    let db = TestDb::on(postgres, crate::support::ClickHouse::shared(), "tls_pss").await;
    db.pg.execute(&format!("CREATE ROLE scram SUPERUSER LOGIN PASSWORD '{PASSWORD}'")).await;
    let clients = Authority::new("clients");
    for hash in ["sha256", "sha384", "sha512"] {
        let pair = issue(&db.directory, hash, hash);
        db.postgres.show(&pair, &clients).await;
        let ca = path(&db.directory.join(format!("{hash}-ca.crt")));
        let bound = format!("sslmode=verify-full&sslrootcert={ca}&channel_binding=require");
        encrypted(connect(&url(&db, &format!("scram:{PASSWORD}"), "localhost", &bound)).await, true);

        // Somebody in between, with another certificate of the same authority: trusted, and found out.
        let (again, authority) = (format!("{hash}-between"), format!("{hash}-ca"));
        openssl(
            &db.directory,
            &format!("req -newkey rsa:2048 -nodes -keyout {again}.key -out {again}.csr -subj /CN=localhost"),
        );
        openssl(
            &db.directory,
            &format!(
                "x509 -req -in {again}.csr -CA {authority}.crt -CAkey {authority}.key -CAcreateserial -out {again}.crt -days 2 \
                 -extfile {hash}.ext -{hash} -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:-1"
            ),
        );
        let text = |end: &str| fs::read_to_string(db.directory.join(format!("{again}.{end}"))).expect("a file");
        let other = Pair { certificate: text("crt"), key: text("key") };
        let front = Front::between(db.postgres.port(), &other).await;
        let there = format!("postgres://scram:{PASSWORD}@localhost:{}/{}?{bound}", front.port(), db.name);
        refused(connect(&there).await, &["channel binding"]);
    }
    db.cleanup().await;
}
