//! TLS before a server that has none; and somebody in between, who has a certificate of his own.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use walhouse::config::{SslMode, TlsConfig};

use super::certificates::Pair;

/// What a request for TLS has in the place of a version.
const SSL_REQUEST: [u8; 4] = [0x04, 0xd2, 0x16, 0x2f];

/// A port that takes TLS, and passes on what comes.
pub(crate) struct Front {
    port: u16,
    acceptor: Arc<Mutex<TlsAcceptor>>,
}

impl Front {
    /// Before a server at `port` that has no TLS.
    pub(crate) async fn to(port: u16, pair: &Pair) -> Self {
        Self::listen(port, pair, false).await
    }

    /// Between a client and PostgreSQL at `port`: TLS with the one, and TLS with the other, and everything read.
    pub(crate) async fn between(port: u16, pair: &Pair) -> Self {
        Self::listen(port, pair, true).await
    }

    async fn listen(server: u16, pair: &Pair, is_postgres: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let acceptor = Arc::new(Mutex::new(acceptor(pair)));
        let shared = acceptor.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // Either side hanging up is the end of it.
                tokio::spawn(async move {
                    if is_postgres {
                        between(client, acceptor, server).await
                    } else {
                        before(client, acceptor, server).await
                    }
                });
            }
        });
        Self { port, acceptor }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From now on new connections see this certificate.
    pub(crate) fn show(&self, pair: &Pair) {
        *self.acceptor.lock().unwrap_or_else(PoisonError::into_inner) = acceptor(pair);
    }
}

async fn before(client: TcpStream, acceptor: TlsAcceptor, port: u16) -> io::Result<()> {
    let mut client = acceptor.accept(client).await?;
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}

async fn between(mut client: TcpStream, acceptor: TlsAcceptor, port: u16) -> io::Result<()> {
    let mut request = [0; 8];
    client.read_exact(&mut request).await?;
    if request[4..] != SSL_REQUEST {
        return Err(io::Error::other("a client that does not ask for TLS"));
    }
    client.write_all(b"S").await?;
    let mut client = acceptor.accept(client).await?;
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    server.write_all(&request).await?;
    server.read_u8().await?;
    let tls = TlsConfig { section: "test", mode: SslMode::Require, roots: None, identity: None };
    let config = walhouse::tls::client_config(&tls, &[b"postgresql"]).expect("there are no files in it");
    let name = "localhost".try_into().expect("a name");
    let mut server = TlsConnector::from(Arc::new(config)).connect(name, server).await?;
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}

fn acceptor(pair: &Pair) -> TlsAcceptor {
    let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("a key");
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(chain.expect("certificates"), key)
        .expect("a pair");
    config.alpn_protocols = vec![b"postgresql".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
