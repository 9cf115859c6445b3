//! The `walhouse` program: arguments, runtime, signals, exit code. [`exit`] says what a supervisor
//! may conclude from that.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::Parser;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use walhouse::{
    allocator,
    cli::{Cli, Command, ConfigArgs, DlqArgs, ProvisionArgs, StatusArgs, VerifyArgs, exit},
    commands::{
        check, dlq, epoch, health, pause, provision, replay,
        request::{self, Answer},
        resync, status as standing, verify,
    },
    config::{self, Config},
    http, pipeline, privacy, probe,
    status::Status,
    telemetry, trace, workers,
};

/// Supervisors lose patience after 30 s at the most, and 20 s are promised.
const DRAIN: Duration = Duration::from_secs(19);
/// How often the process is measured, and histograms are condensed, in case that nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why the process ends, and with which code.
struct Failure(u8, String);

impl Failure {
    fn new(code: u8, error: impl Display) -> Self {
        Self(code, error.to_string())
    }
}

fn main() -> ExitCode {
    privacy::memory();
    privacy::panics();
    allocator::give_large_buffers_back();
    let cli = Cli::parse();
    match start(&cli) {
        Ok(code) => code.into(),
        Err(Failure(code, message)) => {
            if cli.command_or_run().json() {
                // Whoever reads JSON is told in JSON; where nobody reads any more, the code is left.
                let _ = print(serde_json::json!({ "error": message, "exit_code": code }).to_string());
            }
            say(&format!("walhouse: {message}"));
            code.into()
        }
    }
}

fn start(cli: &Cli) -> Result<u8, Failure> {
    let config = config::load(&cli.config).map_err(|error| Failure::new(exit::USAGE, error))?;
    telemetry::logging(&config.log);
    if matches!(cli.command_or_run(), Command::Run) {
        trace::install(&config.tracing).map_err(|error| Failure::new(exit::USAGE, error))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure(exit::FOUND, format!("no threads to run on: {error}")))?;
    let outcome = runtime.block_on(async {
        match cli.command_or_run() {
            Command::Run => run(config).await.inspect_err(|Failure(_, message)| tracing::error!("{message}")),
            Command::Check(args) => {
                let report = check::run(&config).await;
                print(if args.json { pretty(&report.json()) } else { report.to_string() })?;
                Ok(report.exit_code())
            }
            Command::Status(args) => stands(&config, &args).await,
            Command::Pause(args) => told(args.json, pause::pause(&config, &args, &say).await),
            Command::Resume(args) => told(args.json, pause::resume(&config, &args, &say).await),
            Command::Replay(args) => told(args.json, replay::run(&config, &args, &say).await),
            Command::Verify(args) => compare(&config, &args).await,
            Command::Resync(args) => told(args.json, resync::run(&config, &args, &say).await),
            Command::Provision(args) if args.new_epoch => new_epoch(&config, &args).await,
            Command::Provision(args) => {
                let report = provision::run(&config, args.dry_run).await;
                print(if args.json { pretty(&report.json()) } else { report.to_string() })?;
                Ok(report.exit_code())
            }
            Command::Dlq(args) => dead_letters(&config, &args).await,
            Command::Health(args) => {
                let answer =
                    health::run(&config, args.ready).await.map_err(|error| Failure::new(exit::FOUND, error))?;
                print(if args.json { pretty(&answer.json()) } else { answer.text })?;
                Ok(if answer.fine { exit::FINE } else { exit::FOUND })
            }
            Command::Config(args) => show(&config, &args),
        }
    });
    // A name that is still being resolved must not hold the process.
    runtime.shutdown_background();
    trace::finish();
    outcome
}

/// `walhouse run`: the pipeline, and what surrounds it.
async fn run(config: Config) -> Result<u8, Failure> {
    let listener = http::bind(config.http.listen).await.map_err(|error| Failure::new(exit::USAGE, error))?;
    let metrics = telemetry::metrics(&config).map_err(|error| Failure::new(exit::FOUND, error))?;
    let stop = CancellationToken::new();
    stop_on_signals(&stop, "what is not durable is read again from the checkpoint at the next start")?;
    let status = Arc::<Status>::default();
    let config = Arc::new(config);
    let api = http::api::Api::new(Arc::clone(&config), stop.clone());
    tokio::spawn(http::serve(listener, metrics.clone(), Arc::clone(&status), api));
    tokio::spawn(async move {
        loop {
            sleep(UPKEEP).await;
            metrics.run_upkeep();
            telemetry::measure_process();
        }
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), http = %config.http.listen, "walhouse starts");
    tokio::spawn(stop.clone().run_until_cancelled_owned(probe::run(Arc::clone(&config))));
    // A task of its own, so that a panic in it is an exit code like the others.
    let mut pipeline = tokio::spawn(pipeline::run(Arc::clone(&config), status, stop.clone()));
    // Workers finish what they have in hand, also when the pipeline can not go on.
    let handled = stop.child_token();
    let workers = tokio::spawn(workers::or_stop(workers::run(config, handled.clone()), stop.clone()));
    let late = async {
        stop.cancelled().await;
        sleep(DRAIN).await;
    };
    let ended = async {
        let ended = (&mut pipeline).await;
        handled.cancel();
        match workers.await.flatten() {
            // Of two ends, what halted the pipeline says more.
            Err(panic) if matches!(ended, Ok(Ok(()))) => Err(panic),
            _ => ended,
        }
    };
    tokio::select! {
        ended = ended => match ended {
            Ok(Ok(())) => {
                tracing::info!("walhouse has stopped");
                Ok(exit::FINE)
            }
            Ok(Err(halt)) => Err(Failure::new(exit::HALTED, halt)),
            Err(_) => Err(Failure(exit::FOUND, "a part of walhouse has panicked, which is a mistake in walhouse; the next start goes on from the checkpoint".to_owned())),
        },
        () = late => Err(Failure(
            exit::FOUND,
            format!("not drained within {} s; what is not durable is read again from the checkpoint at the next start", DRAIN.as_secs()),
        )),
    }
}

/// The first signal drains, the second ends at once; `then` says what becomes of what was in hand.
fn stop_on_signals(stop: &CancellationToken, then: &'static str) -> Result<(), Failure> {
    let (mut terminate, mut interrupt) = signals()?;
    let stop = stop.clone();
    tokio::spawn(async move {
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::info!("{name}: stopping; a second signal ends at once");
        stop.cancel();
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::warn!("{name} again: {then}");
        std::process::exit(exit::FOUND.into());
    });
    Ok(())
}

fn signals() -> Result<(Signal, Signal), Failure> {
    let listen =
        |kind| signal(kind).map_err(|error| Failure(exit::FOUND, format!("signals can not be received: {error}")));
    Ok((listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?))
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

async fn compare(config: &Config, args: &VerifyArgs) -> Result<u8, Failure> {
    let report = verify::run(config, args, &say).await;
    let report = report.map_err(|error| Failure::new(error.exit_code(), error))?;
    print(if args.json { pretty(&report.json()) } else { report.to_string() })?;
    Ok(report.exit_code())
}

/// The end of a command that has told people on the way how it goes.
fn told(json: bool, outcome: Result<Answer, request::Error>) -> Result<u8, Failure> {
    let answer = outcome.map_err(|error| Failure::new(error.exit_code(), error))?;
    if json {
        print(pretty(&answer.json))?;
    }
    Ok(answer.exit_code)
}

/// Shows where it stands, once or until Ctrl-C.
async fn stands(config: &Config, args: &StatusArgs) -> Result<u8, Failure> {
    const AGAIN: Duration = Duration::from_secs(2);
    if !args.watch {
        let report = standing::look(config).await;
        print(if args.json { pretty(&report.json()) } else { report.to_string() })?;
        return Ok(report.exit_code());
    }
    // From the beginning on: a look at servers that are away takes long, and is cut short too.
    let (mut terminate, mut interrupt) = signals()?;
    let mut code = exit::FOUND;
    loop {
        let report = tokio::select! {
            report = standing::look(config) => report,
            _ = next(&mut terminate, &mut interrupt) => return Ok(code),
        };
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        let clear = if io::stdout().is_terminal() { "\x1b[2J\x1b[H" } else { "" };
        let text = match args.json {
            true => report.json().to_string(),
            false => {
                let report = shown(&report.to_string());
                format!("{clear}{now}, again every {} s until Ctrl-C\n{report}", AGAIN.as_secs())
            }
        };
        code = report.exit_code();
        if !written(&text)? {
            return Ok(code);
        }
        tokio::select! {
            () = sleep(AGAIN) => {}
            _ = next(&mut terminate, &mut interrupt) => return Ok(code),
        }
    }
}

async fn new_epoch(config: &Config, args: &ProvisionArgs) -> Result<u8, Failure> {
    let begun = epoch::begin(config, !args.yes).await.map_err(|error| Failure::new(error.exit_code(), error))?;
    print(if args.json { pretty(&serde_json::to_value(&begun).unwrap_or_default()) } else { begun.to_string() })?;
    if args.yes || args.dry_run {
        return Ok(exit::FINE);
    }
    say("walhouse: nothing was done: say --yes to do this, or --dry-run to see it alone");
    Ok(exit::USAGE)
}

async fn dead_letters(config: &Config, args: &DlqArgs) -> Result<u8, Failure> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop, "letters that were in hand come back within two minutes")?;
    let answer = dlq::run(config, args, &stop, &say).await;
    let answer = answer.map_err(|error| Failure::new(error.exit_code(), error))?;
    print(if args.json { pretty(&answer.json) } else { answer.text })?;
    Ok(answer.exit_code)
}

fn show(config: &Config, args: &ConfigArgs) -> Result<u8, Failure> {
    let failed = |error: &dyn Display| Failure(exit::FOUND, format!("the configuration can not be shown: {error}"));
    let text = if args.json {
        serde_json::to_string_pretty(config).map_err(|error| failed(&error))?
    } else {
        config.redacted_toml().map_err(|error| failed(&error))?
    };
    print(text)?;
    Ok(exit::FINE)
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}")
}

/// To standard output. A reader that has seen enough (`| head`) is no error.
fn print(text: String) -> Result<(), Failure> {
    written(&shown(&text)).map(drop)
}

/// As a terminal may have it: names come from servers, and whoever chose one may have put what terminals obey into it.
fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => shown.push(character),
            _ if character.is_control() => shown.extend(character.escape_default()),
            _ => shown.push(character),
        }
    }
    shown
}

/// Whether somebody still reads it.
fn written(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure(exit::FOUND, format!("standard output can not be written: {error}"))),
    }
}

/// To standard error, where there may be nobody.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{}", shown(line));
}
