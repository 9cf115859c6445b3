//! The way to the server, under every session: the socket, and TLS over it where it is to be.
//!
//! The connection that the slot is read over and those of tokio-postgres are opened here, by the same rules and with the same
//! words for what goes wrong. tokio-postgres is handed what is open already ([`Established`]); its own TLS is not used, since it
//! knows fewer modes, and would send a password in the clear to whoever asks for it.
//!
//! What is promised: nothing is sent but the request for TLS before the certificate is verified as `sslmode` wants it; nothing
//! that came before the handshake is read after it (CVE-2021-23222: an attacker in between could put words into the server's
//! mouth); only `prefer` goes on without TLS, and says so; a password leaves in the clear over TLS or a Unix socket alone.

mod binding;
mod error;
mod guard;
mod socket;

pub use binding::Peer;
pub use error::{Cleartext, OpenError};

use crate::{
    config::{Endpoint, SourceUrl, SslMode, TlsConfig, is_loopback},
    tls,
};
use guard::Guard;
use rustls::pki_types::ServerName;
use socket::Socket;
use socket2::{SockRef, TcpKeepalive};
use std::{
    collections::HashSet,
    convert::Infallible,
    future::{Ready, ready},
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_postgres::tls::{ChannelBinding, TlsConnect};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How long it may take until there is a connection; a server that has neither answered nor refused by then is taken to be
/// absent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After so much silence the system asks whether the other end is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// What is taken from the socket at once; TLS by itself would ask for 4 KiB at a time.
const GULP: usize = 256 * 1024;
/// What PostgreSQL's protocol is called where a port serves several.
const PROTOCOL: &[u8] = b"postgresql";
/// A request for TLS: its length, and a version that is none.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// An open connection.
pub struct Transport {
    stream: Stream,
    guard: Guard,
    /// The server's certificate, over TLS.
    peer: Option<Peer>,
    /// What was asked for.
    mode: SslMode,
    endpoint: Endpoint,
}

enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<BufReader<Socket>>>),
    /// Opened by somebody else.
    Given(Box<dyn Duplex + Send + Sync>),
}

/// Opens a connection to the server.
///
/// # Errors
/// What is wrong, and what to do; whether time may mend it.
pub async fn open(url: &SourceUrl) -> Result<Transport, OpenError> {
    let endpoint = url.endpoint();
    match tokio::time::timeout(CONNECT_TIMEOUT, Box::pin(establish(url, &endpoint))).await {
        Ok(outcome) => outcome,
        Err(_) => Err(OpenError::Silent { endpoint, limit: CONNECT_TIMEOUT }),
    }
}

async fn establish(url: &SourceUrl, endpoint: &Endpoint) -> Result<Transport, OpenError> {
    let failed = |source| OpenError::Unreachable { endpoint: endpoint.clone(), source };
    let (host, port) = match endpoint {
        Endpoint::Tcp { host, port } => (host, port),
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(failed)?;
            return Ok(Transport::plain(Socket::Unix(stream), Guard::off(), endpoint));
        }
    };
    let mut failure = OpenError::NoAddress { host: host.clone() };
    // A name such as localhost has several addresses, and the server may listen on one of them only.
    for address in addresses(url, host, *port).await? {
        match TcpStream::connect((address, *port)).await {
            Ok(stream) => {
                prepare(&stream).map_err(failed)?;
                return secure(url, stream, endpoint).await;
            }
            Err(source) => failure = failed(source),
        }
    }
    Err(failure)
}

/// The addresses of the host. Where nobody has said how a connection is protected, only this machine's own will do.
async fn addresses(url: &SourceUrl, host: &str, port: u16) -> Result<Vec<IpAddr>, OpenError> {
    let unresolved = |source| OpenError::Unresolved { host: host.to_owned(), source };
    let found = tokio::net::lookup_host((host, port)).await.map_err(unresolved)?;
    let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    match found.iter().find(|address| url.must_be_local() && !is_loopback(**address)) {
        Some(address) => Err(OpenError::NotLocal { host: host.to_owned(), address: *address }),
        None => Ok(found),
    }
}

/// Messages are small and urgent; and a session that waits for a lock or for rows has no other way to learn that the server's
/// machine is gone.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3);
    stream.set_nodelay(true).and_then(|()| SockRef::from(stream).set_tcp_keepalive(&keepalive))
}

async fn secure(url: &SourceUrl, mut stream: TcpStream, endpoint: &Endpoint) -> Result<Transport, OpenError> {
    let tls = url.tls();
    if tls.mode == SslMode::Disable {
        return Ok(Transport::plain(Socket::Tcp(stream), Guard::on(), endpoint));
    }
    if !url.begins_with_tls() && !agrees(&mut stream, endpoint).await? {
        if tls.mode > SslMode::Prefer {
            return Err(OpenError::NoTls { endpoint: endpoint.clone(), mode: tls.mode });
        }
        say_that_it_is_plain(url, endpoint);
        return Ok(Transport::plain(Socket::Tcp(stream), Guard::on(), endpoint));
    }
    handshake(url, &tls, stream, endpoint).await
}

/// Asks for TLS, and whether the server has it.
async fn agrees(stream: &mut TcpStream, endpoint: &Endpoint) -> Result<bool, OpenError> {
    let failed = |source| OpenError::Unreachable { endpoint: endpoint.clone(), source };
    stream.write_all(&SSL_REQUEST).await.map_err(failed)?;
    // Room for one byte more than there may be: an honest server waits now.
    let mut answer = [0; 2];
    let count = stream.read(&mut answer).await.map_err(failed)?;
    match (count, answer[0]) {
        (0, _) => Err(failed(io::Error::new(io::ErrorKind::ConnectionReset, "it has hung up when asked for TLS"))),
        (1, b'S') => Ok(true),
        (1, b'N') => Ok(false),
        // One that ends at this very moment says so in the same breath; nobody has signed that either.
        (2, b'N') if answer[1] == b'E' => Err(OpenError::Busy { endpoint: endpoint.clone() }),
        (_, b'S' | b'N') => Err(OpenError::Early { endpoint: endpoint.clone() }),
        // An error, which nobody has signed: it is not to be quoted.
        (_, b'E') => Err(OpenError::Busy { endpoint: endpoint.clone() }),
        _ => Err(OpenError::Foreign { endpoint: endpoint.clone() }),
    }
}

async fn handshake(
    url: &SourceUrl,
    tls: &TlsConfig,
    stream: TcpStream,
    endpoint: &Endpoint,
) -> Result<Transport, OpenError> {
    let config = tls::client_config(tls, &[PROTOCOL])?;
    let host = url.server_name();
    let name = ServerName::try_from(host.clone()).map_err(|_| OpenError::NoName { host })?;
    let buffered = BufReader::with_capacity(GULP, Socket::Tcp(stream));
    let refused = |source: io::Error| match tls::refusal(&source, tls.section) {
        Some(why) => OpenError::Refused { endpoint: endpoint.clone(), why },
        None => OpenError::HungUp { endpoint: endpoint.clone(), source },
    };
    let stream = TlsConnector::from(Arc::new(config)).connect(name, buffered).await.map_err(refused)?;
    let (_, session) = stream.get_ref();
    // A port that serves several protocols has to have chosen this one; PostgreSQL always names it there.
    if url.begins_with_tls() && session.alpn_protocol() != Some(PROTOCOL) {
        return Err(OpenError::Foreign { endpoint: endpoint.clone() });
    }
    let peer = session
        .peer_certificates()
        .and_then(<[_]>::first)
        .map(|certificate| Peer::new(certificate, session.protocol_version(), tls.identity.is_some()));
    Ok(Transport {
        stream: Stream::Tls(Box::new(stream)),
        guard: Guard::off(),
        peer,
        mode: tls.mode,
        endpoint: endpoint.clone(),
    })
}

/// Once for each server.
fn say_that_it_is_plain(url: &SourceUrl, endpoint: &Endpoint) {
    static SAID: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.get_or_insert_default().insert(endpoint.to_string()) {
        return;
    }
    if url.must_be_local() {
        // Nobody has asked for more, and check says it.
        tracing::debug!(%endpoint, "PostgreSQL has no TLS; the connection stays on this machine");
    } else {
        tracing::warn!(
            %endpoint,
            "PostgreSQL has no TLS: its connections are not encrypted, as sslmode=prefer allows; set ssl = on there, and \
             sslmode=verify-full"
        );
    }
}

impl Transport {
    /// What somebody else has opened, such as two ends within one process.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static, endpoint: &Endpoint) -> Self {
        let stream = Stream::Given(Box::new(stream));
        Self { stream, guard: Guard::off(), peer: None, mode: SslMode::Disable, endpoint: endpoint.clone() }
    }

    fn plain(socket: Socket, guard: Guard, endpoint: &Endpoint) -> Self {
        let endpoint = endpoint.clone();
        Self { stream: Stream::Plain(socket), guard, peer: None, mode: SslMode::Disable, endpoint }
    }

    /// Where it leads.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The server's certificate; `None` if it is not encrypted.
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// What was asked for, or that it is plain.
    pub fn mode(&self) -> SslMode {
        self.mode
    }

    /// Lets what the server sends gather in the socket, without waking anybody, until the next read or write.
    ///
    /// # Errors
    /// If the system does not let go of it, and then it is of no more use.
    pub(super) fn rest(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(socket) => socket.rest(),
            Stream::Tls(stream) => stream.get_mut().0.get_mut().rest(),
            Stream::Given(_) => Ok(()),
        }
    }

    fn inner(&mut self) -> Pin<&mut (dyn Duplex + '_)> {
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket),
            Stream::Tls(stream) => Pin::new(stream.as_mut()),
            Stream::Given(stream) => Pin::new(stream.as_mut()),
        }
    }
}

trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = self.inner().poll_read(cx, buffer);
        if matches!(polled, Poll::Ready(Ok(()))) {
            self.guard.pass(&buffer.filled()[before..])?;
        }
        polled
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(cx)
    }
}

impl tokio_postgres::tls::TlsStream for Transport {
    fn channel_binding(&self) -> ChannelBinding {
        let end_point = self.peer.as_ref().and_then(Peer::end_point);
        end_point.map_or_else(ChannelBinding::none, |hash| ChannelBinding::tls_server_end_point(hash.to_vec()))
    }
}

/// TLS for tokio-postgres, over what has it already, if it is to have it.
pub(super) struct Established;

impl TlsConnect<Transport> for Established {
    type Stream = Transport;
    type Error = Infallible;
    type Future = Ready<Result<Transport, Infallible>>;

    fn connect(self, transport: Transport) -> Self::Future {
        ready(Ok(transport))
    }
}
