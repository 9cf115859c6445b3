//! The API under `/api/v1`: what `walhouse status` and `walhouse dlq` show, and what operators ask for, as JSON.
//!
//! It has no ways of its own: looks and deeds are those of the commands. What it adds is who may ([`super::auth`]), how often
//! ([`super::rate`]), and that every deed is heard of by the audit log before it is done ([`audit`]). Every request passes
//! the gate in [`Api::admit`] first. `openapi.json` describes all of it, and tests hold the two to each other.
//!
//! Metrics and health are served by the same listener and must not suffer: so only [`AT_ONCE`] requests are in hand here, the
//! others are sent away at once, and none waits for another server longer than a connection lives.

mod act;
mod answer;
mod audit;
mod letters;
mod look;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{ConnectInfo, DefaultBodyLimit, Request, State},
    http::{HeaderMap, HeaderValue, Method, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use self::{answer::Refusal, audit::Audit, look::Looks};
use super::{
    auth::{Access, Denied, Role},
    limits::Peer,
    rate::Bucket,
};
use crate::config::Config;

const ROOT: &str = "/api/v1";
/// A request's body, in bytes.
const LONGEST_BODY: usize = 64 << 10;
/// Requests in hand at once.
const AT_ONCE: usize = 16;
/// Requests with a role, of each role: in a second, and at once.
const RATE: (u32, u32) = (20, 40);
/// Requests that are denied. Whoever guesses tokens gets that many answers, and the audit log that many events.
const DENIED_RATE: (u32, u32) = (1, 10);
const RETRY_AT_ONCE: Duration = Duration::from_secs(1);
/// Who acts, as whoever has the operator's token says it.
const ACTOR: &str = "x-walhouse-actor";
const LONGEST_ACTOR: usize = 128;

/// What all requests share.
pub struct Api {
    config: Arc<Config>,
    access: Access,
    viewers: Bucket,
    operators: Bucket,
    denied: Bucket,
    at_once: Arc<Semaphore>,
    looks: Arc<Looks>,
    audit: Audit,
    /// Held by whoever has dead letters in hand: two would hide them from each other.
    letters: Arc<Mutex<()>>,
    stop: CancellationToken,
}

/// Whose request it is.
#[derive(Clone, Debug)]
struct Visitor {
    role: Role,
    /// What the audit log calls who acts.
    actor: String,
    address: Option<SocketAddr>,
}

/// A path below [`ROOT`], with its one method.
pub(super) struct Route {
    path: &'static str,
    method: Method,
    needs: Role,
    handler: MethodRouter<Arc<Api>>,
}

impl Route {
    /// One for everybody who may look.
    pub(super) fn look(path: &'static str, handler: MethodRouter<Arc<Api>>) -> Self {
        Self { path, method: Method::GET, needs: Role::Viewer, handler }
    }

    fn act(path: &'static str, handler: MethodRouter<Arc<Api>>) -> Self {
        Self { path, method: Method::POST, needs: Role::Operator, handler }
    }
}

fn routes() -> Vec<Route> {
    vec![
        Route::look("/openapi.json", get(look::openapi)),
        Route::look("/role", get(look::role)),
        Route::look("/status", get(look::status)),
        Route::look("/tables", get(look::tables)),
        Route::look("/queues", get(look::queues)),
        Route::look("/dlq/{queue}", get(letters::list)),
        // It shows data, which a viewer never sees.
        Route { needs: Role::Operator, ..Route::look("/dlq/{queue}/{event}", get(letters::show)) },
        Route::act("/dlq/{queue}/redrive", post(letters::redrive)),
        Route::act("/pause", post(act::pause)),
        Route::act("/resume", post(act::resume)),
        Route::act("/resync", post(act::resync)),
    ]
}

impl Api {
    /// The API of this process. What it has begun in the background ends with `stop`.
    pub fn new(config: Arc<Config>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            access: Access::new(&config.http),
            viewers: Bucket::new(RATE.0, RATE.1),
            operators: Bucket::new(RATE.0, RATE.1),
            denied: Bucket::new(DENIED_RATE.0, DENIED_RATE.1),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
            looks: Arc::new(Looks::new(Arc::clone(&config))),
            audit: Audit::new(Arc::clone(&config)),
            letters: Arc::default(),
            config,
            stop,
        })
    }

    /// All paths, with `more` that other parts of the process answer; each behind the gate.
    pub(super) fn router(self: Arc<Self>, more: Vec<Route>) -> Router {
        let gated = |needs| middleware::from_fn_with_state((Arc::clone(&self), needs), gate);
        let mut api = Router::new();
        for Route { path, method, needs, handler } in routes().into_iter().chain(more) {
            let handler = handler.fallback(|| async move { Refusal::method(&method) });
            api = api.route(path, handler.layer(gated(needs)));
        }
        let nothing = || async { Refusal::no_path(ROOT) };
        let api = api.fallback(get(nothing).post(nothing).layer(gated(Role::Viewer)));
        let api = api.layer(DefaultBodyLimit::max(LONGEST_BODY)).with_state(Arc::clone(&self));
        Router::new().nest(ROOT, api).layer(middleware::map_response(sealed))
    }

    /// Whether a request may go on, and as whose.
    fn admit(&self, request: &Request, needs: Role) -> Result<(Visitor, OwnedSemaphorePermit), Refusal> {
        let address = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(Peer(address))| *address);
        let now = Instant::now();
        let role = self.access.role(request.uri(), request.headers());
        let role = role.map_err(|denied| self.deny(denied, None, request, address, now))?;
        let bucket = if role == Role::Operator { &self.operators } else { &self.viewers };
        bucket.take(now).map_err(|wait| Refusal::too_many(wait, "too many requests"))?;
        let allowed = self.access.allow(role, needs);
        allowed.map_err(|denied| self.deny(denied, Some(role), request, address, now))?;
        let actor = actor(request.headers())?.unwrap_or_else(|| role.label().to_owned());
        let permit = Arc::clone(&self.at_once).try_acquire_owned();
        let permit = permit.map_err(|_| Refusal::too_many(RETRY_AT_ONCE, "too many requests are in hand"))?;
        Ok((Visitor { role, actor, address }, permit))
    }

    /// Refuses a request, so often in a second with a reason; an attempt to act is for the audit log.
    fn deny(
        &self,
        denied: Denied,
        role: Option<Role>,
        request: &Request,
        address: Option<SocketAddr>,
        now: Instant,
    ) -> Refusal {
        if let Err(wait) = self.denied.take(now) {
            return Refusal::too_many(wait, "too many requests without the right to them");
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let claimed = actor(request.headers()).ok().flatten();
            self.audit.denied(denied, role, request.uri().path(), claimed, address);
        }
        Refusal::denied(denied)
    }
}

async fn gate(State((api, needs)): State<(Arc<Api>, Role)>, mut request: Request, next: Next) -> Response {
    match api.admit(&request, needs) {
        Ok((visitor, _permit)) => {
            request.extensions_mut().insert(visitor);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

fn actor(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(named) = headers.get(ACTOR) else { return Ok(None) };
    let named = std::str::from_utf8(named.as_bytes()).ok().map(str::trim);
    let fits =
        |name: &&str| !name.is_empty() && name.chars().count() <= LONGEST_ACTOR && !name.contains(char::is_control);
    match named.filter(fits) {
        Some(name) => Ok(Some(name.to_owned())),
        None => Err(Refusal::bad(format!("{ACTOR}: give a name of 1 to {LONGEST_ACTOR} characters, or leave it out"))),
    }
}

/// Answers are nobody else's, of no later moment, and nothing but what they say they are.
async fn sealed(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn all() -> Vec<Route> {
        routes().into_iter().chain(crate::http::shown(Arc::default(), Arc::default())).collect()
    }

    #[test]
    fn the_document_has_each_path_with_its_method_and_no_other() {
        let document: Value = serde_json::from_str(look::OPENAPI).unwrap();
        assert_eq!(document["servers"][0]["url"], ROOT);
        let documented: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
                methods.map(|method| (path.clone(), method.to_uppercase())).collect::<Vec<_>>()
            })
            .collect();
        let served = all().into_iter().map(|route| (route.path.to_owned(), route.method.to_string())).collect();
        assert_eq!(documented, served);
    }

    #[test]
    fn the_document_says_what_can_become_of_every_request() {
        let document: Value = serde_json::from_str(look::OPENAPI).unwrap();
        for route in all() {
            let operation = &document["paths"][route.path][route.method.as_str().to_lowercase()];
            let mut needed = vec!["400", "401", "403", "429"];
            needed.push(if route.method == Method::POST { "202" } else { "200" });
            if route.method == Method::POST {
                needed.extend(["413", "415", "503", "504"]);
            }
            for status in needed {
                let of = &operation["responses"][status];
                let reference = of["$ref"].as_str().and_then(|it| document.pointer(it.trim_start_matches('#')));
                let described = reference.unwrap_or(of)["description"].is_string();
                assert!(described, "{} {}: {status}", route.method, route.path);
            }
            assert!(operation["operationId"].is_string() && operation["summary"].is_string(), "{}", route.path);
        }
    }
}
