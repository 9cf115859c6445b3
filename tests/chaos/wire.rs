//! A line between walhouse and a server, which can be bad in every way that a network is: cut after a byte, reset, half open,
//! late, slow, deaf in one direction; or it loses the answer to a request, or the request itself.
//!
//! What is asked of it holds from then on, for connections that are there and for new ones, until `mend`.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a connection is, or what its request is, stands within so many bytes.
const LOOKED_AT: usize = 64 * 1024;
/// Pieces that may be on their way.
const ON_THE_WAY: usize = 256;

/// How what is said on a connection is looked at.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Speech {
    /// A connection is known for ever by what was said at its beginning.
    Postgres,
    /// Each request stands for itself.
    Http,
}

/// Forwards to one server, byte for byte, in the weather that is asked for.
pub(crate) struct Wire {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    speech: Speech,
    /// Where new connections lead to.
    server: AtomicU16,
    weather: Mutex<Weather>,
    /// Cancelled to reset every connection that there is.
    lines: Mutex<CancellationToken>,
}

#[derive(Clone, Default)]
struct Weather {
    /// New connections are reset.
    refuses: bool,
    vanishing: Option<Vanishing>,
    cut: Option<Cut>,
    /// The text of requests whose answers are lost, and how many are answered before.
    loses: Option<(&'static str, u32)>,
    /// The text of requests that vanish, with all that comes after them.
    swallows: Option<&'static str>,
    /// The text of requests that are on their way for as long as this holds.
    holds: Option<&'static str>,
    /// Milliseconds that each piece is late, and the share of pieces that are late by a retransmission besides.
    delay: Range<u64>,
    loss: f64,
    /// Bytes a second in each direction of each connection; 0 is as fast as they come.
    rate: u64,
    /// How many faults this did so far.
    struck: u32,
}

#[derive(Clone, Copy)]
struct Vanishing {
    way: Way,
    /// Only of connections on which this was said.
    only: Option<&'static str>,
}

#[derive(Clone, Copy)]
struct Cut {
    /// Of the connection on which this was said.
    only: &'static str,
    /// So many bytes of the server's still pass.
    bytes: usize,
}

/// Which bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Way {
    /// To the server.
    Up,
    /// To walhouse.
    Down,
    Both,
}

impl Wire {
    pub(crate) async fn to(server: u16, speech: Speech) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let (server, lines) = (AtomicU16::new(server), Mutex::new(CancellationToken::new()));
        let shared = Arc::new(Shared { speech, server, weather: Mutex::default(), lines });
        let lines = Arc::downgrade(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Some(shared) = lines.upgrade() else { return };
                tokio::spawn(connect(client, shared));
            }
        });
        Self { port, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Every connection that there is gets a RST.
    pub(crate) fn reset(&self) {
        std::mem::take(&mut *lock(&self.shared.lines)).cancel();
    }

    /// Another server is at its end from now on; every connection to the one before is reset.
    pub(crate) fn lead_to(&self, server: u16) {
        self.shared.server.store(server, Ordering::Relaxed);
        self.reset();
    }

    /// Every connection is reset, and every new one.
    pub(crate) fn refuse(&self) {
        self.set(|weather| weather.refuses = true);
        self.reset();
    }

    /// Bytes vanish, and nobody is told: of all connections, or of those on which `only` was said.
    pub(crate) fn vanish(&self, way: Way, only: Option<&'static str>) {
        self.set(|weather| weather.vanishing = Some(Vanishing { way, only }));
    }

    /// The connection on which `only` was said is reset once the server has sent so many bytes from now on.
    pub(crate) fn cut_after(&self, bytes: usize, only: &'static str) {
        self.set(|weather| weather.cut = Some(Cut { only, bytes }));
    }

    /// Of the requests with this text, so many are answered; the server acts on the next one, and its answer is a RST.
    pub(crate) fn lose_answer(&self, text: &'static str, answered: u32) {
        self.set(|weather| weather.loses = Some((text, answered)));
    }

    /// Requests with this text do not get to the server, and whoever sent them waits.
    pub(crate) fn swallow(&self, text: &'static str) {
        self.set(|weather| weather.swallows = Some(text));
    }

    /// Requests with this text are on their way, and get to the server once all is well again.
    pub(crate) fn hold(&self, text: &'static str) {
        self.set(|weather| weather.holds = Some(text));
    }

    /// Each piece is late by so many milliseconds; of some the first try is lost, and they are late by 200 ms more.
    pub(crate) fn delay(&self, milliseconds: Range<u64>, loss: f64) {
        self.set(|weather| (weather.delay, weather.loss) = (milliseconds, loss));
    }

    /// Each connection passes so many bytes a second.
    pub(crate) fn throttle(&self, bytes_per_second: u64) {
        self.set(|weather| weather.rate = bytes_per_second);
    }

    /// How many cuts there were, and answers and requests that were lost.
    pub(crate) fn struck(&self) -> u32 {
        lock(&self.shared.weather).struck
    }

    /// All is well again. What has lost bytes can not go on, and is reset.
    pub(crate) fn mend(&self) {
        let before = self.set(|weather| *weather = Weather { struck: weather.struck, ..Weather::default() });
        if before.vanishing.is_some() || before.swallows.is_some() {
            self.reset();
        }
    }

    fn set(&self, change: impl FnOnce(&mut Weather)) -> Weather {
        let mut weather = lock(&self.shared.weather);
        let before = weather.clone();
        change(&mut weather);
        before
    }
}

/// One connection, seen from both directions.
struct Line {
    shared: Arc<Shared>,
    /// What walhouse has said: at the beginning, or since the last answer.
    heard: Mutex<Vec<u8>>,
    /// The request that was heard is counted.
    counted: AtomicBool,
    /// The next answer is lost.
    loses: AtomicBool,
    /// Something has vanished: nothing more can pass.
    broken: AtomicBool,
    /// A request is held up.
    held: AtomicBool,
    reset: CancellationToken,
}

async fn connect(client: TcpStream, shared: Arc<Shared>) {
    if lock(&shared.weather).refuses {
        return reset(&client);
    }
    let server = shared.server.load(Ordering::Relaxed);
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return reset(&client) };
    // Pieces are late because of the weather alone.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let token = lock(&shared.lines).child_token();
    let line = Arc::new(Line {
        shared,
        heard: Mutex::default(),
        counted: AtomicBool::default(),
        loses: AtomicBool::default(),
        broken: AtomicBool::default(),
        held: AtomicBool::default(),
        reset: token,
    });
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::spawn(carry(from_client, to_server, Arc::clone(&line), Way::Up));
    carry(from_server, to_client, line, Way::Down).await;
}

/// Has what comes from one side go to the other, in time.
async fn carry(mut from: OwnedReadHalf, to: OwnedWriteHalf, line: Arc<Line>, way: Way) {
    let (sender, receiver) = mpsc::channel(ON_THE_WAY);
    tokio::spawn(deliver(to, receiver, Arc::clone(&line), way));
    let (mut buffer, mut free_at) = (vec![0; 64 * 1024], Instant::now());
    loop {
        let read = tokio::select! {
            // What is there to be read after a cut must not pass.
            biased;
            () = line.reset.cancelled() => break,
            read = from.read(&mut buffer) => read.unwrap_or(0),
        };
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return };
        let Some(passing) = line.judge(bytes, way) else { continue };
        free_at = line.arrival(passing, free_at);
        if passing > 0 && sender.send((free_at, bytes[..passing].to_vec())).await.is_err() {
            break;
        }
        if passing < read {
            // What is on its way arrives before the cut.
            tokio::time::sleep_until(free_at + Duration::from_millis(5)).await;
            line.reset.cancel();
        }
    }
    reset(from.as_ref());
}

async fn deliver(mut to: OwnedWriteHalf, mut pieces: mpsc::Receiver<(Instant, Vec<u8>)>, line: Arc<Line>, way: Way) {
    let work = async {
        while let Some((at, bytes)) = pieces.recv().await {
            tokio::time::sleep_until(at).await;
            while way == Way::Up && line.is_held() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    };
    tokio::select! {
        biased;
        () = line.reset.cancelled() => {}
        // That the other side has gone, its own direction tells.
        _ = work => {}
    }
}

impl Line {
    /// How many of these bytes pass; fewer than all is the end of the connection, nothing that they vanish.
    fn judge(&self, bytes: &[u8], way: Way) -> Option<usize> {
        let mut weather = lock(&self.shared.weather);
        if way == Way::Up {
            self.hear(bytes, &mut weather);
        }
        let vanishes = weather
            .vanishing
            .is_some_and(|how| (how.way == way || how.way == Way::Both) && how.only.is_none_or(|text| self.said(text)));
        if vanishes && !self.broken.swap(true, Ordering::Relaxed) {
            weather.struck += 1;
        }
        if vanishes || self.broken.load(Ordering::Relaxed) && weather.vanishing.is_none_or(|how| how.way == Way::Both) {
            return None;
        }
        if way == Way::Up {
            return Some(bytes.len());
        }
        if self.loses.load(Ordering::Relaxed) {
            return Some(0);
        }
        if let Some(cut) = weather.cut.filter(|cut| self.said(cut.only)) {
            let left = cut.bytes.saturating_sub(bytes.len());
            weather.cut = (cut.bytes >= bytes.len()).then_some(Cut { bytes: left, ..cut });
            weather.struck += u32::from(weather.cut.is_none());
            return Some(cut.bytes.min(bytes.len()));
        }
        if self.shared.speech == Speech::Http {
            lock(&self.heard).clear();
            self.counted.store(false, Ordering::Relaxed);
        }
        Some(bytes.len())
    }

    /// Notes what was said, and whether it is a request that something happens to.
    fn hear(&self, bytes: &[u8], weather: &mut Weather) {
        let mut heard = lock(&self.heard);
        if heard.len() < LOOKED_AT {
            heard.extend_from_slice(bytes);
        }
        if weather.swallows.is_some_and(|text| has(&heard, text)) && !self.broken.swap(true, Ordering::Relaxed) {
            weather.struck += 1;
        }
        if weather.holds.is_some_and(|text| has(&heard, text)) && !self.held.swap(true, Ordering::Relaxed) {
            weather.struck += 1;
        }
        if let Some((text, answered)) = weather.loses.filter(|(text, _)| has(&heard, text))
            && !self.counted.swap(true, Ordering::Relaxed)
        {
            weather.loses = answered.checked_sub(1).map(|left| (text, left));
            if weather.loses.is_none() {
                self.loses.store(true, Ordering::Relaxed);
                weather.struck += 1;
            }
        }
    }

    fn is_held(&self) -> bool {
        let held = self.held.load(Ordering::Relaxed) && lock(&self.shared.weather).holds.is_some();
        self.held.store(held, Ordering::Relaxed);
        held
    }

    fn said(&self, text: &str) -> bool {
        has(&lock(&self.heard), text)
    }

    /// When a piece is there that was sent now, after those that are on their way.
    fn arrival(&self, bytes: usize, free_at: Instant) -> Instant {
        let weather = lock(&self.shared.weather);
        let mut late = if weather.delay.is_empty() { 0 } else { rand::random_range(weather.delay.clone()) };
        if weather.loss > 0.0 && rand::random_bool(weather.loss) {
            late += 200;
        }
        let sent = free_at.max(Instant::now() + Duration::from_millis(late));
        if weather.rate == 0 { sent } else { sent + Duration::from_secs_f64(bytes as f64 / weather.rate as f64) }
    }
}

/// The end of this connection is a RST.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn has(bytes: &[u8], text: &str) -> bool {
    memchr::memmem::find(bytes, text.as_bytes()).is_some()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What comes through before a cut is what was sent, without a gap.
#[test]
fn nothing_passes_after_a_cut() {
    let work = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut numbers = (0_u32..).flat_map(u32::to_be_bytes);
                    let mut piece = || numbers.by_ref().take(4000).collect::<Vec<_>>();
                    while client.write_all(&piece()).await.is_ok() {}
                });
            }
        });
        let wire = Wire::to(port, Speech::Postgres).await;
        for round in 0..60 {
            let mut stream = TcpStream::connect(("127.0.0.1", wire.port())).await.expect("the line is there");
            stream.write_all(b"go on").await.expect("it takes bytes");
            wire.cut_after(40_000 + round, "go on");
            let mut received = Vec::new();
            _ = stream.read_to_end(&mut received).await;
            let whole = received.chunks_exact(4).map(|number| u32::from_be_bytes(number.try_into().expect("four")));
            assert!(whole.enumerate().all(|(at, number)| at == number as usize), "a gap, in round {round}");
        }
    };
    tokio::runtime::Runtime::new().expect("a runtime").block_on(work);
}
