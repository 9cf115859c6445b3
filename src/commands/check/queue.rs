//! What `[queue]` adds to `walhouse check`: SQS, and the queues as `walhouse provision` would make them.

use std::time::Duration;

use super::{Found, Report, failed, failed_as_told, fine, warning};
use crate::{
    config::Config,
    queue::{
        client::{QueueError, Sqs},
        provision::{Action, Change, provision},
    },
    retry::Kind,
};

const AREA: &str = "queue";
/// For all of the queues.
const TIMEOUT: Duration = Duration::from_secs(20);
const PROVISION: &str = "walhouse provision";
/// Without it, what ends its worker comes again for as long as the queue keeps it.
const REDRIVE_POLICY: &str = "RedrivePolicy";

/// Nothing without `[queue]`.
pub(super) async fn check(config: &Config) -> Report {
    let mut report = Report::default();
    let Some(queue) = &config.queue else { return report };
    let sqs = Sqs::new(queue, &config.workers).await;
    let steps = match tokio::time::timeout(TIMEOUT, provision(&sqs, true)).await {
        Ok(Ok(steps)) => steps,
        Ok(Err(error)) => {
            report.push(AREA, "SQS", refused(&error));
            return report;
        }
        Err(_) => {
            let what = format!("{} has not answered within {} s", sqs.endpoint(), TIMEOUT.as_secs());
            report.push(AREA, "SQS", failed(what, AWAY));
            return report;
        }
    };
    report.push(AREA, "SQS", fine(sqs.endpoint()));
    for step in steps {
        report.push(AREA, step.queue, queue_found(step.action, sqs.creates()));
    }
    report
}

const AWAY: &str = "correct queue.endpoint_url or queue.region, or see to it that SQS can be reached from here";

fn refused(error: &QueueError) -> Found {
    if error.message.contains("; ") {
        return failed_as_told(&error.message);
    }
    let remedy = match error.kind {
        Kind::Definite => {
            "give this identity sqs:GetQueueUrl and sqs:GetQueueAttributes, as docker/ecs/iam.tf does, and see that the \
             credentials and queue.region are right"
        }
        Kind::Transient => AWAY,
    };
    failed(error.to_string(), remedy)
}

/// `creates`: what is missing or differs is put right by the first run.
fn queue_found(action: Action, creates: bool) -> Found {
    match action {
        Action::Fits => fine("is there, as it should be"),
        Action::Create if creates => fine("will be created"),
        Action::Create => failed("is not there", PROVISION),
        Action::Set(changes) => {
            let differs: Vec<String> = changes.iter().map(difference).collect();
            let differs = differs.join(", ");
            match changes.iter().any(|change| change.attribute == REDRIVE_POLICY) {
                _ if creates => fine(format!("will be corrected: {differs}")),
                true => failed(differs, PROVISION),
                false => warning(differs, PROVISION),
            }
        }
    }
}

fn difference(Change { attribute, from, to }: &Change) -> String {
    format!("{attribute} is {}, and should be {to}", from.as_deref().unwrap_or("absent"))
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};

    #[test]
    fn what_differs_is_a_warning_and_a_queue_without_its_dead_letters_will_not_work() {
        let set = |attribute: &str, from: Option<&str>| {
            let (attribute, from) = (attribute.to_owned(), from.map(str::to_owned));
            Action::Set(vec![Change { attribute, from, to: "60".to_owned() }])
        };
        let found = queue_found(set("VisibilityTimeout", Some("30")), false);
        assert_eq!(
            (found.outcome, found.what.as_str()),
            (Outcome::Warning, "VisibilityTimeout is 30, and should be 60")
        );
        assert_eq!(found.remedy.as_deref(), Some("walhouse provision"));
        assert_eq!(queue_found(set("RedrivePolicy", None), false).outcome, Outcome::Failed);
        assert_eq!(queue_found(Action::Create, false).outcome, Outcome::Failed);
        // An emulator's are walhouse's own to make.
        assert_eq!(queue_found(Action::Create, true).outcome, Outcome::Ok);
        assert_eq!(queue_found(set("RedrivePolicy", None), true).outcome, Outcome::Ok);
    }
}
