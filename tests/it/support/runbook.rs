//! What the pages for operators say, taken step by step: their own commands, on a test's own servers.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::{Daemon, TestDb, program as monitoring};

const RUNBOOKS: &str = include_str!("../../../docs/runbooks.md");

/// How a command begins that no test can run; what it needs follows.
pub(crate) const NOT_TESTED: &str = "# Not tested: ";

/// A step of a runbook.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    Shell(String),
    Postgres(String),
    ClickHouse(String),
}

impl Step {
    /// The same with something of the test's own in the place of what the page has.
    pub(crate) fn with(&self, example: &str, own: &str) -> Self {
        let replaced = |text: &str| {
            assert!(text.contains(example), "{example} is not in: {text}");
            text.replace(example, own)
        };
        match self {
            Self::Shell(line) => Self::Shell(replaced(line)),
            Self::Postgres(sql) => Self::Postgres(replaced(sql)),
            Self::ClickHouse(sql) => Self::ClickHouse(replaced(sql)),
        }
    }
}

/// The sections of the page, by the alert's name.
pub(crate) fn sections() -> Vec<(&'static str, &'static str)> {
    RUNBOOKS.split("\n## ").skip(1).filter_map(|section| section.split_once('\n')).collect()
}

/// The fenced blocks of a section: language and code.
pub(crate) fn fenced(section: &str) -> Vec<(&str, &str)> {
    let blocks = section.split("```").skip(1).step_by(2);
    blocks.map(|block| block.split_once('\n').expect("a block has a language")).collect()
}

/// The steps of an alert's section that a test can take, in their order, with the names of the test's own database and slot.
/// Take them apart by a pattern with a name for each: then none of them is forgotten.
pub(crate) fn steps(alert: &str, db: &TestDb) -> Vec<Step> {
    let (_, section) = sections().into_iter().find(|(of, _)| *of == alert).expect("the alert has a section");
    let mut steps = Vec::new();
    for (language, code) in fenced(section).into_iter().filter(|(_, code)| !code.starts_with(NOT_TESTED)) {
        let own = code.trim().replace("'walhouse'", &format!("'{}'", db.name)).replace("analytics", &db.name);
        steps.push(match (language, own.split_once('\n')) {
            ("sh", None) => Step::Shell(own),
            ("sql", Some(("-- PostgreSQL", sql))) => Step::Postgres(sql.to_owned()),
            ("sql", Some(("-- ClickHouse", sql))) => Step::ClickHouse(sql.to_owned()),
            _ => panic!("a step that nobody can take: {own}"),
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
    let promtool = monitoring("promtool").parent().map(|folder| folder.display().to_string()).unwrap_or_default();
    let line = line.replace("/etc/walhouse.toml", &config).replace(":9464", &format!(":{}", daemon.port()));
    let mut command = Command::new("bash");
    command
        .args(["-c", &format!("exec env {line}")])
        .env("PATH", format!("{folder}:{}:{promtool}", std::env::var("PATH").unwrap_or_default()))
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
