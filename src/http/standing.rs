//! `GET /api/v1/status`: what `walhouse status --json` says, asked once in a few seconds however many look.

use super::history::json;
use crate::{commands::status, config::Config};
use axum::response::Response;
use serde_json::Value;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// So long it is told again.
const FRESH: Duration = Duration::from_secs(3);

pub(super) struct Standing {
    config: Arc<Config>,
    last: Mutex<Option<(Instant, Value)>>,
}

impl Standing {
    pub(super) fn new(config: Arc<Config>) -> Self {
        Self { config, last: Mutex::default() }
    }

    pub(super) async fn answer(&self) -> Response {
        let mut last = self.last.lock().await;
        let fresh = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH);
        if fresh.is_none() {
            *last = Some((Instant::now(), status::look(&self.config).await.json()));
        }
        json(&last.as_ref().map(|(_, told)| told))
    }
}
