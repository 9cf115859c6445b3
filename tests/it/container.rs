//! What docker/Dockerfile makes, without Docker: the program with the libraries that it needs and nothing else, not root, on a
//! root file system that is read-only, configured by a variable.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::security::owner_of_memory;
use crate::support::{TestDb, eventually, free_port, get, signal, walhouse, write_config};

const DOCKERFILE: &str = include_str!("../../docker/Dockerfile");
/// Of gcr.io/distroless/cc: the C library and libgcc.
const LIBRARIES: [&str; 6] =
    ["ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libc.so.6", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0"];

/// A root directory with the program in it.
struct Image {
    root: PathBuf,
}

impl Image {
    fn new(directory: &Path) -> Self {
        let root = directory.join("root");
        for folder in ["usr/local/bin", "proc", "var/lib/walhouse/objects"] {
            fs::create_dir_all(root.join(folder)).expect("a directory");
        }
        let program = Path::new(env!("CARGO_BIN_EXE_walhouse"));
        fs::copy(program, root.join("usr/local/bin/walhouse")).expect("the program can be copied");
        let listed = Command::new("ldd").arg(program).output().expect("ldd can be started");
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
            let path = Path::new(path);
            let name = path.file_name().and_then(|name| name.to_str()).expect("a library has a name");
            assert!(LIBRARIES.contains(&name), "the image has no {name}");
            let to = root.join(path.strip_prefix("/").expect("an absolute path"));
            fs::create_dir_all(to.parent().expect("a folder")).expect("a directory");
            fs::copy(path, to).expect("a library can be copied");
        }
        Self { root }
    }

    /// A command in it, with nothing in its environment but this.
    fn command(&self, arguments: &[String], variables: &[(&str, &str)]) -> Command {
        let user = instruction("USER ");
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$0\" \"$0\" && mount -t proc proc \"$0/proc\" && mount -o remount,ro,bind \"$0\" \
                      && exec chroot --userspec=\"$1\" \"$0\" \"${@:2}\"";
        command.args(["--mount", "--", "bash", "-c", script]).arg(&self.root).arg(user).args(arguments);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("WALHOUSE_CONFIG", "env:WALHOUSE_TOML");
        command.envs(variables.iter().copied()).stdin(Stdio::null());
        command
    }
}

/// What stands behind a word at the beginning of a line.
fn instruction(head: &str) -> &'static str {
    DOCKERFILE.lines().find_map(|line| line.strip_prefix(head)).unwrap_or_else(|| panic!("there is no {head}"))
}

/// The exec form of an instruction.
fn words(json: &str) -> Vec<String> {
    serde_json::from_str(json).expect("the exec form is JSON")
}

struct Container(Child);

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_runs_read_only_and_not_as_root() {
    let db = TestDb::new("container").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY); INSERT INTO item VALUES (1), (2)").await;
    let port = free_port();
    let config = write_config(&db, "", port, "walhouse.toml");
    let toml = fs::read_to_string(&config).expect("it was written");
    let image = Image::new(&db.directory);
    let variables = [("WALHOUSE_TOML", toml.as_str()), ("WALHOUSE__LOG__FORMAT", "json")];
    let run = [words(instruction("ENTRYPOINT ")), words(instruction("CMD "))].concat();
    let log = db.directory.join("container.log");
    let file = fs::File::create(&log).expect("a log");
    let child = image.command(&run, &variables).stdout(Stdio::null()).stderr(file).spawn();
    let mut container = Container(child.expect("unshare can be started"));
    let health = words(
        DOCKERFILE
            .split_once("HEALTHCHECK ")
            .and_then(|(_, rest)| rest.split_once(" CMD "))
            .map_or("[]", |(_, command)| command.lines().next().unwrap_or_default()),
    );
    let healthy = |more: &[&str]| {
        let words = health.iter().cloned().chain(more.iter().map(|word| (*word).to_owned())).collect::<Vec<_>>();
        image.command(&words, &variables).output().expect("unshare can be started")
    };
    eventually(Duration::from_secs(60), async || {
        let ready = healthy(&["--ready"]);
        if ready.status.success() {
            Ok(())
        } else {
            Err(format!("{ready:?}\n{}", fs::read_to_string(&log).unwrap_or_default()))
        }
    })
    .await;
    assert!(healthy(&[]).status.success());

    // `unshare`, the shell and `chroot` have each given their place to the next.
    let pid = container.0.id();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    assert!(status.contains("\nUid:\t10001\t10001\t10001\t10001\n"), "{status}");
    // Its secrets are in its environment, and closed to whoever else runs as this user; its own metrics are not.
    assert_eq!(owner_of_memory(pid), 0);
    let metrics = get(port, "/metrics").await.expect("an answer").body;
    for metric in ["process_resident_memory_bytes", "process_open_fds", "process_threads"] {
        let value = metrics.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse::<f64>().ok());
        assert!(value.is_some_and(|value| value > 0.0), "{metric}: {value:?}");
    }
    assert!(walhouse(&config, &["verify"]).await.code == Some(0));

    signal("TERM", &[pid]);
    let ended = tokio::task::block_in_place(|| container.0.wait()).expect("it can be waited for");
    let log = fs::read_to_string(&log).expect("a log");
    assert_eq!(ended.code(), Some(0), "{log}");
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
    let away = healthy(&[]);
    assert_eq!(away.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&away.stderr).contains("does not answer"), "{away:?}");
    db.cleanup().await;
}
