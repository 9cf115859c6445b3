//! What the pages for operators say, taken step by step: their own commands, on a test's own servers.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::{Daemon, TestDb};

const RUNBOOKS: &str = include_str!("../../../docs/runbooks.md");

/// A step of a runbook.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    Shell(String),
    Postgres(String),
    ClickHouse(String),
}

/// The steps of an alert's section, in their order, with the names of the test's own database and slot.
pub(crate) fn steps(alert: &str, db: &TestDb) -> Vec<Step> {
    let (_, section) = RUNBOOKS.split_once(&format!("\n## {alert}\n")).expect("the alert has a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut steps = Vec::new();
    for block in section.split("```").skip(1).step_by(2) {
        let own = block.replace("'walhouse'", &format!("'{}'", db.name)).replace("analytics", &db.name);
        let (language, code) = own.split_once('\n').expect("a block has a language");
        let code = code.trim();
        steps.push(match (language, code.split_once('\n')) {
            ("sh", None) => Step::Shell(code.to_owned()),
            ("sql", Some(("-- PostgreSQL", sql))) => Step::Postgres(sql.to_owned()),
            ("sql", Some(("-- ClickHouse", sql))) => Step::ClickHouse(sql.to_owned()),
            _ => panic!("a step that nobody can take: {block}"),
        });
    }
    steps
}

/// Takes a step, and says what came of it. A command that only looks may find something wrong.
pub(crate) async fn take(step: &Step, db: &TestDb, daemon: &Daemon) -> String {
    match step {
        Step::Shell(line) if only_looks(line) => {
            said(&tokio::task::block_in_place(|| command(line, daemon).output()).expect("bash can be started"))
        }
        Step::Shell(line) => said(&done(command(line, daemon))),
        Step::Postgres(sql) => {
            let rows = db.pg.query(sql).await;
            rows.into_iter().flatten().flatten().collect::<Vec<_>>().join("\t")
        }
        Step::ClickHouse(sql) => db.ch.query(sql).await,
    }
}

fn only_looks(line: &str) -> bool {
    let looks = ["walhouse check", "walhouse verify", "walhouse status"];
    looks.iter().any(|look| line.starts_with(look)) || line.contains("--dry-run")
}

/// A command of the page, with the test's own configuration and program.
pub(crate) fn command(line: &str, daemon: &Daemon) -> Command {
    let config = daemon.config().display().to_string();
    let program = Path::new(env!("CARGO_BIN_EXE_walhouse"));
    let folder = program.parent().expect("it is in a folder").display();
    let mut command = Command::new("bash");
    command
        .args(["-c", &format!("exec env {}", line.replace("/etc/walhouse.toml", &config))])
        .env("PATH", format!("{folder}:{}", std::env::var("PATH").unwrap_or_default()))
        .stdin(Stdio::null());
    command
}

pub(crate) fn done(mut command: Command) -> Output {
    let output = tokio::task::block_in_place(|| command.output()).expect("bash can be started");
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A daemon that a command of the page has started.
pub(crate) struct Running(std::process::Child);

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("bash can be started"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
