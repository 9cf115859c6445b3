//! The way to ClickHouse over TLS.
//!
//! The library's own client has no say in whom to trust and what certificate to show. This one differs from it in that alone.
//! The files are looked at again after a while, so that what was renewed is used without a restart; in between, sessions of TLS
//! are resumed.

use crate::{
    config::TlsConfig,
    tls::{self, TlsError},
};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use rustls::ClientConfig;
use std::{
    error::Error,
    future::{Future, ready},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
use tower_service::Service;

/// As in the library's own client; ClickHouse ends idle connections after three seconds.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// For so long what was read from files is taken to be what is in them.
const FRESH: Duration = Duration::from_secs(60);

/// A client whose connections are protected so.
pub(super) fn client(tls: TlsConfig) -> clickhouse::Client {
    let mut http = HttpConnector::new();
    http.set_keepalive(Some(TCP_KEEPALIVE));
    http.enforce_http(false);
    let connector = Connector { http, tls: Arc::new(tls), read: Arc::default() };
    let pool = Client::builder(TokioExecutor::new()).pool_idle_timeout(POOL_IDLE_TIMEOUT).build(connector);
    clickhouse::Client::with_http_client(pool)
}

/// Connects, and takes up TLS.
#[derive(Clone)]
struct Connector {
    http: HttpConnector,
    tls: Arc<TlsConfig>,
    read: Arc<Mutex<Option<Read>>>,
}

/// What the files held, and when.
type Read = (Instant, Arc<ClientConfig>);

impl Connector {
    fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, config)) = read.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(tls::client_config(&self.tls, &[])?);
        *read = Some((Instant::now(), Arc::clone(&config)));
        Ok(config)
    }
}

type BoxError = Box<dyn Error + Send + Sync>;
type Connecting = Pin<Box<dyn Future<Output = Result<MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>> + Send>>;

impl Service<axum::http::Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Connecting;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Service::<axum::http::Uri>::poll_ready(&mut self.http, context).map_err(Into::into)
    }

    fn call(&mut self, uri: axum::http::Uri) -> Connecting {
        match self.config() {
            Ok(config) => Box::pin(HttpsConnector::from((self.http.clone(), config)).call(uri)),
            Err(error) => Box::pin(ready(Err(error.into()))),
        }
    }
}
