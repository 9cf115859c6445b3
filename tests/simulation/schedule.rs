//! One schedule: a source, servers with their troubles, processes that begin and end; and all of it from one seed.

use crate::{
    clickhouse::ClickHouse,
    dice::Dice,
    process::{self, Setup},
    sqs,
    world::{Shared, Trouble},
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use walhouse::{
    clickhouse::sink::Limits,
    config::{ByteSize, Config, QueueConfig},
};

/// When everybody answers, the slot has been told everything within this time of the last commit. An attempt that hangs is
/// given up after 75 s, and the pauses between attempts are shorter.
const QUIET_WITHIN: Duration = Duration::from_secs(600);
/// A process that was told to stop has ended within this time: 15 s to drain, and what it takes to hang up.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

/// What has become of a schedule.
pub(crate) struct Outcome {
    /// The promise that was broken.
    pub(crate) violation: Option<String>,
    /// What has happened, if it was recorded.
    pub(crate) history: Vec<String>,
    /// How many processes there were, and commits.
    pub(crate) processes: usize,
    pub(crate) commits: usize,
}

/// How a process ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// It is killed after this time, and after so many more turns of whatever may run.
    Kill(Duration, usize),
    /// It is told to stop.
    Stop(Duration),
    /// It is told to stop when all is quiet.
    Quiet,
}

/// Runs the schedule of a seed; the same one each time.
pub(crate) fn run(seed: u64, recorded: bool) -> Outcome {
    // What walhouse itself leaves to chance.
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without threads");
    let (world, processes) = runtime.block_on(schedule(Dice::new(seed), recorded));
    drop(runtime);
    let mut world = world.lock();
    let commits = world.wal.transactions.len();
    Outcome { violation: world.violation.take(), history: world.take_history(), processes, commits }
}

async fn schedule(mut dice: Dice, recorded: bool) -> (Shared, usize) {
    let events = dice.chance(85);
    let (config, limits, room) = configuration(&mut dice, events);
    let world = Shared::new(dice, events, recorded);
    let clickhouse = ClickHouse::new(&world);
    let setup = Setup { sqs: sqs::client(&world), world, clickhouse, config: Arc::new(config), limits, room };
    let ends = {
        let mut world = setup.world.lock();
        let percents = [0, 3, 10, 25, 50];
        let mut percent = || world.dice.one_of(&percents).copied().unwrap_or_default();
        world.trouble = Trouble { postgres: percent(), clickhouse: percent(), sqs: percent() };
        let trouble = world.trouble;
        world.note(|| format!("          {trouble:?}, {limits:?}, room {room}, events {events}"));
        let count = world.dice.below(6);
        (0..count).map(|_| end(&mut world.dice)).collect::<Vec<_>>()
    };
    let broken = setup.world.lock().broken.clone();
    let processes = ends.len() + 1;
    let lives = async {
        for end in ends {
            live(&setup, end).await;
        }
        {
            let mut world = setup.world.lock();
            world.trouble = Trouble::NONE;
            world.note(|| "          everybody answers from now on".to_owned());
        }
        live(&setup, End::Quiet).await;
        setup.world.lock().finish();
    };
    tokio::select! {
        biased;
        () = broken.cancelled() => {}
        () = lives => {}
    }
    (setup.world, processes)
}

fn end(dice: &mut Dice) -> End {
    let after = dice.pause() * 4;
    if dice.chance(25) { End::Stop(after) } else { End::Kill(after, dice.below(200)) }
}

/// What is configured: small limits, so that all of them are met.
fn configuration(dice: &mut Dice, events: bool) -> (Config, Limits, usize) {
    let url = "postgres://sim@localhost/sim?sslmode=disable";
    let toml = format!(
        "source = {{ url = \"{url}\", slot = \"sim\", publication = \"sim\" }}\nobjects = {{ url = \"none\" }}"
    );
    let mut config: Config = toml::from_str(&toml).expect("a configuration");
    config.source.replay_window = ByteSize(0);
    config.queue = events.then(|| {
        let budget = ByteSize([1, 2000, 1 << 20][dice.below(3)]);
        QueueConfig { region: Some("eu-central-1".to_owned()), fifo: dice.chance(20), budget, ..QueueConfig::default() }
    });
    let limits = Limits {
        max_delay: Duration::from_millis([5, 50, 300, 1000, 4000][dice.below(5)]),
        max_rows: [1, 3, 10, 1000][dice.below(4)],
        max_bytes: [200, 2000, 1 << 20][dice.below(3)],
        budget: [500, 5000, 1 << 20][dice.below(3)],
    };
    (config, limits, [1 << 10, 4 << 10, 1 << 20][dice.below(3)])
}

/// One process, from its start to its end.
async fn live(setup: &Setup, end: End) {
    setup.world.lock().note(|| format!("walhouse  starts, {end:?}"));
    let stop = CancellationToken::new();
    let life = process::run(setup, &stop);
    match end {
        End::Kill(after, turns) => tokio::select! {
            biased;
            () = kill(after, turns) => {}
            () = life => {}
        },
        End::Stop(after) => tokio::select! {
            biased;
            () = told(setup, &stop, after) => {}
            () = life => {}
        },
        End::Quiet => tokio::select! {
            biased;
            () = quiet(setup, &stop) => {}
            () = life => {}
        },
    }
    setup.world.lock().note(|| "walhouse  is gone".to_owned());
}

async fn kill(after: Duration, turns: usize) {
    tokio::time::sleep(after).await;
    // Between any two steps of whatever happens at this moment.
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
}

/// Tells it to stop, and waits for no longer than that may take.
async fn told(setup: &Setup, stop: &CancellationToken, after: Duration) {
    tokio::time::sleep(after).await;
    stop.cancel();
    setup.world.lock().note(|| "walhouse  is told to stop".to_owned());
    tokio::time::sleep(STOPPED_WITHIN).await;
    setup.world.lock().fail(format!("it was told to stop, and has not within {STOPPED_WITHIN:?}"));
}

/// Tells it to stop when all is quiet, which has to be.
async fn quiet(setup: &Setup, stop: &CancellationToken) {
    let last = setup.world.lock().wal.transactions.last().map_or(Duration::ZERO, |one| one.at);
    let limit = last.max(setup.world.lock().now()) + QUIET_WITHIN;
    while !setup.world.lock().is_quiet() {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut world = setup.world.lock();
        if world.now() > limit {
            let (confirmed, tail) = (world.confirmed, world.wal.tail);
            return world.fail(format!("the slot stays at {confirmed:x}, and the WAL ends at {tail:x}"));
        }
    }
    told(setup, stop, Duration::ZERO).await;
}
