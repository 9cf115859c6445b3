//! What the results of a run count for: the state of all that decides how it ends. A commit that changes nothing of it, a page of
//! the documentation for instance, leaves the results as good as they were.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};

/// Files, and directories with all that is in them.
const DECIDE: [&str; 8] = [
    "src",
    "Cargo.toml",
    "Cargo.lock",
    "migrations",
    "tests/chaos",
    "tests/it/support",
    "tests/services/server.py",
    "tests/services/failed_writes.c",
];

/// A hash over all that decides how a run ends, in short.
pub(crate) fn state() -> &'static str {
    static STATE: LazyLock<String> = LazyLock::new(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut hash = Sha256::new();
        for file in DECIDE.iter().flat_map(|name| files(&root.join(name))) {
            let name = file.strip_prefix(root).expect("it is below the root").display().to_string();
            let content = fs::read(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
            hash.update(format!("{name} {}\n", content.len()));
            hash.update(content);
        }
        // A program that was built in another way may end in another way.
        hash.update(std::env::var("WALHOUSE_PROGRAM").unwrap_or_default());
        hash.update(if cfg!(debug_assertions) { "debug" } else { "release" });
        hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    });
    &STATE
}

/// The commit that is checked out, with `-dirty` when the sources are not what was committed.
pub(crate) fn commit() -> &'static str {
    static COMMIT: LazyLock<String> = LazyLock::new(|| {
        let describe = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
        let output = Command::new("git").args(describe).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
        text.map_or_else(|| "unknown".to_owned(), |text| String::from_utf8_lossy(&text).trim().to_owned())
    });
    &COMMIT
}

/// Processors and memory of this machine, in words.
pub(crate) fn machine() -> &'static str {
    static MACHINE: LazyLock<String> = LazyLock::new(|| {
        let value = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let kilobytes = value("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0_u64);
        format!("{cores} cores ({}), {} GiB", value("/proc/cpuinfo", "model name"), kilobytes >> 20)
    });
    &MACHINE
}

/// The file itself, or what is below the directory, in order.
fn files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let mut entries: Vec<_> =
        fs::read_dir(path).expect("a directory can be read").flatten().map(|entry| entry.path()).collect();
    entries.sort_unstable();
    entries.iter().flat_map(|entry| files(entry)).collect()
}

#[test]
fn results_count_for_what_decides_them() {
    assert_eq!(state().len(), 12);
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos");
    assert!(files(&own).contains(&own.join("scenario/mod.rs")), "what is further below counts as well");
}
