//! What every command promises: help with an example and its exit codes, JSON on standard output where that is asked for,
//! and an exit code that its help has, whatever is the matter.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Exit, Postgres, TestDb, assert_equal, eventually, free_port, user, walhouse,
};

const COMMANDS: [&str; 12] =
    ["run", "check", "status", "verify", "resync", "pause", "resume", "replay", "provision", "dlq", "health", "config"];

fn help(command: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_walhouse")).args(command).arg("--help").output();
    let output = output.expect("walhouse can be started");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The exit codes that a help has.
fn documented(command: &[&str]) -> BTreeSet<i32> {
    let help = help(command);
    let section = help.split("\nExit codes:\n").nth(1).unwrap_or_else(|| panic!("no exit codes: {help}"));
    let code = |line: &str| line.strip_prefix("  ")?.split_once("  ")?.0.parse().ok();
    let codes: BTreeSet<i32> = section.lines().filter_map(code).collect();
    assert!(codes.contains(&0) && codes.contains(&2), "{help}");
    codes
}

/// The command without its arguments: what has a help.
fn name<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    let words = if arguments[0] == "dlq" { 2 } else { 1 };
    arguments[..words].to_vec()
}

/// Runs a command with `--json`, and holds it to its promises.
async fn run(config: &Path, arguments: &[&str]) -> (Exit, Value) {
    let exit = walhouse(config, &[arguments, &["--json"]].concat()).await;
    println!("{arguments:?}: {:?}\n{}{}", exit.code, exit.stdout, exit.stderr);
    let json = serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {exit:?}"));
    let codes = documented(&name(arguments));
    assert!(exit.code.is_some_and(|code| codes.contains(&code)), "{arguments:?}: {:?}, not of {codes:?}", exit.code);
    (exit, json)
}

/// The same, with the exit code that it is to have.
async fn ends(config: &Path, arguments: &[&str], code: i32) -> Value {
    let (exit, json) = run(config, arguments).await;
    assert_eq!(exit.code, Some(code), "{arguments:?}: {exit:?}");
    json
}

#[tokio::test(flavor = "multi_thread")]
async fn every_help_has_an_example_that_can_be_typed() {
    for command in COMMANDS {
        let help = help(&[command]);
        documented(&[command]);
        let examples = help.split("\nExamples:\n").nth(1).unwrap_or_else(|| panic!("no examples: {help}"));
        let first = format!("  walhouse {command}");
        assert!(examples.starts_with(&first), "{help}");
        assert_eq!(help.contains("--json"), command != "run", "{help}");
        let changes = ["resync", "pause", "resume", "replay", "provision"].contains(&command);
        assert_eq!(help.contains("--dry-run"), changes || command == "dlq", "{help}");
    }
}

async fn replicated(label: &str) -> (TestDb, Daemon) {
    let users = user("stranger", "secret", &["GRANT SELECT ON system.one"]);
    let clickhouse = ClickHouse::private(ClickHouseOptions { users, ..ClickHouseOptions::default() });
    let db = TestDb::on(Postgres::shared(), clickhouse, label).await;
    db.pg.execute("CREATE TABLE a (id int8 PRIMARY KEY, v text); INSERT INTO a SELECT generate_series(1, 100)").await;
    let mut daemon = Daemon::spawn(&db, "[source]\nreplay_window = \"1GiB\"\n");
    daemon.wait_ready().await;
    assert_equal(&db, "a").await;
    (db, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_answers_in_json_and_with_a_code_of_its_help() {
    let (db, daemon) = replicated("promises").await;
    let config = &daemon.config().to_owned();
    eventually(Duration::from_secs(30), async || match run(config, &["status"]).await {
        (exit, json) if exit.code == Some(0) && json["healthy"] == true => Ok(()),
        (exit, _) => Err(exit.stdout),
    })
    .await;
    assert_eq!(ends(config, &["check"], 0).await["ok"], true);
    assert_eq!(ends(config, &["verify"], 0).await["equal"], true);
    assert_eq!(ends(config, &["config"], 0).await["source"]["slot"], db.name.as_str());
    assert_eq!(ends(config, &["health"], 0).await["healthy"], true);
    ends(config, &["health", "--ready"], 0).await;
    assert_eq!(ends(config, &["provision", "--dry-run"], 0).await["changed"], 0);
    assert_eq!(ends(config, &["provision"], 0).await["changed"], 0);
    assert_eq!(ends(config, &["provision", "--new-epoch", "--dry-run"], 0).await["dry_run"], true);
    ends(config, &["provision", "--new-epoch"], 2).await;
    assert!(ends(config, &["provision", "--new-epoch", "--yes"], 1).await["error"].is_string(), "a daemon is up");

    assert_eq!(ends(config, &["dlq", "list"], 0).await["queues"][0]["count"], 0);
    ends(config, &["dlq", "show", "none"], 1).await;
    ends(config, &["dlq", "redrive"], 1).await;
    ends(config, &["dlq", "purge", "--dry-run"], 0).await;
    ends(config, &["dlq", "purge"], 2).await;

    steered(config).await;
    tables(config).await;
    drop(daemon);
    assert_eq!(ends(config, &["health"], 1).await["exit_code"], 1);
    let nobody = ends(config, &["resync", "public.a", "--timeout", "1s"], 1).await;
    assert!(nobody["error"].as_str().is_some_and(|why| why.contains("is walhouse run going")), "{nobody}");
    let paused = ends(config, &["pause"], 0).await;
    assert_eq!(paused["held"][0]["taken_up_by"], serde_json::json!([]), "{paused}");
    assert_eq!(ends(config, &["status"], 1).await["healthy"], false);
    db.cleanup().await;
}

/// The pipeline, and delivery.
async fn steered(config: &Path) {
    let dry = ends(config, &["pause", "--dry-run"], 0).await;
    assert!(dry["dry_run"] == true && dry["held"][0]["before"] == false, "{dry}");
    assert_eq!(ends(config, &["resume", "--dry-run"], 0).await["held"][0]["before"], true, "nothing was paused");
    let paused = ends(config, &["pause", "--reason", "a look"], 0).await;
    let held = &paused["held"][0];
    assert!(held["subject"] == "pipeline" && held["paused"] == true && held["reason"] == "a look", "{paused}");
    assert!(held["taken_up_by"][0].as_str().is_some_and(|who| who.starts_with("process ")), "{paused}");
    assert!(paused["slot"]["retained_bytes"].is_u64(), "{paused}");
    assert_eq!(ends(config, &["pause", "--dry-run"], 0).await["held"][0]["reason"], "a look");
    assert_eq!(ends(config, &["resume", "--dry-run"], 0).await["held"][0]["before"], false);
    assert_eq!(ends(config, &["resume"], 0).await["held"][0]["paused"], false);

    let refused = ends(config, &["replay", "--from-lsn", "FFFFFFFF/0", "--dry-run"], 1).await;
    assert!(refused["ok"] == false && refused["refused"].is_string(), "{refused}");
    let from = refused["range"]["checkpoint"].as_str().expect("a position").to_owned();
    assert_eq!(ends(config, &["replay", "--from-lsn", &from, "--dry-run"], 0).await["state"], "meant");
    assert_eq!(ends(config, &["replay", "--from-lsn", &from], 0).await["state"], "done");
}

async fn tables(config: &Path) {
    let state = |json: &Value| json["tables"][0]["state"].as_str().unwrap_or_default().to_owned();
    assert_eq!(state(&ends(config, &["resync", "public.a", "--dry-run"], 0).await), "meant");
    assert_eq!(state(&ends(config, &["resync", "public.a"], 0).await), "done");
    assert!(ends(config, &["resync", "public.nothing"], 2).await["error"].is_string());
    assert_eq!(state(&ends(config, &["pause", "--table", "public.a", "--dry-run"], 0).await), "meant");
    assert_eq!(state(&ends(config, &["pause", "--table", "public.a"], 0).await), "done");
    let refused = ends(config, &["resync", "public.a"], 1).await;
    assert!(state(&refused) == "refused" && refused["tables"][0]["reason"].is_string(), "{refused}");
    assert_eq!(state(&ends(config, &["resume", "--table", "public.*", "--dry-run"], 0).await), "meant");
    assert_eq!(state(&ends(config, &["resume", "--table", "public.*"], 0).await), "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_has_a_code_of_its_own() {
    let (db, daemon) = replicated("promises_away").await;
    let text = fs::read_to_string(daemon.config()).expect("the configuration can be read");
    let with = |name: &str, from: &str, to: &str| -> PathBuf {
        assert!(text.contains(from), "no {from} in {text}");
        let path = db.directory.join(name);
        fs::write(&path, text.replace(from, to)).expect("a file can be written");
        path
    };
    let no_postgres = with("pg.toml", &format!(":{}/", db.postgres.port()), &format!(":{}/", free_port()));
    let stranger = with("role.toml", "postgres://postgres@", "postgres://stranger@");
    let no_clickhouse = with("ch.toml", &format!(":{}", db.clickhouse.port()), &format!(":{}", free_port()));
    let wrong = with("user.toml", "user = \"default\"", "user = \"default\"\npassword = \"wrong\"");
    let lesser = with("lesser.toml", "user = \"default\"", "user = \"stranger\"\npassword = \"secret\"");

    let asks_clickhouse: [&[&str]; 6] = [
        &["verify"],
        &["resync", "public.a"],
        &["pause"],
        &["resume"],
        &["replay", "--from-lsn", "0/1"],
        &["dlq", "list"],
    ];
    for arguments in asks_clickhouse {
        for (config, code, words) in [
            (&no_clickhouse, 4, "ClickHouse can not be reached"),
            (&wrong, 5, "correct clickhouse.user and clickhouse.password_file"),
            (&lesser, 5, "walhouse check names what it needs"),
        ] {
            let json = ends(config, arguments, code).await;
            assert!(json["error"].as_str().is_some_and(|why| why.contains(words)), "{arguments:?}: {json}");
        }
    }
    let asks_postgres: [&[&str]; 3] =
        [&["verify"], &["replay", "--from-lsn", "0/1"], &["provision", "--new-epoch", "--dry-run"]];
    for arguments in asks_postgres {
        for (config, code, words) in [(&no_postgres, 4, "is PostgreSQL running"), (&stranger, 5, "\"stranger\"")] {
            let json = ends(config, arguments, code).await;
            assert!(json["error"].as_str().is_some_and(|why| why.contains(words)), "{arguments:?}: {json}");
        }
    }
    for command in ["check", "status", "provision"] {
        for config in [&no_postgres, &stranger, &no_clickhouse, &wrong, &lesser] {
            ends(config, &[command], 1).await;
        }
    }
    let absent = db.directory.join("absent.toml");
    for command in COMMANDS {
        let arguments: &[&str] = match command {
            "dlq" => &["dlq", "list"],
            "replay" => &["replay", "--from-lsn", "0/1"],
            "resync" => &["resync", "public.a"],
            other => &[other],
        };
        let flag = walhouse(daemon.config(), &[arguments, &["--no-such-flag"]].concat()).await;
        assert!(flag.code == Some(2) && flag.stderr.contains("'--no-such-flag'"), "{command}: {flag:?}");
        let unread = walhouse(&absent, arguments).await;
        let says = unread.stderr.contains("absent.toml: ") && unread.stderr.contains("with --config");
        assert!(unread.code == Some(2) && says, "{command}: {unread:?}");
        if command != "run" {
            assert_eq!(ends(&absent, arguments, 2).await["exit_code"], 2);
        }
    }
    drop(daemon);
    db.cleanup().await;
}
