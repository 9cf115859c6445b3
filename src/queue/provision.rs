//! The queues as they should be: each with the one of its dead letters, and what leads from one to the other.
//!
//! Nothing is ever removed, and an attribute is only set where it differs, so that to do it again does nothing. What others may
//! have put there by Terraform is compared in the same way.

use super::{
    client::{QueueError, Sqs},
    pending::Destination,
};
use crate::{config::WorkersConfig, event::envelope::Queue, retry::Kind};
use aws_sdk_sqs::types::QueueAttributeName as Name;
use serde::Serialize;
use std::{collections::HashMap, time::Duration};

/// How long a message waits in its queue, after which it is gone without a trace: for longer than anybody is away, and for less
/// than a dead letter, whose clock does not start anew.
const RETENTION: Duration = Duration::from_secs(13 * 86_400);
/// And in that of the dead letters: the longest that SQS knows. The clock runs from when the message was first sent.
const RETENTION_OF_THE_DEAD: Duration = Duration::from_secs(14 * 86_400);
/// The longest that a request for messages waits for one.
const LONG_POLL: Duration = Duration::from_secs(20);
/// A message is invisible for the handler's time, and for what lies before and after it.
const GRACE: Duration = Duration::from_secs(30);

/// What was done, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The queue is as it should be.
    Fits,
    /// It was not there.
    Create,
    /// These attributes have other values.
    Set(Vec<Change>),
}

/// An attribute that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its name.
    pub attribute: String,
    /// The value that it has; none if it has none.
    pub from: Option<String>,
    /// The value that it should have.
    pub to: String,
}

/// A queue, and what is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its whole name.
    pub queue: String,
    /// What is to be done.
    pub action: Action,
}

/// Creates what is missing and corrects what differs; with `dry_run`, only says so.
///
/// # Errors
/// What SQS says.
pub async fn provision(sqs: &Sqs, dry_run: bool) -> Result<Vec<Step>, QueueError> {
    let mut steps = Vec::new();
    for queue in Queue::ALL {
        let dead = Destination { queue, dead: true };
        let (step, arn) = one(sqs, dead, of_the_dead(), dry_run).await?;
        steps.push(step);
        let redrive = serde_json::json!({
            "deadLetterTargetArn": arn.unwrap_or_else(|| format!("the ARN of {}", sqs.name(dead))),
            "maxReceiveCount": (queue.retries() + 1).to_string(),
        });
        let live = Destination { queue, dead: false };
        let (step, _) =
            one(sqs, live, of_the_live(visibility(queue, sqs.workers()), &redrive.to_string()), dry_run).await?;
        steps.push(step);
    }
    Ok(steps)
}

/// How long a message is invisible while it is handled.
pub fn visibility(queue: Queue, workers: &WorkersConfig) -> Duration {
    let worker = match queue {
        Queue::DataSync => &workers.data_sync,
        Queue::AsyncOperations => &workers.operation,
        Queue::AuditLog => &workers.audit,
    };
    worker.timeout.map_or_else(|| queue.timeout(), |timeout| timeout.0) + GRACE
}

fn of_the_dead() -> Vec<(Name, String)> {
    vec![(Name::MessageRetentionPeriod, RETENTION_OF_THE_DEAD.as_secs().to_string())]
}

fn of_the_live(visibility: Duration, redrive: &str) -> Vec<(Name, String)> {
    vec![
        (Name::MessageRetentionPeriod, RETENTION.as_secs().to_string()),
        (Name::VisibilityTimeout, visibility.as_secs().to_string()),
        (Name::ReceiveMessageWaitTimeSeconds, LONG_POLL.as_secs().to_string()),
        (Name::RedrivePolicy, redrive.to_owned()),
    ]
}

/// One queue, and its ARN if it is there.
async fn one(
    sqs: &Sqs,
    destination: Destination,
    wanted: Vec<(Name, String)>,
    dry_run: bool,
) -> Result<(Step, Option<String>), QueueError> {
    let name = sqs.name(destination);
    let url = match sqs.url(destination).await {
        Ok(url) => url,
        Err(error) if error.is_missing => {
            if dry_run {
                return Ok((Step { queue: name, action: Action::Create }, None));
            }
            let mut request = sqs.client().create_queue().queue_name(&name);
            for (attribute, value) in &wanted {
                request = request.attributes(attribute.clone(), value);
            }
            if sqs.is_fifo() {
                request = request.attributes(Name::FifoQueue, "true");
            }
            request.send().await.map_err(|error| sqs.error(&error, destination))?;
            let arn = attributes(sqs, destination).await?.remove(&Name::QueueArn);
            return Ok((Step { queue: name, action: Action::Create }, arn));
        }
        Err(error) => return Err(error),
    };
    let present = attributes(sqs, destination).await?;
    let other: Vec<_> = wanted.into_iter().filter(|(name, value)| !same(present.get(name), value)).collect();
    let arn = present.get(&Name::QueueArn).cloned();
    if other.is_empty() {
        return Ok((Step { queue: name, action: Action::Fits }, arn));
    }
    if !dry_run {
        let mut request = sqs.client().set_queue_attributes().queue_url(url);
        for (attribute, value) in &other {
            request = request.attributes(attribute.clone(), value);
        }
        request.send().await.map_err(|error| sqs.error(&error, destination))?;
    }
    let change = |(attribute, to): (Name, String)| {
        let from = present.get(&attribute).filter(|from| !from.is_empty()).cloned();
        Change { attribute: attribute.as_str().to_owned(), from, to }
    };
    Ok((Step { queue: name, action: Action::Set(other.into_iter().map(change).collect()) }, arn))
}

async fn attributes(sqs: &Sqs, destination: Destination) -> Result<HashMap<Name, String>, QueueError> {
    let url = sqs.url(destination).await?;
    let answer = sqs.client().get_queue_attributes().queue_url(url).attribute_names(Name::All).send().await;
    let answer = answer.map_err(|error| sqs.error(&error, destination))?;
    answer
        .attributes
        .ok_or_else(|| QueueError::new(Kind::Transient, format!("SQS tells nothing of {}", sqs.name(destination))))
}

/// Whether an attribute has a value; of JSON, whatever its form.
fn same(present: Option<&String>, wanted: &str) -> bool {
    let Some(present) = present else { return false };
    let parse = |text: &str| serde_json::from_str::<HashMap<String, serde_json::Value>>(text).ok();
    match (parse(present), parse(wanted)) {
        // A number may be one, or the text of one.
        (Some(present), Some(wanted)) => wanted.iter().all(|(key, value)| {
            let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            present.get(key).is_some_and(|other| text(other) == text(value))
        }),
        _ => present == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_the_same_whatever_its_form() {
        let wanted = r#"{"deadLetterTargetArn":"arn:a","maxReceiveCount":"4"}"#;
        let same = |present: &str| super::same(Some(&present.to_owned()), wanted);
        assert!(same(r#"{ "maxReceiveCount": 4, "deadLetterTargetArn": "arn:a" }"#));
        assert!(!same(r#"{"deadLetterTargetArn":"arn:a","maxReceiveCount":"3"}"#));
        assert!(!same("") && !super::same(None, wanted) && super::same(Some(&"60".to_owned()), "60"));
    }

    #[test]
    fn a_message_is_invisible_for_longer_than_it_is_handled() {
        let workers = WorkersConfig::default();
        let seconds = Queue::ALL.map(|queue| visibility(queue, &workers).as_secs());
        assert_eq!(seconds, [60, 330, 35]);
    }

    #[test]
    fn what_waits_outlasts_a_long_absence_and_no_dead_letter() {
        assert!(RETENTION < RETENTION_OF_THE_DEAD && RETENTION > Duration::from_secs(12 * 86_400));
    }
}
