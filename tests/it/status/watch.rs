//! `walhouse status --watch`: it goes on until Ctrl-C, whoever is up, and ends with the code of its last look.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{STOP, well};
use crate::support::{ClickHouse, Daemon, Postgres, PostgresOptions, TestDb, eventually, signal};

/// A watch whose output is a pipe. Dropping it ends it.
struct Watching {
    child: Child,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Watching {
    fn start(config: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_walhouse"))
            .arg("--config")
            .arg(config)
            .args(["status", "--watch"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("walhouse can be started");
        let lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let line = self.lines.as_mut().and_then(Iterator::next).expect("there is another line");
        line.expect("standard output can be read")
    }

    /// Waits for a look that is `wanted`, and returns how many there were before.
    fn look(&mut self, wanted: impl Fn(&Value) -> bool) -> usize {
        for looks in 0..100 {
            let line = self.line();
            let look: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            if wanted(&look) {
                return looks;
            }
        }
        panic!("a hundred looks, and none that is wanted");
    }

    /// Ends it as Ctrl-C does; its exit code.
    async fn interrupt(&mut self) -> Option<i32> {
        signal("INT", &[self.child.id()]);
        self.ended().await
    }

    async fn ended(&mut self) -> Option<i32> {
        let child = &mut self.child;
        eventually(Duration::from_secs(60), async || match child.try_wait().expect("a child can be waited for") {
            Some(status) => Ok(status.code()),
            None => Err("it goes on".to_owned()),
        })
        .await
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_looks_again_and_again_while_the_daemon_comes_and_goes() {
    let db = TestDb::new("status_watch").await;
    db.pg.execute("CREATE TABLE a (id int8 PRIMARY KEY); INSERT INTO a VALUES (1)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    well(&daemon).await;
    let mut watching = Watching::start(daemon.config(), &["--json"]);
    let is_up = |look: &Value| look["healthy"] == true && look["source"]["held_by"].is_string();
    let is_down = |look: &Value| look["healthy"] == false && look["source"]["held_by"].is_null();
    watching.look(is_up);
    watching.look(is_up);
    assert_eq!(watching.interrupt().await, Some(0));

    let mut watching = Watching::start(daemon.config(), &["--json"]);
    watching.look(is_up);
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    watching.look(is_down);
    daemon.start();
    watching.look(is_up);
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    watching.look(is_down);
    assert_eq!(watching.interrupt().await, Some(1));

    // For people: when it was, what it is, and what to do.
    let mut watching = Watching::start(daemon.config(), &[]);
    let head = watching.line();
    assert!(head.ends_with("Z, again every 2 s until Ctrl-C"), "{head}");
    assert_eq!(watching.line(), "state        down");
    while !watching.line().contains("✗ walhouse run: none is up") {}
    // A reader that has seen enough ends it too.
    watching.lines = None;
    assert_eq!(watching.ended().await, Some(1));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_takes_long_is_cut_short() {
    let postgres = Postgres::private(PostgresOptions::default());
    let db = TestDb::on(postgres, ClickHouse::shared(), "status_slow").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.postgres.freeze();
    let mut watching = Watching::start(daemon.config(), &["--json"]);
    let status = format!("/proc/{}/status", watching.child.id());
    eventually(Duration::from_secs(60), async || {
        let text = fs::read_to_string(&status).map_err(|error| error.to_string())?;
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default().trim().to_owned();
        let caught = u64::from_str_radix(&caught, 16).map_err(|error| error.to_string())?;
        // SIGINT is 2.
        if caught & 0b10 != 0 { Ok(()) } else { Err(format!("{caught:x}")) }
    })
    .await;
    assert_eq!(watching.interrupt().await, Some(1), "there was no look yet");
    assert!(watching.lines.as_mut().and_then(Iterator::next).is_none(), "the look went on to its end");
    db.postgres.resume();
    drop(daemon);
    db.cleanup().await;
}
