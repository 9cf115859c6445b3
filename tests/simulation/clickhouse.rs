//! A made-up ClickHouse: HTTP, the statements that the way of a change needs, and what can become of each.
//!
//! A statement that has come in whole is worked on whether or not anybody waits for the answer. Until it has ended it is among
//! the processes, and can be killed. A block lands partition by partition, of which there are two.

use crate::{
    native,
    sql::{self, Insert},
    wal::TABLES,
    world::{Shared, Stored},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{DuplexStream, duplex},
    sync::oneshot,
    time::Instant,
};

/// What a socket holds.
const SOCKET: usize = 16 * 1024;
/// An error that passes, as ClickHouse says it.
const TOO_MANY_PARTS: &str = "Code: 252. DB::Exception: Too many parts. (TOO_MANY_PARTS)";
const CANCELLED: &str = "Code: 394. DB::Exception: Query was cancelled. (QUERY_WAS_CANCELLED)";

/// The server, whoever speaks to it.
#[derive(Clone)]
pub(crate) struct ClickHouse {
    world: Shared,
    server: Arc<Mutex<Server>>,
}

#[derive(Default)]
struct Server {
    /// The statements that run, and whether they were killed.
    processes: BTreeMap<String, bool>,
    /// The last row of each table of the state.
    tables: BTreeMap<String, HashMap<String, String>>,
    checkpoint: Option<HashMap<String, String>>,
    /// It takes no connection before this moment.
    away: Option<Instant>,
}

/// What becomes of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is done, and answered.
    Done,
    /// It is done, and the answer is lost.
    Lost,
    /// It is refused for now.
    Refused,
    /// Nobody ever says a word.
    Vanished,
    /// Some of it is done, and then it fails.
    Part,
    /// The server goes away with it.
    Away,
}

type Answer = Result<Vec<u8>, &'static str>;

impl ClickHouse {
    pub(crate) fn new(world: &Shared) -> Self {
        Self { world: world.clone(), server: Arc::default() }
    }

    /// A client of it, of one process: what that has not sent whole when it ends is nothing.
    pub(crate) fn client(&self) -> clickhouse::Client {
        let http = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(Connector(self.clone()));
        clickhouse::Client::with_http_client(http)
            .with_url("http://clickhouse")
            .with_database("sim")
            .with_compression(clickhouse::Compression::None)
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self, stream: DuplexStream) {
        let handler = service_fn(|request| self.answer(request));
        let mut server = hyper::server::conn::http1::Builder::new();
        // A lost answer ends the connection with an error.
        let _: Result<(), hyper::Error> =
            server.keep_alive(false).serve_connection(TokioIo::new(stream), handler).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        let mut parameters = sql::parameters(request.uri().query().unwrap_or_default());
        let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        let (text, data) = match parameters.remove("query") {
            Some(text) => (text, body),
            None => (String::from_utf8_lossy(&body).into_owned(), Bytes::new()),
        };
        let id = parameters.remove("query_id").unwrap_or_default();
        let (sender, receiver) = oneshot::channel();
        // By itself: it goes on when nobody waits any more.
        tokio::spawn(self.clone().work(id, text, data, sender));
        let answer = receiver.await.map_err(io::Error::other)?;
        let mut response = Response::builder();
        let body = answer.unwrap_or_else(|error| {
            response = std::mem::take(&mut response).status(500);
            error.as_bytes().to_vec()
        });
        response.body(Full::new(body.into())).map_err(io::Error::other)
    }

    /// Works on a statement; without a word in the end the connection is cut.
    async fn work(self, id: String, text: String, data: Bytes, answer: oneshot::Sender<Answer>) {
        let is_read = text.starts_with("SELECT") || text.starts_with("KILL");
        let (fate, before, after) = {
            let mut world = self.world.lock();
            let fate = fate(&mut world, is_read);
            if fate != Fate::Done {
                world.note(|| format!("clickhouse {fate:?}: {:.60}", text.split(" AND ").next().unwrap_or_default()));
            }
            (fate, world.dice.pause() / 2, world.dice.pause() / 4)
        };
        if !is_read {
            self.server().processes.insert(id.clone(), false);
        }
        tokio::time::sleep(before).await;
        let done = self.apply(&id, &text, &data, fate);
        // It has ended when all of it is there; a process is seen for a while longer.
        if after > Duration::ZERO {
            tokio::time::sleep(after).await;
        }
        self.server().processes.remove(&id);
        match fate {
            Fate::Lost | Fate::Away => {}
            Fate::Vanished => tokio::time::sleep(Duration::from_secs(300)).await,
            _ => _ = answer.send(done),
        }
    }

    fn apply(&self, id: &str, text: &str, data: &[u8], fate: Fate) -> Answer {
        let mut server = self.server();
        if server.processes.get(id) == Some(&true) {
            return Err(CANCELLED);
        }
        match fate {
            Fate::Refused => return Err(TOO_MANY_PARTS),
            Fate::Away => {
                let seconds = self.world.lock().dice.below(20) as u64;
                server.away = Some(Instant::now() + Duration::from_secs(seconds));
                // Whatever it was working on goes with it.
                server.processes.values_mut().for_each(|killed| *killed = true);
                return Err(CANCELLED);
            }
            _ => {}
        }
        if let Some(kill) = text.strip_prefix("KILL QUERY WHERE ") {
            let condition = sql::Processes::parse(kill);
            server.processes.iter_mut().filter(|(id, _)| condition.has(id)).for_each(|(_, killed)| *killed = true);
            return Ok(Vec::new());
        }
        if let Some(count) = text.strip_prefix("SELECT count() FROM system.processes WHERE ") {
            let condition = sql::Processes::parse(count);
            let count = server.processes.keys().filter(|id| condition.has(id)).count();
            return Ok(native::count(count as u64));
        }
        drop(server);
        let only = (fate == Fate::Part).then(|| self.world.lock().dice.below(2) as i64);
        self.change(text, data, only)
    }

    /// Reads or writes; only one partition if one is named.
    fn change(&self, text: &str, data: &[u8], only: Option<i64>) -> Answer {
        if text.contains(" FROM _checkpoint WHERE ") {
            return Ok(native::checkpoint(self.server().checkpoint.as_ref()));
        }
        if text.contains(" FROM _tables WHERE ") {
            return Ok(native::tables(self.server().tables.values()));
        }
        if let Some(delete) = text.strip_prefix("DELETE FROM ") {
            if only.is_none() {
                let (target, version) = sql::delete(delete);
                let mut world = self.world.lock();
                world.note(|| format!("clickhouse removes from {target} what is below {version:x}"));
                world.truncate(table(&target), version);
            }
        } else if let Some(insert) = text.strip_prefix("INSERT INTO ") {
            self.insert(insert, data, only);
        } else {
            self.world.lock().fail(format!("a statement that nobody expected: {text}"));
        }
        if only.is_some() { Err(TOO_MANY_PARTS) } else { Ok(Vec::new()) }
    }

    fn insert(&self, insert: &str, data: &[u8], only: Option<i64>) {
        if let Some(target) = insert.strip_suffix(" FORMAT Native") {
            let mut world = self.world.lock();
            let rows = native::rows(data);
            world.note(|| format!("clickhouse takes {} rows of {target}, partition {only:?}", rows.len()));
            let table = table(&sql::unquoted(target));
            let wanted = rows.into_iter().filter(|(key, _)| only.is_none_or(|only| key % 2 == only));
            wanted.for_each(|(key, row)| world.land(table, key, row));
            return;
        }
        // A row of the state is one block.
        if only.is_some() {
            return;
        }
        let Insert { table, rows } = Insert::parse(insert);
        for row in rows {
            match table.as_str() {
                "_checkpoint" => {
                    let number = |name: &str| row.get(name).and_then(|text| text.parse().ok()).unwrap_or_default();
                    let stored = Stored {
                        revision: number("revision"),
                        lsn: number("lsn"),
                        queue_lsn: number("queue_lsn"),
                        ceiling: number("ceiling"),
                    };
                    let mut world = self.world.lock();
                    world.checkpoint(stored);
                    if world.stored.revision == stored.revision && world.stored.lsn == stored.lsn {
                        self.server().checkpoint = Some(row);
                    }
                }
                "_tables" => {
                    let mut server = self.server();
                    let revision = |row: &HashMap<String, String>| row["revision"].parse::<u64>().unwrap_or_default();
                    let newer = server.tables.get(&row["oid"]).is_none_or(|before| revision(before) < revision(&row));
                    if newer {
                        server.tables.insert(row["oid"].clone(), row);
                    }
                }
                other => self.world.lock().fail(format!("an insert into {other}, which nobody expected")),
            }
        }
    }
}

fn table(target: &str) -> usize {
    TABLES.iter().position(|table| table.1 == target).unwrap_or_default()
}

fn fate(world: &mut crate::world::World, is_read: bool) -> Fate {
    let percent = world.trouble.clickhouse;
    if !world.dice.chance(percent) {
        return Fate::Done;
    }
    match world.dice.below(12) {
        0..4 => Fate::Refused,
        4..7 => Fate::Lost,
        7..9 if !is_read => Fate::Part,
        9 => Fate::Away,
        10 if world.dice.chance(30) => Fate::Vanished,
        _ => Fate::Done,
    }
}

/// Connects to it, if it is there.
#[derive(Clone)]
struct Connector(ClickHouse);

impl tower_service::Service<hyper::Uri> for Connector {
    type Response = Wire;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Wire>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: hyper::Uri) -> Self::Future {
        let away = self.0.server().away.is_some_and(|until| Instant::now() < until) && {
            // Nobody is away for ever.
            self.0.world.lock().trouble.clickhouse > 0
        };
        if away {
            return std::future::ready(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        let (near, far) = duplex(SOCKET);
        tokio::spawn(self.0.clone().serve(far));
        std::future::ready(Ok(Wire(TokioIo::new(near))))
    }
}

/// A connection within the process.
struct Wire(TokioIo<DuplexStream>);

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
