//! Metrics and health, for Prometheus and whoever supervises the process; the API, for people and what they build; and the
//! status page, for people alone.
//!
//! - `/metrics`: everything of [`crate::telemetry::names`], as Prometheus reads it.
//! - `/healthz`: 200 as long as the process serves.
//! - `/readyz`: 200 when every copy is done and the lag is small; otherwise 503 with the reasons.
//! - `/api/v1`: the [`api`], which asks for tokens.
//! - `/`: the status page. Its files are open, and what it shows comes from the API.
//!
//! What a client may hold is bounded: so many connections at once, one request each, for so long.
//! Metrics and health ask for no password, so the default address is a loopback one.

pub mod api;
mod auth;
mod exposition;
mod history;
mod limits;
mod metrics_page;
mod page;
mod rate;

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::RawQuery,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use self::{
    api::{Api, Route},
    history::History,
    limits::{Bounded, Peer},
    metrics_page::MetricsPage,
};
use crate::{
    clickhouse::presence::presence,
    status::{Account, Status},
    telemetry::recent,
};

/// Who is further behind is not ready.
const READY_LAG_SECONDS: f64 = 10.0;
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The address can not be served.
#[derive(Debug, thiserror::Error)]
#[error("http.listen: {address} can not be served ({source}); end what listens there, or choose another address")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// Takes the address, so that a wrong one is known before anything else is begun.
///
/// # Errors
/// When the address is in use, or is none of this machine's.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, metrics: PrometheusHandle, status: Arc<Status>, api: Arc<Api>) {
    let history = Arc::<History>::default();
    let metrics = MetricsPage::new(metrics);
    let router = router(metrics.clone(), Arc::clone(&status), api, Arc::clone(&history));
    tokio::join!(run(Bounded::new(listener), router), history.take(&metrics, &status), metrics.keep());
}

/// What the status page shows beside what the API has anyway.
fn shown(history: Arc<History>, status: Arc<Status>) -> Vec<Route> {
    let history = move |RawQuery(query): RawQuery| async move {
        history.answer(query.as_deref(), &status.account(), presence().absence().as_ref())
    };
    let log = || async { history::json(&serde_json::json!({ "lines": recent::lines() })) };
    vec![Route::look("/history", get(history)), Route::look("/log", get(log))]
}

async fn run(listener: Bounded, router: Router) {
    // axum documents that this neither ends nor fails; accept errors are waited out in there.
    if let Err(error) = axum::serve(listener, router.into_make_service_with_connect_info::<Peer>()).await {
        tracing::error!(%error, "metrics and health are not served any more");
    }
}

fn router(metrics: MetricsPage, status: Arc<Status>, api: Arc<Api>, history: Arc<History>) -> Router {
    let metrics = move || async move { exposed(metrics).await };
    let shown = shown(history, Arc::clone(&status));
    let ready = move || async move { readiness(&status.account()) };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .merge(page::routes())
        .merge(api.router(shown))
        .fallback(|| async {
            (StatusCode::NOT_FOUND, "there are /, /metrics, /healthz, /readyz and /api/v1/openapi.json\n")
        })
        .layer(axum::middleware::map_response(one_request))
}

/// The metrics, for Prometheus.
async fn exposed(metrics: MetricsPage) -> Response {
    match metrics.scraped().await {
        Some(page) => ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], page).into_response(),
        None => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be put into words\n").into_response(),
    }
}

/// Without keep-alive nobody occupies a connection between two requests.
async fn one_request(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn readiness(account: &Account) -> Response {
    let reasons = unready(account);
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut lines = if reasons.is_empty() { vec!["ready".to_owned()] } else { reasons };
    if account.stopped > 0 {
        // The others go on, and no restart would help this one.
        lines.push(format!("note: {} stopped; walhouse verify says why", tables(account.stopped)));
    }
    (status, lines.join("\n") + "\n").into_response()
}

fn unready(account: &Account) -> Vec<String> {
    let mut reasons = Vec::new();
    if !account.streaming {
        let phase = if account.phase.is_empty() { "starting" } else { &account.phase };
        reasons.push(format!("not streaming: {phase}"));
    }
    if !account.reconciled {
        reasons.push("the source's tables have not been looked at yet".to_owned());
    }
    if account.copying > 0 {
        reasons.push(format!("copying {}", tables(account.copying)));
    }
    if let Some(bytes) = account.replaying {
        reasons
            .push(format!("a replay has {bytes} bytes of WAL to deliver again, and new changes wait until it is done"));
    }
    if account.lag_seconds >= READY_LAG_SECONDS {
        reasons.push(format!("{:.1} s behind; ready below {READY_LAG_SECONDS:.0} s", account.lag_seconds));
    }
    reasons
}

fn tables(count: usize) -> String {
    format!("{count} table{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        sync::Semaphore,
    };

    use tokio_util::sync::CancellationToken;

    use super::{limits::LIFETIME, *};
    use crate::config::Config;

    /// A server on a free port, with one counter.
    async fn started(status: &Arc<Status>, connections: usize, lifetime: Duration) -> SocketAddr {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || metrics::counter!("walhouse_probe_total").increment(7));
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let bounded = Bounded { listener, free: Arc::new(Semaphore::new(connections)), lifetime };
        let config = Config::new("postgres://walhouse@localhost/shop".parse().unwrap());
        let api = Api::new(Arc::new(config), CancellationToken::new());
        tokio::spawn(run(
            bounded,
            router(MetricsPage::new(recorder.handle()), Arc::clone(status), api, Arc::default()),
        ));
        address
    }

    async fn send(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
        let answer = send(address, &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn each_page_answers_get_and_nothing_else_is_there() {
        let address = started(&Arc::default(), 4, LIFETIME).await;
        assert_eq!(ask(address, "GET", "/healthz").await, (200, "ok\n".to_owned()));
        let metrics = send(address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
        assert!(metrics.contains("walhouse_probe_total 7"), "{metrics}");
        assert!(ask(address, "GET", "/").await.1.contains("<title>walhouse</title>"));
        assert_eq!(ask(address, "POST", "/").await.0, 405);
        assert_eq!(ask(address, "GET", "/page").await.0, 404);
        assert_eq!(ask(address, "POST", "/metrics").await.0, 405);
        assert_eq!(ask(address, "DELETE", "/healthz").await.0, 405);
        assert!(send(address, "what is this?\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    }

    #[tokio::test]
    async fn readiness_names_every_reason_and_mentions_stopped_tables() {
        let status = Arc::<Status>::default();
        let address = started(&status, 4, LIFETIME).await;
        let (code, body) = ask(address, "GET", "/readyz").await;
        assert_eq!(
            (code, body.as_str()),
            (503, "not streaming: starting\nthe source's tables have not been looked at yet\n")
        );
        status.update(|account| {
            *account =
                Account { streaming: true, reconciled: true, copying: 1, lag_seconds: 12.34, ..Account::default() };
        });
        let (code, body) = ask(address, "GET", "/readyz").await;
        assert_eq!((code, body.as_str()), (503, "copying 1 table\n12.3 s behind; ready below 10 s\n"));
        status.update(|account| (account.copying, account.lag_seconds, account.replaying) = (0, 0.0, Some(7)));
        let (code, body) = ask(address, "GET", "/readyz").await;
        assert!(code == 503 && body.starts_with("a replay has 7 bytes of WAL to deliver again"), "{body}");
        status.update(|account| (account.replaying, account.lag_seconds, account.stopped) = (None, 9.9, 2));
        let (code, body) = ask(address, "GET", "/readyz").await;
        assert_eq!((code, body.as_str()), (200, "ready\nnote: 2 tables stopped; walhouse verify says why\n"));
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_cut_off_and_makes_room() {
        let address = started(&Arc::default(), 1, Duration::from_millis(100)).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(b"GET /healthz HTT").await.unwrap();
        assert_eq!(ask(address, "GET", "/healthz").await.0, 200);
        let mut rest = Vec::new();
        // Closed or reset: in either case it has ended.
        let _ = silent.read_to_end(&mut rest).await;
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_what_to_do() {
        let taken = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(address).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("http.listen: {address} can not be served (")), "{error}");
        assert!(error.ends_with("or choose another address"), "{error}");
    }
}
