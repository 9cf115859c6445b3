//! What stays inside of this process when something goes wrong: its memory, and what a panic would quote.
//!
//! Memory holds every secret of the configuration and the rows that are on their way. Linux writes it to a file, or hands
//! it to a collector, when a process aborts, and lets whoever runs as the same user read it (`/proc/PID/mem`, `environ`,
//! a debugger) at any time. [`memory`] refuses both (`PR_SET_DUMPABLE`, see `prctl(2)`): what is left to root, who may do
//! everything. RLIMIT_CORE alone would not: a collector behind a pipe in `core_pattern` is not bound by it.
//!
//! A panic is a mistake in walhouse, or in a library, and its message is made where it happens: slicing a string in the
//! middle of a letter quotes the string, `expect` on a parser's error quotes what was parsed. [`panics`] has the log tell
//! where it happened, and what only if that is a text of the source itself.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, Write},
    panic::{self, PanicHookInfo},
    thread,
};

/// Keeps this process's memory from core dumps and from other processes of the same user. To be called first.
pub fn memory() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        // The kernel knows no reason to refuse. If it does, nothing that walhouse promises about rows depends on it.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// Has panics told by the log, as one line like all others, instead of the standard library.
///
/// `RUST_BACKTRACE=1` adds from where it came, by names of functions and lines alone.
pub fn panics() {
    panic::set_hook(Box::new(|info| {
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let current = thread::current();
        let (thread, what) = (current.name().unwrap_or_default(), said(info));
        let backtrace = Backtrace::capture();
        let trace = match backtrace.status() {
            BacktraceStatus::Captured => format!("\n{backtrace}"),
            _ => String::new(),
        };
        let told = format!("panic at {location} in the thread {thread}: {what}{trace}");
        // Before there is a log, as while the configuration is read; where nobody reads it, nothing is lost but the line.
        if tracing::dispatcher::has_been_set() {
            tracing::error!("{told}");
        } else {
            let _ = writeln!(io::stderr(), "walhouse: {told}");
        }
    }));
}

/// What it says, if whoever wrote the source wrote every word of it.
fn said(info: &PanicHookInfo<'_>) -> &'static str {
    const WITHHELD: &str = "its message may quote a value, and is not told";
    info.payload().downcast_ref::<&'static str>().copied().unwrap_or(WITHHELD)
}

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// Set for the process that has a panic hook and a log of its own.
    const CHILD: &str = "WALHOUSE_TEST_PANICS";

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Kept {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// What the log has of a panic in this.
    fn told(panics: impl FnOnce() + panic::UnwindSafe) -> String {
        let kept = Kept::default();
        let log = tracing_subscriber::fmt().json().with_writer(kept.clone()).finish();
        tracing::subscriber::with_default(log, || panic::catch_unwind(panics).expect_err("a panic"));
        String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
    }

    /// In a process of its own, since the hook is that of the whole process.
    #[test]
    fn a_panic_is_a_line_of_the_log_without_what_it_quotes() {
        if std::env::var_os(CHILD).is_none() {
            let name = thread::current().name().unwrap().to_owned();
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", &name, "--nocapture"])
                .env(CHILD, "1")
                .env("RUST_BACKTRACE", "1")
                .output()
                .unwrap();
            let all = format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
            assert!(child.status.success() && !all.contains("canary"), "{all}");
            return;
        }
        super::panics();
        let value = "canary ä".to_owned();
        let quotes: [fn(&str); 3] = [
            |value| drop(value[..8].to_owned()),
            |value| assert_ne!(value.parse::<u8>().map_err(|_| value).expect("a number"), 0),
            |value| panic!("{value}"),
        ];
        for quote in quotes {
            let line = told(|| quote(&value));
            assert!(line.contains("privacy.rs:") && line.contains("is not told") && !line.contains("canary"), "{line}");
            assert_eq!(line.lines().count(), 1, "{line}");
        }
        let line = told(|| panic!("a text of the source"));
        assert!(line.contains("a text of the source"), "{line}");
    }
}
