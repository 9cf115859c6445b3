//! A made-up PostgreSQL: the walsender, and the session that holds the slot's lock.
//!
//! It speaks the protocol in bytes. The rules are the server's: what committed before the slot's position is never sent again,
//! and a start before that is moved forward in silence.

use crate::{wal::START, wire, world::Shared};
use bytes::{Buf, Bytes, BytesMut};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::Instant,
};

/// What a socket holds.
const SOCKET: usize = 16 * 1024;

/// A connection to it.
pub(crate) fn connect(world: &Shared) -> DuplexStream {
    let (near, far) = duplex(SOCKET);
    let session = Session { world: world.clone(), stream: far, input: BytesMut::new(), announced: Vec::new() };
    tokio::spawn(async move {
        // However it ends: the other side sees that it has.
        let _: io::Result<()> = session.run().await;
    });
    near
}

struct Session {
    world: Shared,
    stream: DuplexStream,
    input: BytesMut,
    /// The relations that were announced.
    announced: Vec<u32>,
}

fn gone() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl Session {
    async fn run(mut self) -> io::Result<()> {
        while self.input.len() < 4 || self.input.len() < length(&self.input) {
            self.read().await?;
        }
        self.input.clear();
        let mut out = BytesMut::new();
        wire::message(&mut out, b'R', &0_u32.to_be_bytes());
        ready(&mut out);
        self.write(out).await?;
        loop {
            let (tag, body) = self.message().await?;
            let mut out = BytesMut::new();
            match tag {
                b'Q' => {
                    let sql = String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(&body)).into_owned();
                    if let Some(start) = sql.strip_prefix("START_REPLICATION SLOT ") {
                        return self.replicate(start).await;
                    }
                    self.simple(&sql, &mut out)?;
                }
                // The one statement with a parameter takes the lock.
                b'P' => wire::message(&mut out, b'1', &[]),
                b'D' => {
                    wire::message(&mut out, b't', &[0, 1, 0, 0, 0, 25]);
                    wire::row_description(&mut out, 16);
                }
                b'B' => wire::message(&mut out, b'2', &[]),
                b'E' => {
                    wire::data_row(&mut out, &[1]);
                    wire::message(&mut out, b'C', b"SELECT 1\0");
                }
                b'C' => wire::message(&mut out, b'3', &[]),
                b'S' => ready(&mut out),
                _ => return Err(gone()),
            }
            self.write(out).await?;
        }
    }

    fn simple(&self, sql: &str, out: &mut BytesMut) -> io::Result<()> {
        let mut world = self.world.lock();
        let percent = world.trouble.postgres / 8;
        if world.dice.chance(percent) {
            world.note(|| format!("postgres  ends a session at {sql:.40}"));
            return Err(gone());
        }
        if sql == "SELECT pg_backend_pid()" {
            wire::row_description(out, 25);
            wire::data_row(out, b"7");
        }
        wire::message(out, b'C', b"SELECT 1\0");
        ready(out);
        Ok(())
    }

    async fn read(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.input).await? == 0 { Err(gone()) } else { Ok(()) }
    }

    async fn write(&mut self, out: BytesMut) -> io::Result<()> {
        self.stream.write_all(&out).await
    }

    async fn message(&mut self) -> io::Result<(u8, Bytes)> {
        loop {
            if let Some(message) = take(&mut self.input) {
                return Ok(message);
            }
            self.read().await?;
        }
    }

    /// Streams from the slot, or from a copy of it.
    async fn replicate(mut self, command: &str) -> io::Result<()> {
        let is_main = command.starts_with("\"sim\" ");
        let start = command.split("LOGICAL ").nth(1).and_then(|rest| rest.split(' ').next()).and_then(position);
        let mut out = BytesMut::new();
        wire::message(&mut out, b'W', &[0, 0, 0]);
        let from = {
            let mut world = self.world.lock();
            let from = start.unwrap_or_default().max(world.confirmed);
            world.note(|| format!("postgres  streams from {from:x} (asked for {:x?}, main: {is_main})", start));
            from
        };
        self.write(out).await?;
        let next = self.world.lock().wal.transactions.partition_point(|one| one.commit < from);
        Sender { session: self, is_main, next, given: from.max(START), out: BytesMut::new(), piece: BytesMut::new() }
            .run()
            .await
    }
}

/// A walsender that streams.
struct Sender {
    session: Session,
    is_main: bool,
    /// The transaction that is next.
    next: usize,
    /// The last position that was given.
    given: u64,
    /// What is to be sent, and the piece of it that is handed to the socket.
    out: BytesMut,
    piece: BytesMut,
}

impl Sender {
    async fn run(mut self) -> io::Result<()> {
        let mut wake = Instant::now();
        loop {
            let (mut reader, mut writer) = tokio::io::split(&mut self.session.stream);
            tokio::select! {
                biased;
                read = reader.read_buf(&mut self.session.input) => {
                    if read? == 0 {
                        return Err(gone());
                    }
                    self.hear()?;
                }
                written = writer.write_buf(&mut self.piece), if !self.piece.is_empty() => {
                    written?;
                }
                () = tokio::time::sleep_until(wake), if self.piece.is_empty() => wake = Instant::now() + self.go_on()?,
            }
        }
    }

    /// What the other side says.
    fn hear(&mut self) -> io::Result<()> {
        while let Some((tag, mut body)) = take(&mut self.session.input) {
            match tag {
                b'd' if body.first() == Some(&b'r') && body.len() == 34 => {
                    body.advance(9);
                    let flush = body.get_u64();
                    body.advance(16);
                    let mut world = self.session.world.lock();
                    if self.is_main {
                        world.acknowledged(flush);
                    }
                    if body.get_u8() == 1 {
                        wire::keepalive(&mut self.out, self.given, false);
                    }
                }
                _ => return Err(gone()),
            }
        }
        Ok(())
    }

    /// Has something to send, or not; and when to look again.
    fn go_on(&mut self) -> io::Result<Duration> {
        let mut world = self.session.world.lock();
        let percent = world.trouble.postgres;
        if world.dice.chance(percent) {
            match world.dice.below(12) {
                0 => {
                    world.note(|| "postgres  resets the stream".to_owned());
                    return Err(gone());
                }
                1 => {
                    world.note(|| "postgres  ends the stream with an error".to_owned());
                    wire::error(&mut self.out, "57P01", "terminating connection due to administrator command");
                }
                2 => {
                    world.note(|| "postgres  is silent".to_owned());
                    return Ok(Duration::from_secs(5 + world.dice.below(40) as u64));
                }
                _ => return Ok(world.dice.pause()),
            }
        }
        if self.out.is_empty() {
            let now = world.now();
            if let Some(one) = world.wal.transactions.get(self.next).filter(|one| one.at <= now) {
                wire::transaction(&mut self.out, one, &mut self.session.announced);
                (self.given, self.next) = (one.end, self.next + 1);
                let commit = one.commit;
                world.note(|| format!("postgres  sends the commit {commit:x}"));
            } else if let Some(idle) = idle(&mut world, self.next, self.given) {
                self.given = self.given.max(idle);
                let reply = world.dice.chance(20);
                wire::keepalive(&mut self.out, idle, reply);
            }
        }
        if !self.out.is_empty() {
            let whole = world.dice.chance(60);
            let bytes = if whole { self.out.len() } else { 1 + world.dice.below(self.out.len()) };
            self.piece = self.out.split_to(bytes);
        }
        let pause = if self.out.is_empty() { Duration::from_millis(5) } else { Duration::ZERO };
        Ok(pause + world.dice.pause() / 4)
    }
}

/// A position before which nothing is left to be sent, at times an old one.
fn idle(world: &mut crate::world::World, next: usize, given: u64) -> Option<u64> {
    let waiting = world.wal.transactions.get(next).map(|one| one.commit);
    let end = waiting.unwrap_or(world.wal.tail);
    if waiting.is_some() && !world.dice.chance(30) {
        return None;
    }
    let idle = match world.dice.below(4) {
        0 => START,
        1 => end,
        _ => (given + 8 * world.dice.below(20) as u64).min(end),
    };
    world.wal.positions.insert(idle);
    Some(idle)
}

fn length(input: &[u8]) -> usize {
    input.first_chunk().map_or(usize::MAX, |length| u32::from_be_bytes(*length) as usize)
}

fn take(input: &mut BytesMut) -> Option<(u8, Bytes)> {
    let whole = input.len() >= 5 && input.len() > length(&input[1..]);
    whole.then(|| {
        let mut message = input.split_to(1 + length(&input[1..])).freeze();
        let tag = message.get_u8();
        message.advance(4);
        (tag, message)
    })
}

fn ready(out: &mut BytesMut) {
    wire::message(out, b'Z', b"I");
}

/// `16/B374D848`.
fn position(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}
