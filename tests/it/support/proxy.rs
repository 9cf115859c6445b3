//! Between walhouse and ClickHouse, SQS or PostgreSQL: loses the answer of an insert, and keeps the insert itself half sent; or cuts the
//! line once a statement has been answered, before the answer arrives; or keeps requests of one kind, or their answers, to
//! itself, so that a test can act at a moment that is between two steps of walhouse's; or is slow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::eventually;

/// What ends the body of a request.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// What a request is stands within so many bytes of it.
const LOOKED_AT: usize = 64 * 1024;

/// Forwards to one server, byte for byte, until it is asked to hold an insert.
pub(crate) struct Proxy {
    port: u16,
    state: Arc<Mutex<State>>,
    pace: Arc<Pace>,
}

/// How fast bytes go to the server, over all connections.
#[derive(Default)]
struct Pace {
    /// In bytes a second; 0 is as fast as they come.
    limit: AtomicU64,
    passed: AtomicU64,
    free_at: tokio::sync::Mutex<Option<Instant>>,
}

impl Pace {
    /// Waits until so many bytes may go on.
    async fn pass(&self, bytes: usize) {
        self.passed.fetch_add(bytes as u64, Ordering::Relaxed);
        let limit = self.limit.load(Ordering::Relaxed);
        if limit > 0 {
            let mut free_at = self.free_at.lock().await;
            let begun = free_at.map_or_else(Instant::now, |at| at.max(Instant::now()));
            let end = begun + Duration::from_secs_f64(bytes as f64 / limit as f64);
            *free_at = Some(end);
            drop(free_at);
            tokio::time::sleep_until(end).await;
        }
    }
}

enum State {
    Forward,
    /// The next insert into this table, as it stands in the request's first line.
    Armed(String),
    /// The server has all of the insert but its end, and whoever sent it was hung up on.
    Held(TcpStream),
    /// The next statement that has this text.
    Awaited(String),
    /// The connection of the next request that has this text.
    Muted(String),
    /// Requests of a kind, or their answers, are kept.
    Keeping(Keep),
    /// ClickHouse is asked something else than what has the first text in it.
    Instead(String, String),
    /// Nothing goes through any more.
    Cut,
}

/// What is kept to itself.
struct Keep {
    what: What,
    /// What a request of the kind has in it, all of these; every request if there is nothing.
    texts: Vec<String>,
    /// So many were kept so far.
    kept: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Requests,
    /// Answers to such requests.
    Answers,
    /// What the server says that has the texts in it.
    Said,
}

impl Proxy {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let state = Arc::new(Mutex::new(State::Forward));
        let (shared, pace) = (state.clone(), Arc::<Pace>::default());
        let paced = pace.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server)).await;
                let (state, pace) = (shared.clone(), paced.clone());
                tokio::spawn(async move {
                    if let Ok(server) = server {
                        // Either side hanging up is the end of it.
                        let _ = forward(client, server, &state, &pace).await;
                    }
                });
            }
        });
        Self { port, state, pace }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From now on so many bytes a second go to the server, and no more.
    pub(crate) fn slow_down(&self, bytes_per_second: u64) {
        self.pace.limit.store(bytes_per_second, Ordering::Relaxed);
    }

    /// How many bytes went to the server so far.
    pub(crate) fn passed(&self) -> u64 {
        self.pace.passed.load(Ordering::Relaxed)
    }

    /// The next insert into `table` reaches the server all but its end, and is never answered.
    pub(crate) fn hold_next_insert(&self, table: &str) {
        *self.state.lock().expect("nobody panics here") = State::Armed(format!("INSERT+INTO+%60{table}%60+"));
    }

    /// Waits until an insert is held.
    pub(crate) async fn holds(&self) {
        eventually(Duration::from_secs(20), async || match *self.state.lock().expect("nobody panics here") {
            State::Held(_) => Ok(()),
            _ => Err("no insert came by".to_owned()),
        })
        .await;
    }

    /// The next statement with `text` in it is run, and its answer is lost: from then on nothing goes through.
    pub(crate) fn cut_after(&self, text: &str) {
        *self.state.lock().expect("nobody panics here") = State::Awaited(text.to_owned());
    }

    /// The connection of the next request with `text` in it goes silent for ever; others are as they were.
    pub(crate) fn mute(&self, text: &str) {
        *self.state.lock().expect("nobody panics here") = State::Muted(text.to_owned());
    }

    /// From now on the server does not get requests with all of `texts` in them, and whoever sent them waits. What was kept
    /// once never gets there, also after `mend`.
    pub(crate) fn keep_requests(&self, texts: &[&str]) {
        self.keep(What::Requests, texts);
    }

    /// From now on the server acts on requests with all of `texts` in them, and its answers do not get back.
    pub(crate) fn keep_answers(&self, texts: &[&str]) {
        self.keep(What::Answers, texts);
    }

    /// From now on connections on which the server says something with all of `texts` in it fall silent with that.
    pub(crate) fn keep_said(&self, texts: &[&str]) {
        self.keep(What::Said, texts);
    }

    /// From now on ClickHouse is asked this instead of what has `text` in it.
    pub(crate) fn ask_instead(&self, text: &str, sql: &str) {
        *self.state.lock().expect("nobody panics here") = State::Instead(text.to_owned(), sql.to_owned());
    }

    fn keep(&self, what: What, texts: &[&str]) {
        let texts = texts.iter().map(|&text| text.to_owned()).collect();
        *self.state.lock().expect("nobody panics here") = State::Keeping(Keep { what, texts, kept: 0 });
    }

    /// Waits until so many were kept.
    pub(crate) async fn has_kept(&self, wanted: usize) {
        eventually(Duration::from_secs(90), async || match &*self.state.lock().expect("nobody panics here") {
            State::Keeping(keep) if keep.kept >= wanted => Ok(()),
            State::Keeping(keep) => Err(format!("{} of {wanted} kept", keep.kept)),
            _ => Err("nothing is to be kept".to_owned()),
        })
        .await;
    }

    /// Waits until the line was cut.
    pub(crate) async fn is_cut(&self) {
        eventually(Duration::from_secs(30), async || match *self.state.lock().expect("nobody panics here") {
            State::Cut => Ok(()),
            _ => Err("no such statement came by".to_owned()),
        })
        .await;
    }

    /// Lets everything through again.
    pub(crate) fn mend(&self) {
        *self.state.lock().expect("nobody panics here") = State::Forward;
    }

    /// Sends the end of the insert that is held, and returns what the server says to that; nothing if it has hung up.
    pub(crate) async fn release(&self) -> String {
        let state = std::mem::replace(&mut *self.state.lock().expect("nobody panics here"), State::Forward);
        let State::Held(mut server) = state else { panic!("no insert is held") };
        let mut answer = vec![0; 64 * 1024];
        let length = match server.write_all(LAST_CHUNK).await {
            Ok(()) => server.read(&mut answer).await.unwrap_or(0),
            Err(_gone) => 0,
        };
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }
}

async fn forward(
    mut client: TcpStream,
    mut server: TcpStream,
    state: &Mutex<State>,
    pace: &Pace,
) -> std::io::Result<()> {
    let (mut to_server, mut to_client) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut last = false;
    // What came since the last answer: a request may come in pieces.
    let mut request = Vec::new();
    loop {
        tokio::select! {
            read = client.read(&mut to_server) => {
                let bytes = &to_server[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                if request.len() < LOOKED_AT {
                    request.extend_from_slice(bytes);
                }
                if is_kept(&request, What::Requests, state) {
                    return until_it_hangs_up(client).await;
                }
                if is_muted(bytes, state) {
                    return std::future::pending().await;
                }
                if let Some(sql) = instead(&request, state) {
                    return ask(client, server, &sql).await;
                }
                if is_awaited(bytes, state) {
                    return hold(client, server, bytes.to_vec(), state).await;
                }
                match &*state.lock().expect("nobody panics here") {
                    State::Cut => return Ok(()),
                    State::Awaited(text) => last |= has(bytes, text),
                    _ => {}
                }
                pace.pass(bytes.len()).await;
                server.write_all(bytes).await?;
            }
            read = server.read(&mut to_client) => match read? {
                0 => return Ok(()),
                _ if last => {
                    *state.lock().expect("nobody panics here") = State::Cut;
                    return Ok(());
                }
                length if is_kept(&to_client[..length], What::Said, state) => return until_it_hangs_up(client).await,
                _ if is_kept(&request, What::Answers, state) => return until_it_hangs_up(client).await,
                length => {
                    request.clear();
                    client.write_all(&to_client[..length]).await?;
                }
            },
        }
    }
}

/// Whether a request, or its answer, or what was said, is to be kept; that it was is noted.
fn is_kept(bytes: &[u8], what: What, state: &Mutex<State>) -> bool {
    let mut state = state.lock().expect("nobody panics here");
    let State::Keeping(keep) = &mut *state else { return false };
    let is_one = keep.what == what && keep.texts.iter().all(|text| has(bytes, text));
    keep.kept += usize::from(is_one);
    is_one
}

fn instead(request: &[u8], state: &Mutex<State>) -> Option<String> {
    match &*state.lock().expect("nobody panics here") {
        State::Instead(text, sql) if has(request, text) => Some(sql.clone()),
        _ => None,
    }
}

/// Has ClickHouse answer this, as walhouse would ask it.
async fn ask(mut client: TcpStream, mut server: TcpStream, sql: &str) -> std::io::Result<()> {
    let request = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{sql}",
        sql.len()
    );
    server.write_all(request.as_bytes()).await?;
    tokio::io::copy(&mut server, &mut client).await.map(|_| ())
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The connection stays open for as long as whoever made it wants.
async fn until_it_hangs_up(mut client: TcpStream) -> std::io::Result<()> {
    tokio::io::copy(&mut client, &mut tokio::io::sink()).await.map(|_| ())
}

fn is_awaited(bytes: &[u8], state: &Mutex<State>) -> bool {
    let mut state = state.lock().expect("nobody panics here");
    let State::Armed(insert) = &*state else { return false };
    let found = has(bytes, insert);
    if found {
        *state = State::Forward;
    }
    found
}

fn is_muted(bytes: &[u8], state: &Mutex<State>) -> bool {
    let mut state = state.lock().expect("nobody panics here");
    let State::Muted(text) = &*state else { return false };
    let found = has(bytes, text);
    if found {
        *state = State::Forward;
    }
    found
}

async fn hold(
    mut client: TcpStream,
    mut server: TcpStream,
    mut request: Vec<u8>,
    state: &Mutex<State>,
) -> std::io::Result<()> {
    while !request.ends_with(LAST_CHUNK) {
        client.read_buf(&mut request).await?;
    }
    server.write_all(&request[..request.len() - LAST_CHUNK.len()]).await?;
    *state.lock().expect("nobody panics here") = State::Held(server);
    Ok(())
}
