//! Sizes at the edge of what PostgreSQL has: rows of 1,600 columns, values of 100 MB, 500 partitions, hundreds of
//! tables, a transaction that stays open. Each test prints what it took; `WALHOUSE_SCALE` multiplies the amounts, and 4
//! makes it 2,000 tables.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::{
    ClickHouse, Daemon, Postgres, PostgresOptions, TestDb, assert_settled_equal, eventually, settled, stopped, walhouse,
};

const MIB: u64 = 1 << 20;

/// 1, or what the environment asks for.
fn scale() -> usize {
    std::env::var("WALHOUSE_SCALE").map_or(1, |text| text.parse().expect("WALHOUSE_SCALE is a whole number"))
}

/// The times and the memory of one daemon, step by step.
struct Meter<'a> {
    daemon: &'a Daemon,
    since: Instant,
}

impl<'a> Meter<'a> {
    fn new(daemon: &'a Daemon) -> Self {
        Self { daemon, since: Instant::now() }
    }

    /// Prints and returns the most that was resident since the last step, in MiB.
    fn step(&mut self, what: &str) -> u64 {
        let path = format!("/proc/{}", self.daemon.pid());
        let status = fs::read_to_string(format!("{path}/status")).expect("walhouse is running");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a process has a VmHWM");
        let peak = line.trim().trim_end_matches(" kB").parse::<u64>().expect("VmHWM is in kB") / 1024;
        println!("{what}: {:.1} s, peak {peak} MiB", self.since.elapsed().as_secs_f64());
        // Where the kernel does not let us begin anew, the peak is that of all steps so far.
        let _ = fs::write(format!("{path}/clear_refs"), "5");
        self.since = Instant::now();
        peak
    }
}

/// `wait_ready` wants the daemon for itself, and a meter looks at it meanwhile.
async fn ready(daemon: &Daemon) {
    eventually(Duration::from_secs(60), async || {
        let answer = daemon.get("/readyz").await?;
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    })
    .await;
}

async fn verified(daemon: &Daemon) {
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
}

/// How many sessions walhouse has on this database.
async fn sessions(db: &TestDb) -> u64 {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND application_name LIKE 'walhouse%'",
        db.name
    );
    db.pg.value(&sql).await.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_1600_columns_are_copied_streamed_and_verified() {
    const TYPES: [&str; 5] = ["int", "smallint", "bool", "text", "numeric(9, 2)"];
    let db = TestDb::new("scale_wide").await;
    let columns: Vec<_> = (1..1600).map(|at| format!("c{at} {}", TYPES[at % TYPES.len()])).collect();
    // Most are NULL: a row must fit into one page of 8 kB.
    let value = |at: usize| match (at % 7, TYPES[at % TYPES.len()]) {
        (0..4, "int") => format!("i * {at}"),
        (0..4, "smallint") => format!("(i + {at}) % 30000"),
        (0..4, "bool") => format!("(i + {at}) % 2 = 0"),
        (4, "text") => "'v' || i % 10".to_owned(),
        (5, "numeric(9, 2)") => "(i / 100.0)::numeric(9, 2)".to_owned(),
        _ => "NULL".to_owned(),
    };
    let values: Vec<_> = (1..1600).map(value).collect();
    let insert = |from: usize, to: usize| {
        format!("INSERT INTO wide SELECT i, {} FROM generate_series({from}, {to}) i", values.join(", "))
    };
    let rows = 300 * scale();
    db.pg
        .execute(&format!("CREATE TABLE wide (id int PRIMARY KEY, {}); {}", columns.join(", "), insert(1, rows)))
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    let mut meter = Meter::new(&daemon);
    ready(&daemon).await;
    meter.step("copy");
    let create = db.ch.query("SHOW CREATE TABLE wide").await;
    let settings = create.split("SETTINGS").nth(1).unwrap_or_default();
    assert!(settings.contains("index_granularity_bytes = 6553600"), "{settings}");
    db.pg.execute(&insert(rows + 1, 2 * rows)).await;
    db.pg
        .execute(
            "UPDATE wide SET c5 = 1, c1599 = NULL, c3 = 'x' WHERE id % 2 = 0; UPDATE wide SET id = -id WHERE id % 5 = 0;
            DELETE FROM wide WHERE id % 7 = 0",
        )
        .await;
    settled(&db).await;
    meter.step("stream");
    assert_settled_equal(&db, &["wide"]).await;
    meter.step("comparison");
    verified(&daemon).await;
    let peak = meter.step("verify");
    assert!(peak < 200, "{peak} MiB");
    db.ch
        .query(
            "INSERT INTO wide SELECT * REPLACE (_version + 1 AS _version, c10 + 1 AS c10) FROM wide FINAL WHERE id = 1",
        )
        .await;
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(1), "{verify:?}");
    daemon.kill9();
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_100_mb_are_copied_streamed_and_left_alone() {
    let db = TestDb::new("scale_huge").await;
    let bytes = 100 * 1_000_000 * scale();
    db.pg
        .execute(&format!(
            "CREATE TABLE text_item (id int PRIMARY KEY, n int, v text); ALTER TABLE text_item ALTER v SET STORAGE EXTERNAL;
            CREATE TABLE raw_item (id int PRIMARY KEY, n int, v bytea); ALTER TABLE raw_item ALTER v SET STORAGE EXTERNAL;
            INSERT INTO text_item SELECT 1, 0, repeat('0123456789', {bytes} / 10);"
        ))
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let mut meter = Meter::new(&daemon);
    let same = async |table: &str| {
        settled(&db).await;
        let theirs =
            db.ch.query(&format!("SELECT id, n, length(v), lower(hex(MD5(v))) FROM {table}_current ORDER BY id")).await;
        let ours = db.pg.query(&format!("SELECT id, n, octet_length(v), md5(v) FROM {table} ORDER BY id")).await;
        let ours: Vec<_> =
            ours.into_iter().map(|row| row.into_iter().flatten().collect::<Vec<_>>().join("\t")).collect();
        assert_eq!(theirs, ours.join("\n"), "{table}; stopped: {:?}", stopped(&db).await);
    };
    same("text_item").await;
    let peaks = [
        meter.step("copy of a text"),
        {
            db.pg.execute(&format!("INSERT INTO text_item SELECT 2, 0, repeat('abcdefghij', {bytes} / 10)")).await;
            same("text_item").await;
            meter.step("stream of a text")
        },
        {
            db.pg.execute("UPDATE text_item SET n = 1 WHERE id = 2").await;
            same("text_item").await;
            meter.step("update that leaves a text alone")
        },
        {
            db.pg
                .execute(&format!("INSERT INTO raw_item SELECT 1, 0, decode(repeat('00ff', {bytes} / 2), 'hex')"))
                .await;
            same("raw_item").await;
            meter.step("stream of a bytea")
        },
        {
            db.pg.execute("UPDATE raw_item SET id = 3").await;
            same("raw_item").await;
            meter.step("key change that leaves a bytea alone")
        },
    ];
    // Each as it came and as a column; what is streamed of a bytea is twice as long in hexadecimal digits.
    let value = bytes as u64 / MIB;
    for (peak, times) in peaks.into_iter().zip([2, 2, 2, 3, 2]) {
        assert!(
            peak < value * times + 60,
            "{peak} MiB for a value of {value} MiB, of which {times} were expected: {peaks:?}"
        );
    }
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_500_partitions_is_one_table() {
    let db = TestDb::new("scale_parts").await;
    let partitions = 500 * scale();
    db.pg
        .execute(&format!(
            "CREATE TABLE event (day int, id int, v text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
            DO $$ BEGIN FOR i IN 0..{partitions} - 1 LOOP
                EXECUTE format('CREATE TABLE event_%s PARTITION OF event FOR VALUES FROM (%s) TO (%s)', i, i, i + 1);
            END LOOP; END $$;
            INSERT INTO event SELECT i % {partitions}, i, 'copied' FROM generate_series(1, {partitions} * 20) i"
        ))
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    let begun = Instant::now();
    daemon.wait_ready().await;
    println!("ready after {:.1} s", begun.elapsed().as_secs_f64());
    let mut meter = Meter::new(&daemon);
    assert_settled_equal(&db, &["event"]).await;
    meter.step("comparison");
    db.pg
        .execute(&format!(
            "UPDATE event SET v = 'moved', day = (day + 1) % {partitions} WHERE id % 3 = 0; DELETE FROM event WHERE id % 7 = 0;
            INSERT INTO event SELECT i % {partitions}, -i, 'new' FROM generate_series(1, {partitions} * 2) i"
        ))
        .await;
    assert_settled_equal(&db, &["event"]).await;
    meter.step("stream");
    verified(&daemon).await;
    meter.step("verify");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_tables_are_replicated_and_looked_after() {
    let tables = 500 * scale();
    // The number of locks that one transaction may take is bounded; creating so many tables takes more than usual.
    let settings = vec![("max_locks_per_transaction", "1024".to_owned())];
    let postgres = Postgres::private(PostgresOptions { settings, ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), "scale_tables").await;
    db.pg
        .execute(&format!(
            "DO $$ BEGIN FOR i IN 1..{tables} LOOP
                EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text); INSERT INTO t%s VALUES (1, ''copied'')', i, i);
            END LOOP; END $$"
        ))
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    let begun = Instant::now();
    let mut most = 0;
    eventually(Duration::from_secs(180 * scale() as u64), async || {
        most = most.max(sessions(&db).await);
        let answer = daemon.get("/readyz").await?;
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    })
    .await;
    println!(
        "{tables} tables adopted and copied after {:.1} s, over {most} sessions at most",
        begun.elapsed().as_secs_f64()
    );
    assert!(most <= 12, "{most} sessions");
    let mut meter = Meter::new(&daemon);
    meter.step("adoption");
    db.pg
        .execute(&format!(
            "DO $$ BEGIN FOR i IN 1..{tables} LOOP EXECUTE format('INSERT INTO t%s VALUES (2, ''streamed'')', i); END LOOP; END $$"
        ))
        .await;
    settled(&db).await;
    meter.step("a row for each table");
    let count = format!(
        "SELECT count(), sum(total_rows) FROM system.tables WHERE database = '{}' AND name LIKE 't%' AND engine LIKE 'Replacing%'",
        db.name
    );
    assert_eq!(db.ch.query(&count).await, format!("{tables}\t{}", 2 * tables));
    // What looking at the catalog every few seconds costs while nothing happens.
    let cpu = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is running");
        let fields: Vec<u64> =
            stat.rsplit_once(") ").expect("a name").1.split(' ').filter_map(|field| field.parse().ok()).collect();
        // utime and stime, in hundredths of a second; the state before them is no number.
        fields[10] + fields[11]
    };
    let control =
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'walhouse' AND backend_type = 'client backend'";
    let control: u32 = db.pg.value(control).await.parse().expect("a pid");
    let before = (cpu(daemon.pid()), cpu(control));
    tokio::time::sleep(Duration::from_secs(9)).await;
    let after = (cpu(daemon.pid()), cpu(control));
    let (own, server) = (after.0 - before.0, after.1 - before.1);
    println!("idle for 9 s: walhouse {} ms, its session in PostgreSQL {} ms of CPU", own * 10, server * 10);
    let restart = Instant::now();
    daemon.sigterm(Duration::from_secs(20)).await;
    println!("stopped after {:.1} s", restart.elapsed().as_secs_f64());
    let restart = Instant::now();
    daemon.start();
    daemon.wait_ready().await;
    println!("ready again after {:.1} s", restart.elapsed().as_secs_f64());
    db.pg.execute("CREATE TABLE t0 (id int PRIMARY KEY, v text); INSERT INTO t0 VALUES (1, 'late')").await;
    let late = Instant::now();
    eventually(Duration::from_secs(20), async || db.ch.try_query("SELECT count() FROM t0").await).await;
    println!("a late table after {:.1} s", late.elapsed().as_secs_f64());
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_stays_open_holds_nothing_else_up() {
    let db = TestDb::new("scale_open").await;
    let rows = 400_000 * scale();
    db.pg
        .execute("CREATE TABLE long (id int PRIMARY KEY, v text); CREATE TABLE short (id serial PRIMARY KEY, v text)")
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let open = db.pg.connect().await.expect("a session");
    open.batch_execute("BEGIN; INSERT INTO long SELECT i, 'open' FROM generate_series(1, 1000) i")
        .await
        .expect("a row");
    for _ in 0..5 {
        db.pg.execute("INSERT INTO short (v) SELECT 'meanwhile' FROM generate_series(1, 1000)").await;
        // The acknowledged position goes on, though the WAL is kept from the open transaction's beginning.
        assert_settled_equal(&db, &["short"]).await;
    }
    open.batch_execute(&format!(
        "INSERT INTO long SELECT i, 'row ' || i FROM generate_series(1001, {rows}) i; SAVEPOINT s; DELETE FROM long; ROLLBACK TO s;
         UPDATE long SET v = 'updated' WHERE id % 4 = 0"
    ))
    .await
    .expect("rows");
    // The daemon that sees its end is another one than the one that saw its beginning.
    daemon.sigterm(Duration::from_secs(20)).await;
    daemon.start();
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO short (v) VALUES ('after the restart')").await;
    assert_settled_equal(&db, &["short"]).await;
    assert_eq!(db.ch.query("SELECT count() FROM long").await, "0", "what is not committed has arrived");
    let mut meter = Meter::new(&daemon);
    open.batch_execute("COMMIT").await.expect("a commit");
    settled(&db).await;
    let peak = meter.step(&format!("a transaction of {rows} rows"));
    assert!(peak < 160, "{peak} MiB");
    assert_settled_equal(&db, &["long", "short"]).await;
    drop(daemon);
    db.cleanup().await;
}
