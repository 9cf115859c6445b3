//! The guard that does not depend on how fast or how busy the machine is: instructions per row on the
//! way from the stream's bytes over decoding to the block that is sent, counted by callgrind.
//!
//! `make bench-guard` holds them against `thresholds.json` and fails where one is more than
//! 3 % above. A change that is meant to cost more writes the new figures there, in the same commit;
//! so does one that makes them lower, or the gain would not be kept.
//!
//! The program starts itself under valgrind, with two numbers of rows, and takes the difference, so
//! what a start costs does not count. Another compiler or another C library may give other figures.

mod stream;

use std::{collections::BTreeMap, env, fs, hint::black_box, path::Path, process::Command};
use stream::{Kind, Shape, groups};

/// Above the threshold by more than this part of it is a failure.
const TOLERANCE: f64 = 0.03;
/// Fewer rows than in a transaction, and enough of them for the buffers' growth to even out.
const FEW: u64 = 1_000;
const MANY: u64 = 6_000;
/// As the reader of the stream gets them: many rows at once.
const GULP: usize = 256 * 1024;

struct Case {
    name: &'static str,
    shape: fn() -> Shape,
    kind: Kind,
}

const CASES: &[Case] = &[
    Case { name: "narrow_insert", shape: Shape::narrow, kind: Kind::Insert },
    Case { name: "narrow_update", shape: Shape::narrow, kind: Kind::Update },
    Case { name: "narrow_delete", shape: Shape::narrow, kind: Kind::Delete },
    Case { name: "wide_insert", shape: Shape::wide, kind: Kind::Insert },
];

#[derive(serde::Deserialize)]
struct Thresholds {
    rustc: String,
    instructions_per_row: BTreeMap<String, f64>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "count", name, rows, what] => {
            let case = CASES.iter().find(|case| case.name == *name).ok_or(anyhow::anyhow!("no case {name}"))?;
            work(case, rows.parse()?, *what == "all");
            Ok(())
        }
        _ => guard(),
    }
}

/// The hot path; without `all`, only what it takes to make the stream, which is not counted.
fn work(case: &Case, rows: u64, all: bool) {
    let shape = (case.shape)();
    let stream = black_box(shape.stream(rows, case.kind));
    if all {
        let target = shape.target();
        let mut batch = target.batch();
        groups(stream, GULP, |group| target.fill(&mut batch, &group));
        assert_eq!(batch.rows() as u64, rows);
        black_box(batch.block.write_native());
    }
}

fn guard() -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/thresholds.json");
    let thresholds: Thresholds = serde_json::from_str(&fs::read_to_string(&path)?)?;
    let rustc = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into())).arg("--version").output()?;
    let rustc = String::from_utf8(rustc.stdout)?;
    if rustc.trim() != thresholds.rustc {
        println!("note: the thresholds are those of {}, and this is {}", thresholds.rustc, rustc.trim());
    }
    let mut failed = false;
    println!("{:16} {:>14} {:>14} {:>8}", "instructions/row", "threshold", "now", "");
    for case in CASES {
        let threshold = thresholds.instructions_per_row.get(case.name).copied();
        let now = per_row(case)?;
        let change = threshold.map_or(f64::INFINITY, |threshold| now / threshold - 1.0);
        let verdict = match threshold {
            None => "FAILED: it has no threshold",
            Some(_) if change > TOLERANCE => "FAILED",
            Some(_) if change < -TOLERANCE => "better: lower the threshold",
            Some(_) => "",
        };
        failed |= change > TOLERANCE;
        println!(
            "{:16} {:>14.1} {now:>14.1} {:>+7.1}% {verdict}",
            case.name,
            threshold.unwrap_or_default(),
            change * 100.0
        );
    }
    if failed {
        eprintln!("the hot path takes more instructions than {} allows", path.display());
        std::process::exit(1);
    }
    Ok(())
}

fn per_row(case: &Case) -> anyhow::Result<f64> {
    let hot = |rows| Ok::<_, anyhow::Error>(count(case, rows, "all")? - count(case, rows, "stream")?);
    Ok((hot(MANY)? - hot(FEW)?) / (MANY - FEW) as f64)
}

/// The instructions of this very program, doing one thing.
fn count(case: &Case, rows: u64, what: &str) -> anyhow::Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["count", case.name, &rows.to_string(), what])
        .output()
        .map_err(|error| anyhow::anyhow!("valgrind can not be run ({error}): install the package valgrind"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "valgrind: {text}");
    let counted = text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    counted.ok_or_else(|| anyhow::anyhow!("valgrind has not said how many instructions it counted: {text}"))
}
