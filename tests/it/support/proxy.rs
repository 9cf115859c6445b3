//! Between walhouse and ClickHouse: loses the answer of an insert, and keeps the insert itself half sent; or cuts the line
//! once a statement has been answered, before the answer arrives; or is slow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::eventually;

/// What ends the body of a request.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

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
    /// Nothing goes through any more.
    Cut,
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

    /// Waits until that has happened.
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
    loop {
        tokio::select! {
            read = client.read(&mut to_server) => {
                let bytes = &to_server[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                if is_muted(bytes, state) {
                    return std::future::pending().await;
                }
                if is_awaited(bytes, state) {
                    return hold(client, server, bytes.to_vec(), state).await;
                }
                match &*state.lock().expect("nobody panics here") {
                    State::Cut => return Ok(()),
                    State::Awaited(text) => last |= bytes.windows(text.len()).any(|window| window == text.as_bytes()),
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
                length => client.write_all(&to_client[..length]).await?,
            },
        }
    }
}

fn is_awaited(bytes: &[u8], state: &Mutex<State>) -> bool {
    let mut state = state.lock().expect("nobody panics here");
    let State::Armed(insert) = &*state else { return false };
    let found = bytes.windows(insert.len()).any(|window| window == insert.as_bytes());
    if found {
        *state = State::Forward;
    }
    found
}

fn is_muted(bytes: &[u8], state: &Mutex<State>) -> bool {
    let mut state = state.lock().expect("nobody panics here");
    let State::Muted(text) = &*state else { return false };
    let found = bytes.windows(text.len()).any(|window| window == text.as_bytes());
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
