//! SQS, as far as walhouse uses it.
//!
//! AWS's own client signs and speaks; what is repeated is decided here, so its retries are off. A queue is asked for by its name
//! once. Whatever URL it then has, requests go to the configured endpoint.

use super::{
    letters,
    pending::{Destination, Item},
};
use crate::{
    config::{QueueConfig, WorkersConfig},
    retry::Kind,
};
use aws_sdk_sqs::{
    Client,
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig, timeout::TimeoutConfig},
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    types::{BatchResultErrorEntry, MessageAttributeValue, SendMessageBatchRequestEntry},
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use sha2::{Digest, Sha256};
use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A long poll takes 20 s by itself.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// A request that did not do what it should.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct QueueError {
    /// Whether another try can help without anybody's doing.
    pub kind: Kind,
    /// Whether it is that there is no such queue.
    pub is_missing: bool,
    /// Whether it is what was sent that is refused, and not the request: with less in it, it may be taken.
    pub is_too_much: bool,
    /// What happened, where, and what to do.
    pub message: String,
}

impl QueueError {
    /// One that another request is to be tried for.
    pub fn new(kind: Kind, message: String) -> Self {
        Self { kind, is_missing: false, is_too_much: false, message }
    }
}

/// What became of the messages of a batch, in their order.
pub type Sent = Vec<Result<(), Refusal>>;

/// Why one message of a batch was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whether it is the message's own fault, so that it will never be taken.
    pub of_the_message: bool,
    /// SQS's code for it.
    pub code: String,
}

/// What became of the entries of a batch, each of which has its place as its id. Of what the answer does not mention it is not
/// known.
pub(super) fn fates<'a>(
    count: usize,
    successful: impl Iterator<Item = &'a str>,
    failed: &[BatchResultErrorEntry],
    of_the_message: impl Fn(&BatchResultErrorEntry) -> bool,
) -> Sent {
    let unknown = || Err(Refusal { of_the_message: false, code: "without an answer".to_owned() });
    let mut fates: Sent = (0..count).map(|_| unknown()).collect();
    let refused = failed.iter().map(|failed| {
        let refusal = Refusal { of_the_message: of_the_message(failed), code: failed.code().to_owned() };
        (failed.id(), Err(refusal))
    });
    for (id, fate) in successful.map(|id| (id, Ok(()))).chain(refused) {
        if let Some(place) = id.parse().ok().and_then(|index: usize| fates.get_mut(index)) {
            *place = fate;
        }
    }
    fates
}

/// What SQS says of a message that it will never take, or of a request that has such messages in it. Whose fault it is
/// (`SenderFault`) says less: being too fast is the sender's too.
const OF_THE_MESSAGE: [&str; 7] = [
    "InvalidMessageContents",
    "InvalidParameterValue",
    "InvalidAttributeValue",
    "MissingParameter",
    "MessageTooLong",
    "BatchRequestTooLong",
    "ValidationError",
];

pub(super) fn is_of_the_message(code: &str) -> bool {
    let code = code.rsplit(['.', '#']).next().unwrap_or(code);
    OF_THE_MESSAGE.contains(&code)
}

/// The longest that FIFO's ids may be.
const LONGEST_FIFO_ID: usize = 128;

/// What FIFO takes as an id: the text itself, or if it has other characters than letters, digits and punctuation of ASCII, or
/// too many of them, its hash.
fn fifo_id(text: &str) -> Cow<'_, str> {
    if (1..=LONGEST_FIFO_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Cow::Borrowed(text);
    }
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// An attribute of a message.
pub(super) fn text(value: String) -> MessageAttributeValue {
    let value = MessageAttributeValue::builder().data_type("String").string_value(value).build();
    value.expect("an attribute with its type")
}

/// SQS.
pub struct Sqs {
    client: Client,
    config: QueueConfig,
    workers: WorkersConfig,
    endpoint: String,
    urls: Mutex<HashMap<Destination, String>>,
    /// Held by whoever creates queues.
    pub(super) creating: tokio::sync::Mutex<()>,
}

impl Sqs {
    /// A client; nothing is sent yet.
    pub async fn new(config: &QueueConfig, workers: &WorkersConfig) -> Self {
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .timeout_config(timeouts)
            .retry_config(RetryConfig::disabled());
        if let Some(region) = &config.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(url) = &config.endpoint_url {
            loader = loader.endpoint_url(url.clone());
            if config.is_emulator() && std::env::var_os("AWS_ACCESS_KEY_ID").is_none() {
                // An emulator wants any at all.
                loader = loader.credentials_provider(Credentials::new("walhouse", "walhouse", None, None, "emulator"));
            }
        }
        Self::over(Client::new(&loader.load().await), config, workers)
    }

    /// By way of `client`, which must repeat nothing by itself.
    pub fn over(client: Client, config: &QueueConfig, workers: &WorkersConfig) -> Self {
        let region = || config.region.as_deref().map_or_else(|| "AWS".to_owned(), |region| format!("AWS, {region}"));
        let endpoint = config.endpoint_url.clone().unwrap_or_else(region);
        Self {
            client,
            config: config.clone(),
            workers: workers.clone(),
            endpoint,
            urls: Mutex::default(),
            creating: tokio::sync::Mutex::default(),
        }
    }

    /// Where it is, for people.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The client itself.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What handles the messages, as it is configured.
    pub fn workers(&self) -> &WorkersConfig {
        &self.workers
    }

    /// Whether queues that are missing are created without being asked for: not in AWS, where they have owners.
    pub fn creates(&self) -> bool {
        self.config.is_emulator()
    }

    /// Whether its queues are FIFO queues.
    pub fn is_fifo(&self) -> bool {
        self.config.fifo
    }

    /// The name of a queue.
    pub fn name(&self, destination: Destination) -> String {
        let Destination { queue, dead } = destination;
        let name = if dead { queue.dead_letters() } else { queue.name() };
        format!("{}{name}{}", self.config.prefix, if self.config.fifo { ".fifo" } else { "" })
    }

    /// The URL of a queue.
    pub async fn url(&self, destination: Destination) -> Result<String, QueueError> {
        let known = self.urls.lock().unwrap_or_else(PoisonError::into_inner).get(&destination).cloned();
        if let Some(url) = known {
            return Ok(url);
        }
        let name = self.name(destination);
        let answer = self.client.get_queue_url().queue_name(&name).send().await;
        let answer = answer.map_err(|error| self.error(&error, destination))?;
        let url = answer.queue_url().ok_or_else(|| {
            QueueError::new(Kind::Transient, format!("SQS at {} has no URL for {name}", self.endpoint))
        })?;
        self.urls.lock().unwrap_or_else(PoisonError::into_inner).insert(destination, url.to_owned());
        Ok(url.to_owned())
    }

    /// Sends a batch.
    ///
    /// # Errors
    /// If it is not known what became of the messages: any of them may have been taken.
    pub async fn send(&self, destination: Destination, items: &[Item]) -> Result<Sent, QueueError> {
        let url = self.url(destination).await?;
        let entries = items.iter().enumerate().map(|(index, item)| self.entry(index, item)).collect();
        let answer = self.client.send_message_batch().queue_url(url).set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| self.error(&error, destination))?;
        let taken = answer.successful().iter().map(|taken| taken.id());
        Ok(fates(items.len(), taken, answer.failed(), |failed| is_of_the_message(failed.code())))
    }

    fn entry(&self, index: usize, item: &Item) -> SendMessageBatchRequestEntry {
        let event = &item.event;
        let marks = event.dead.as_deref().map(|reason| letters::marks(reason, letters::OUTBOX, 0));
        // What an event says by itself comes later, and counts.
        let own = event.attributes.iter().map(|(name, value)| (*name, value.clone()));
        let named = marks.into_iter().flatten().chain(own);
        let attributes = named.map(|(name, value)| (name.to_owned(), text(value)));
        let mut entry = SendMessageBatchRequestEntry::builder()
            .id(index.to_string())
            .message_body(&event.body)
            .set_message_attributes(Some(attributes.collect()));
        if self.config.fifo {
            let group = event.key.as_deref().unwrap_or(&event.id);
            entry = entry.message_group_id(fifo_id(group)).message_deduplication_id(fifo_id(&event.id));
        }
        entry.build().expect("an entry with its id and body")
    }

    /// What an error of AWS's client means.
    pub fn error<E, R>(&self, error: &SdkError<E, R>, destination: Destination) -> QueueError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug,
    {
        let (endpoint, queue) = (&self.endpoint, self.name(destination));
        let is_missing = matches!(error.code(), Some("AWS.SimpleQueueService.NonExistentQueue" | "QueueDoesNotExist"));
        let (kind, message) = match error {
            SdkError::ServiceError(_) => match error.code().unwrap_or("an error without a code") {
                _ if is_missing => {
                    (Kind::Definite, format!("SQS at {endpoint} has no queue {queue}: run walhouse provision"))
                }
                code @ ("AccessDenied"
                | "AccessDeniedException"
                | "InvalidClientTokenId"
                | "SignatureDoesNotMatch"
                | "UnrecognizedClientException"
                | "ExpiredToken") => (
                    Kind::Definite,
                    format!(
                        "SQS at {endpoint} does not let this identity use {queue} ({code}): see its policy in docker/ecs, and \
                         the credentials"
                    ),
                ),
                code => (Kind::Transient, format!("SQS at {endpoint} refuses a request for {queue}: {code}")),
            },
            SdkError::TimeoutError(_) => (Kind::Transient, format!("SQS at {endpoint} has not answered in time")),
            // Of what could not be built or signed, the cause says what is missing, such as a region.
            SdkError::ConstructionFailure(_) => {
                (Kind::Definite, format!("a request for {queue} could not be made: {}", DisplayErrorContext(error)))
            }
            // Not of the connection: it was not begun, since nobody could sign a request.
            SdkError::DispatchFailure(failure) if failure.is_other() => (
                Kind::Transient,
                format!(
                    "SQS at {endpoint} can not be asked without credentials ({}); give AWS_ACCESS_KEY_ID and \
                     AWS_SECRET_ACCESS_KEY, a profile, or a role to the task or the machine",
                    innermost(error)
                ),
            ),
            _ => (Kind::Transient, format!("SQS at {endpoint} can not be reached")),
        };
        if is_missing {
            // It may be made anew, and then it has another URL, perhaps.
            self.urls.lock().unwrap_or_else(PoisonError::into_inner).remove(&destination);
        }
        let is_too_much = error.code().is_some_and(is_of_the_message);
        QueueError { kind, is_missing, is_too_much, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifo_takes_any_key() {
        assert_eq!(fifo_id("order-7/a"), "order-7/a");
        let own = "018f3b5e-7c1a-8000-8000-0123456789ab";
        assert_eq!(fifo_id(own), own);
        let long = "x".repeat(129);
        let ids = ["user 1", "user  1", "größe", "", &long].map(fifo_id);
        assert!(ids.iter().all(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())), "{ids:?}");
        assert_ne!(ids[0], ids[1]);
        assert_eq!(fifo_id(&long[1..]), long[1..]);
    }

    #[test]
    fn being_too_fast_is_no_fault_of_the_message() {
        assert!(is_of_the_message("InvalidMessageContents"));
        assert!(is_of_the_message("AWS.SimpleQueueService.BatchRequestTooLong"));
        assert!(is_of_the_message("com.amazonaws.sqs#InvalidParameterValue"));
        assert!(!is_of_the_message("RequestThrottled") && !is_of_the_message("KmsThrottled"));
        assert!(!is_of_the_message("AccessDenied") && !is_of_the_message("ServiceUnavailable"));
    }
}
