//! Processes: `server.py` and what it runs, signals, ports, and the directory of this test run.
//!
//! A server lives as long as this process holds its standard input, so a crashed or killed test run leaves none behind.
//! Directories that such a run left are removed by the next one.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One server under `server.py`, which can be ended and started again on the same directory and ports.
pub(crate) struct Server {
    name: String,
    directory: PathBuf,
    arguments: Vec<String>,
    running: Mutex<Option<Running>>,
    /// Processor seconds of those that were killed.
    spent: Mutex<f64>,
}

struct Running {
    child: Child,
    /// Open for as long as the server shall live.
    _lifeline: ChildStdin,
}

impl Server {
    /// Describes a server; `name` becomes its directory below this run's.
    pub(crate) fn new(kind: &str, name: &str, arguments: Vec<String>) -> Self {
        let directory = run_directory().join(name);
        let mut all = vec![kind.to_owned(), "--remove".to_owned(), "--dir".to_owned(), directory.display().to_string()];
        all.extend(arguments);
        Self { name: name.to_owned(), directory, arguments: all, running: Mutex::new(None), spent: Mutex::new(0.0) }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts the server and waits until it answers. Blocks.
    pub(crate) fn start(&self) {
        let mut running = self.lock();
        assert!(running.is_none(), "{} is running already", self.name);
        let log_path = self.log();
        // Where no server is shared, the last one that ended has taken the directory of all with it.
        fs::create_dir_all(run_directory()).expect("the directory of this run can be made");
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path).expect("the log can be opened");
        let mut child = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/server.py"))
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("python3 can be started");
        let lifeline = child.stdin.take().expect("standard input is a pipe");
        let output = child.stdout.take().expect("standard output is a pipe");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("server.py's output can be read");
        if line.trim() != "ready" {
            drop(lifeline);
            let status = child.wait().expect("server.py can be waited for");
            panic!("{} did not start ({status}):\n{}", self.name, tail(&log_path, 40));
        }
        *running = Some(Running { child, _lifeline: lifeline });
    }

    /// The process that `server.py` runs as; for ClickHouse, the server itself.
    pub(crate) fn pid(&self) -> u32 {
        self.lock().as_ref().expect("the server is running").child.id()
    }

    /// Kills these processes, of which `server.py` or its only child is one, and waits for the end.
    pub(crate) fn kill9(&self, pid: u32) {
        *self.spent() += self.running_for();
        let mut running = self.lock().take().expect("the server is running");
        signal("KILL", &[pid]);
        running.child.wait().expect("server.py can be waited for");
    }

    /// Ends the server as a crash of its owner would, and keeps nothing.
    pub(crate) fn stop(&self) {
        if let Some(Running { mut child, _lifeline }) = self.lock().take() {
            drop(_lifeline);
            if wait_for(&mut child, Duration::from_secs(30)).is_none() {
                child.kill().expect("server.py can be killed");
                child.wait().expect("server.py can be waited for");
            }
        }
    }

    /// Ends this process, of which `server.py` is the owner, as it wants to end, and waits for both.
    pub(crate) fn end(&self, pid: u32, with: &str) {
        let mut running = self.lock().take().expect("the server is running");
        signal(with, &[pid]);
        running.child.wait().expect("server.py can be waited for");
    }

    /// The processor time that it has taken so far, over all of its lives.
    pub(crate) fn processor_seconds(&self) -> f64 {
        *self.spent() + self.running_for()
    }

    fn running_for(&self) -> f64 {
        let pid = self.lock().as_ref().map(|running| running.child.id());
        let family = pid.map(family).unwrap_or_default();
        family.iter().map(|pid| processor_seconds(&Path::new("/proc").join(format!("{pid}/stat")))).sum()
    }

    fn spent(&self) -> std::sync::MutexGuard<'_, f64> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> PathBuf {
        self.directory.with_extension("log")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        // Only here if the server had been killed before.
        let _ = fs::remove_dir_all(&self.directory);
        let _ = fs::remove_file(self.log());
    }
}

/// A file system in memory, of few bytes.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// Makes the directory, and mounts it there.
    pub(crate) fn at(directory: &Path, bytes: u64) -> Self {
        fs::create_dir_all(directory).expect("the directory of a server can be made");
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory).status();
        assert!(status.is_ok_and(|status| status.success()), "a tmpfs can be mounted");
        Self(directory.to_owned())
    }

    /// From now on there is room for so many more bytes.
    pub(crate) fn limit_bytes(&self, more: u64) {
        self.limit("used", "size", more);
    }

    /// From now on there is room for so many more files and directories, however many bytes are free.
    pub(crate) fn limit_files(&self, more: u64) {
        self.limit("iused", "nr_inodes", more);
    }

    /// What there is, by `df`, and so many more, as an option of the mount.
    fn limit(&self, counted: &str, option: &str, more: u64) {
        let df = || {
            let mut df = Command::new("df");
            let answer =
                df.args(["-B1", &format!("--output={counted}")]).arg(&self.0).output().expect("df can be started");
            let text = String::from_utf8_lossy(&answer.stdout);
            text.lines().last().and_then(|line| line.trim().parse::<u64>().ok()).expect("df counts")
        };
        // Files come and go meanwhile, and a file system does not become smaller than what is on it.
        let limited = (0..100).any(|_| {
            let mut mount = Command::new("mount");
            mount.args(["-o", &format!("remount,{option}={}", df() + more)]).arg(&self.0).stderr(Stdio::null());
            mount.status().is_ok_and(|status| status.success())
        });
        assert!(limited, "a tmpfs can be mounted with other options");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// At once, also while a process has files there open.
fn unmount(path: &Path) {
    Command::new("umount").arg("--lazy").arg(path).status().expect("umount can be started");
}

/// Waits for a process to end, or returns `None` when it has not after `timeout`.
pub(crate) fn wait_for(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal (`KILL`, `STOP`, …); a process that is gone already is no error.
pub(crate) fn signal(name: &str, pids: &[u32]) {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let script = format!("kill -{name} {} 2>/dev/null", pids.join(" "));
    Command::new("sh").args(["-c", &script]).status().expect("sh can be started");
}

/// What a process has taken of processors, with its children that have ended: from its `stat` below `/proc`. Nothing if it has
/// ended.
pub(crate) fn processor_seconds(stat: &Path) -> f64 {
    // utime, stime, and cutime and cstime.
    ticks(stat, 4)
}

/// What a thread has.
pub(crate) fn thread_seconds(stat: &Path) -> f64 {
    ticks(stat, 2)
}

/// Fields from the twelfth after the name on, which count in hundredths of a second.
fn ticks(stat: &Path, fields: usize) -> f64 {
    let text = fs::read_to_string(stat).unwrap_or_default();
    let fields = text.rsplit_once(") ").map(|(_, rest)| rest.split(' ').skip(11).take(fields)).into_iter().flatten();
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// A process and all that descend from it.
pub(crate) fn family(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .expect("/proc can be read")
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut family = vec![root];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    family
}

/// A TCP port that nothing listens on, given out once only.
///
/// From below the ephemeral range, so that no outgoing connection takes it while its server is being restarted.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    loop {
        let port = rand::random_range(15_000..32_000);
        if given.insert(port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Where this run keeps its servers, configurations and logs.
pub(crate) fn run_directory() -> &'static Path {
    static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
        let base = base_directory();
        fs::create_dir_all(&base).expect("the directory of test servers can be made");
        remove_dead_runs(&base);
        let run = base.join(format!("{}-{:08x}", std::process::id(), rand::random::<u32>()));
        fs::create_dir(&run).expect("the directory of this run can be made");
        run
    });
    &DIRECTORY
}

/// `target/test-servers`, or a temporary directory where that path is too long for a Unix socket, or is closed to the
/// account that PostgreSQL runs under when we are root.
fn base_directory() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-servers");
    let open_to_all =
        target.ancestors().filter_map(|path| fs::metadata(path).ok()).all(|directory| directory.mode() & 0o001 != 0);
    let fits = target.as_os_str().len() < 50;
    if fits && (open_to_all || !is_root()) { target } else { std::env::temp_dir().join("walhouse-test-servers") }
}

/// Only root may mount a disk.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn remove_dead_runs(base: &Path) {
    for entry in fs::read_dir(base).expect("the directory of test servers can be read").flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            signal("KILL", &left_running(&entry.path()));
            left_mounted(&entry.path()).iter().for_each(|path| unmount(path));
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The daemons of a killed run, which no pipe ties to it: what has that run's directory among its arguments.
fn left_running(run: &Path) -> Vec<u32> {
    let run = format!("{}/", run.display());
    let processes = fs::read_dir("/proc").expect("/proc can be read").flatten();
    let running = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).contains(&run).then_some(pid)
    });
    running.collect()
}

/// What a killed run had mounted below its directory.
fn left_mounted(run: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(1).map(PathBuf::from));
    paths.filter(|path| path.starts_with(run)).collect()
}

/// The last lines of a log, for the message of a failed test.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}
