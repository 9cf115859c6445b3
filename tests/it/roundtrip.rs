//! Random tables over all types, with random rows at the edges of each type's range, copied and streamed: what
//! ClickHouse has must be what PostgreSQL prints.
//!
//! Runs for 20 seconds, or `WALHOUSE_ROUNDTRIP_SECONDS`; the seed is printed, and `WALHOUSE_SEED` repeats a run. A case
//! that fails is written into `fixtures/` as the SQL that made it, and whatever is there is replayed first.

mod values;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::support::{Daemon, TestDb, assert_equal, seeded_rng};
use values::{KINDS, Kind, PREPARE};

const MAX_COLUMNS: usize = 12;
const ROWS: i32 = 12;
/// Tables of one round, which share a daemon.
const TABLES: usize = 4;

/// One table with its history.
#[derive(Clone)]
struct Case {
    /// What is there before the copy.
    before: String,
    /// One transaction after the other, while it is replicated.
    stream: Vec<String>,
}

impl Case {
    /// A table of this name.
    fn random(name: &str, rng: &mut StdRng) -> Self {
        let columns: Vec<Kind> =
            (0..rng.random_range(1..=MAX_COLUMNS)).map(|_| *KINDS.choose(rng).expect("kinds")).collect();
        let keys: Vec<Kind> = KINDS.iter().filter(|kind| kind.key).copied().collect();
        let key = *keys.choose(rng).expect("kinds for keys");
        let strict: Vec<bool> = columns.iter().map(|_| rng.random_ratio(1, 4)).collect();
        let mut definition = format!("CREATE TABLE {name} (id int NOT NULL, k {} NOT NULL", key.source);
        for (i, (kind, strict)) in columns.iter().zip(&strict).enumerate() {
            definition += &format!(", c{i} {}{}", kind.source, if *strict { " NOT NULL" } else { "" });
        }
        definition += ", PRIMARY KEY (id, k));";
        if rng.random_ratio(1, 3) {
            definition += &format!("ALTER TABLE {name} REPLICA IDENTITY FULL;");
        }
        let value = |i: usize, rng: &mut StdRng| columns[i].value(strict[i], rng);
        let insert = |id: i32, rng: &mut StdRng| {
            let mut values = format!("{id}, {}", key.value(true, rng));
            (0..columns.len()).for_each(|i| values += &format!(", {}", value(i, rng)));
            format!("INSERT INTO {name} VALUES ({values});")
        };
        let before = (0..ROWS).map(|id| insert(id, rng)).collect::<Vec<_>>().join("\n");
        let stream = (ROWS..ROWS * 3).map(|id| match rng.random_range(0..6) {
            0 | 1 => insert(id, rng),
            2 => format!("DELETE FROM {name} WHERE id = {};", rng.random_range(0..id)),
            3 => format!("UPDATE {name} SET k = {} WHERE id = {};", key.value(true, rng), rng.random_range(0..id)),
            _ => {
                let i = rng.random_range(0..columns.len());
                format!("UPDATE {name} SET c{i} = {} WHERE id >= {};", value(i, rng), rng.random_range(0..id))
            }
        });
        Self { before: format!("{definition}\n{before}"), stream: stream.collect() }
    }

    /// As one text that a person can read too.
    fn text(&self) -> String {
        std::iter::once(&self.before).chain(&self.stream).map(|part| format!("{part}\n-- then\n")).collect()
    }

    fn from_text(text: &str) -> Self {
        let mut parts = text.split("\n-- then\n").filter(|part| !part.trim().is_empty()).map(str::to_owned);
        Self { before: parts.next().expect("a fixture begins with its table"), stream: parts.collect() }
    }
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/roundtrip/fixtures")
}

/// Copies and streams the tables `t0`, `t1` …, each of which is a case.
async fn round(cases: &[Case]) {
    let db = TestDb::new("roundtrip").await;
    db.pg.execute(PREPARE).await;
    for case in cases {
        db.pg.execute(&case.before).await;
    }
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    for index in 0..cases.len() {
        assert_equal(&db, &format!("t{index}")).await;
    }
    let longest = cases.iter().map(|case| case.stream.len()).max().unwrap_or(0);
    for step in 0..longest {
        for case in cases.iter().filter(|case| step < case.stream.len()) {
            db.pg.execute(&case.stream[step]).await;
        }
    }
    for index in 0..cases.len() {
        assert_equal(&db, &format!("t{index}")).await;
    }
    drop(daemon);
    db.cleanup().await;
}

/// Runs a case, and keeps it if it fails.
async fn run(cases: Vec<Case>, seed: u64) {
    let result = std::panic::AssertUnwindSafe(round(&cases)).catch_unwind().await;
    let Err(panic) = result else { return };
    for (index, case) in cases.iter().enumerate() {
        // Alone, each shows whether it is the one.
        let alone = Case::from_text(&case.text().replace(&format!(" t{index} "), " t0 "));
        if std::panic::AssertUnwindSafe(round(std::slice::from_ref(&alone))).catch_unwind().await.is_err() {
            let path = fixtures().join(format!("{seed:016x}_{index}.sql"));
            fs::create_dir_all(fixtures()).expect("a folder for fixtures");
            fs::write(&path, alone.text()).expect("a fixture can be written");
            println!("kept as {}", path.display());
        }
    }
    std::panic::resume_unwind(panic);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_before_arrives() {
    let mut files: Vec<_> =
        fs::read_dir(fixtures()).expect("the fixtures").filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    for file in files {
        println!("{}", file.display());
        round(&[Case::from_text(&fs::read_to_string(&file).expect("a fixture"))]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_tables_and_rows_arrive_as_they_are() {
    let seconds = std::env::var("WALHOUSE_ROUNDTRIP_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut rng = seeded_rng();
    let mut rounds = 0;
    while Instant::now() < deadline {
        let seed = rng.random();
        let mut rng = StdRng::seed_from_u64(seed);
        let cases = (0..TABLES).map(|index| Case::random(&format!("t{index}"), &mut rng)).collect();
        run(cases, seed).await;
        rounds += 1;
    }
    println!("{rounds} rounds of {TABLES} tables");
}
