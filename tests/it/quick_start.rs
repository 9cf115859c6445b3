//! The README's quick start, line by line, on servers that nobody has prepared.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::recovery::blocks;
use crate::support::{ClickHouse, ClickHouseOptions, Pg, Postgres, PostgresOptions, eventually, free_port, signal};

const README: &str = include_str!("../../README.md");

fn chapter(name: &str) -> &'static str {
    let chapter = README.split(&format!("\n## {name}\n")).nth(1).unwrap_or_else(|| panic!("no chapter {name}"));
    chapter.split("\n## ").next().unwrap_or_default()
}

/// `walhouse run`, which ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A line of the README, in a directory of its own and with the test's own program.
fn line(directory: &Path, line: &str, http: u16) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_walhouse")).parent().expect("it is in a folder");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.args(["-c", &format!("exec {line}")]).current_dir(directory).env("PATH", path).stdin(Stdio::null());
    command.env("WALHOUSE__HTTP__LISTEN", format!("127.0.0.1:{http}"));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quick_start_leads_to_equal_tables() {
    let hba = ["127.0.0.1/32", "::1/128"].map(|from| format!("host all,replication walhouse {from} scram-sha-256"));
    let postgres = Postgres::private(PostgresOptions { hba: hba.to_vec(), ..Default::default() });
    let clickhouse = ClickHouse::private(ClickHouseOptions::default());
    let server = Pg::new(postgres.clone(), "postgres");
    server.execute("CREATE ROLE shop_owner").await;
    server.execute("CREATE DATABASE shop OWNER shop_owner").await;
    let shop = Pg::new(postgres.clone(), "shop");
    shop.execute("CREATE TABLE customer (id int PRIMARY KEY, name text); ALTER TABLE customer OWNER TO shop_owner")
        .await;
    shop.execute("INSERT INTO customer VALUES (1, 'Ada'), (2, 'Grace')").await;

    // 1. The first three statements, as they stand.
    let statements = blocks(chapter("Privileges"), "sql")[0];
    assert_eq!(statements.lines().count(), 3, "{statements}");
    shop.execute(statements).await;
    let password = statements.split('\'').nth(1).expect("the role has a password");
    // 3. The file, with the ports of this test's servers.
    let directory = postgres.directory().with_extension("quick");
    fs::create_dir(&directory).expect("a directory can be made");
    let secret = directory.join("postgres");
    fs::write(&secret, format!("{password}\n")).expect("the password can be written");
    let quick = chapter("Quick start");
    let file = blocks(quick, "toml")[0]
        .replace(":5432/", &format!(":{}/", postgres.port()))
        .replace(":8123\"", &format!(":{}\"", clickhouse.port()))
        .replace("/run/secrets/postgres", &secret.display().to_string());
    fs::write(directory.join("walhouse.toml"), file).expect("the configuration can be written");
    // 4. The commands.
    let http = free_port();
    let commands: Vec<&str> = blocks(quick, "sh")[0].lines().collect();
    let [check, run, verify] = commands[..] else { panic!("{commands:?}") };
    let said = line(&directory, check, http).output().expect("bash can be started");
    assert!(said.status.success(), "{check}: {}{}", text(&said.stdout), text(&said.stderr));
    let daemon = line(&directory, run, http).stderr(Stdio::null()).spawn();
    let mut daemon = Running(daemon.expect("bash can be started"));
    let compared = eventually(Duration::from_secs(60), async || {
        let said = line(&directory, verify, http).output().expect("bash can be started");
        let out = text(&said.stdout);
        if said.status.success() { Ok(()) } else { Err(format!("{verify}: {out}{}", text(&said.stderr))) }
    });
    compared.await;
    signal("TERM", &[daemon.0.id()]);
    assert_eq!(daemon.0.wait().expect("walhouse can be waited for").code(), Some(0));
    let _ = fs::remove_dir_all(&directory);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
