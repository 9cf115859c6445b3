//! What the audit log hears of operators: a SecurityEventOccurred for each deed, and for each attempt at one that is denied.
//!
//! It hears of a deed before it is done, and if it can not, the deed is not done: nobody acts unseen. So the event says that
//! somebody was allowed to; should the deed then fail, a second one with the same correlation id says that. If it is not
//! known whether the event was taken, the deed is not done either: at worst the log has one too many, never one too few.
//!
//! Without `[queue]` there is no audit log, and a line of the process's log has to do.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{
    super::auth::{Denied, Role},
    Visitor,
};
use crate::{
    config::Config,
    event::envelope::{EventType, Metadata, VERSION},
    queue::{client::Sqs, outgoing::Outgoing},
};

/// So long SQS has to take an event; whoever asked is waiting.
const PATIENCE: Duration = Duration::from_secs(4);

/// What an operator does, as the audit log has it.
#[derive(Clone, Debug)]
pub(super) struct Deed {
    /// Such as `walhouse.pause`.
    pub(super) name: String,
    /// What it is done to.
    pub(super) target: String,
    pub(super) details: Value,
}

/// The way to the audit log.
pub(super) struct Audit {
    config: Arc<Config>,
    sqs: Arc<OnceCell<Sqs>>,
}

/// A deed that the log has heard of.
pub(super) struct Heard {
    pub(super) event_id: String,
    correlation_id: String,
}

impl Audit {
    pub(super) fn new(config: Arc<Config>) -> Self {
        Self { config, sqs: Arc::default() }
    }

    /// Tells that a visitor was allowed a deed.
    ///
    /// # Errors
    /// Why nobody heard it.
    pub(super) async fn allowed(&self, visitor: &Visitor, deed: &Deed) -> Result<Heard, String> {
        let correlation_id = uuid();
        let event_id = self.tell(deed, visitor, &correlation_id, None).await?;
        Ok(Heard { event_id, correlation_id })
    }

    /// Tells that a deed which was allowed has failed.
    pub(super) async fn failed(&self, visitor: &Visitor, deed: &Deed, heard: &Heard, why: &str) {
        if let Err(error) = self.tell(deed, visitor, &heard.correlation_id, Some(why)).await {
            tracing::warn!(deed = deed.name, error, "the audit log could not be told that this has failed");
        }
    }

    async fn tell(
        &self,
        deed: &Deed,
        by: &Visitor,
        correlation: &str,
        failure: Option<&str>,
    ) -> Result<String, String> {
        let mut deed = deed.clone();
        deed.details["role"] = json!(by.role.label());
        deed.details["address"] = json!(by.address.map(|address| address.ip().to_string()));
        if let Some(why) = failure {
            deed.details["error"] = json!(why);
        }
        let outcome = if failure.is_none() { "success" } else { "failure" };
        send(&self.config, &self.sqs, &by.actor, &deed, outcome, correlation).await
    }

    /// Tells of an attempt that is denied. Nobody waits for it: nothing is done.
    pub(super) fn denied(
        &self,
        why: Denied,
        role: Option<Role>,
        path: &str,
        claimed: Option<String>,
        address: Option<SocketAddr>,
    ) {
        let last = path.rsplit('/').next().unwrap_or_default();
        // The path is a stranger's: only what is a deed is a name.
        let known = ["pause", "resume", "resync", "redrive"].contains(&last);
        let deed = Deed {
            name: if known { format!("walhouse.{last}") } else { "walhouse.api".to_owned() },
            target: path.chars().take(256).collect(),
            details: json!({
                "error": why.to_string(), "role": role.map(Role::label), "claimedActor": claimed,
                "address": address.map(|address| address.ip().to_string())
            }),
        };
        let (config, sqs) = (Arc::clone(&self.config), Arc::clone(&self.sqs));
        let actor = role.map_or("unknown", Role::label);
        tokio::spawn(async move {
            if let Err(error) = send(&config, &sqs, actor, &deed, "failure", &uuid()).await {
                tracing::warn!(deed = deed.name, error, "the audit log could not be told that this was denied");
            }
        });
    }
}

async fn send(
    config: &Config,
    sqs: &OnceCell<Sqs>,
    actor: &str,
    deed: &Deed,
    outcome: &str,
    correlation: &str,
) -> Result<String, String> {
    let event_id = uuid();
    let Deed { name, target, details } = deed;
    tracing::info!(event_id, event_type = name, acting_user_id = actor, target_resource = target, outcome, %details, "audit");
    let Some(queue) = &config.queue else { return Ok(event_id) };
    let of = EventType::SecurityEventOccurred;
    let metadata = Metadata {
        event_id: event_id.clone(),
        event_timestamp: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
        event_type: of.name().to_owned(),
        event_version: VERSION.to_owned(),
        correlation_id: correlation.to_owned(),
        source_service: "walhouse".to_owned(),
        position: None,
    };
    let payload = json!({
        "eventType": name, "actingUserId": actor, "targetResource": target, "outcome": outcome, "details": details
    });
    let event = Outgoing::own(of, metadata, &payload, None).map_err(|misfit| misfit.to_string())?;
    let told = async { sqs.get_or_init(|| Sqs::new(queue, &config.workers)).await.tell(event).await };
    let late = || Err(format!("SQS has not answered within {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, told).await.unwrap_or_else(|_| late()).map(|()| event_id)
}

fn uuid() -> String {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string()
}
