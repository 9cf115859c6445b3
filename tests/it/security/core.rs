//! What is in the process's memory: in no core dump, and for nobody who runs as the same user.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use crate::support::{TestDb, eventually, free_port, get, signal, write_config};

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_leaves_no_core_and_nobody_else_reads_the_memory() {
    let db = TestDb::new("core").await;
    // Whether one would be written here at all, into the directory where it happens.
    let control = Command::new("bash")
        .args(["-c", "ulimit -c unlimited; kill -ABRT $$"])
        .current_dir(&db.directory)
        .status()
        .expect("bash can be started");
    assert_eq!(control.signal(), Some(6), "{control:?}");
    if !control.core_dumped() {
        eprintln!("the kernel writes no core dump here: only who may read the memory is looked at");
    }
    let cores = || {
        let files = fs::read_dir(&db.directory).expect("a directory").flatten().map(|entry| entry.file_name());
        files.filter(|name| name.to_string_lossy().starts_with("core")).count()
    };
    let before = cores();

    let port = free_port();
    let config = write_config(&db, "", port, "walhouse.toml");
    // As in the image: not root, who may do everything.
    let program = env!("CARGO_BIN_EXE_walhouse");
    let script = "ulimit -c unlimited; exec \"$@\"";
    let child = Command::new("bash")
        .args(["-c", script, "bash", program, "run", "--config"])
        .arg(&config)
        .current_dir(&db.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut daemon = Ended(child.expect("bash can be started"));
    eventually(Duration::from_secs(60), async || match get(port, "/readyz").await?.status {
        200 => Ok(()),
        status => Err(format!("/readyz: {status}")),
    })
    .await;
    let metrics = get(port, "/metrics").await.expect("an answer").body;
    assert!(metrics.contains("\nprocess_resident_memory_bytes "), "it still sees itself: {metrics}");

    signal("ABRT", &[daemon.0.id()]);
    let status = loop {
        if let Some(status) = daemon.0.try_wait().expect("it can be waited for") {
            break status;
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false), "{status:?}");
    assert_eq!(cores(), before, "a core dump was written");
    db.cleanup().await;
}

/// The owner of what shows a process's memory and its environment: root where it is closed to the process's own user.
pub(crate) fn owner_of_memory(pid: u32) -> u32 {
    fs::metadata(format!("/proc/{pid}/environ")).expect("it runs").uid()
}
