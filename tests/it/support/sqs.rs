//! A real SQS protocol: the emulator that all tests share, and what is in its queues.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::{Message, MessageAttributeValue, MessageSystemAttributeName, QueueAttributeName};
use serde_json::Value;

use super::eventually;
use super::process::{Server, free_port};

/// The emulator.
pub(crate) struct Sqs {
    server: Server,
    port: u16,
}

/// A message as a consumer sees it.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) body: Value,
    pub(crate) attributes: BTreeMap<String, String>,
}

impl Sqs {
    /// The one of this test run; each test has a prefix of its own.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Sqs>> = OnceLock::new();
        SHARED.get_or_init(|| Self::started("sqs")).clone()
    }

    /// One for this test alone, which it may end.
    pub(crate) fn private() -> Arc<Self> {
        Self::started(&format!("sqs-{:08x}", rand::random::<u32>()))
    }

    fn started(name: &str) -> Arc<Self> {
        let port = free_port();
        let server = Server::new("sqs", name, vec!["--port".to_owned(), port.to_string()]);
        server.start();
        Arc::new(Self { server, port })
    }

    /// Ends it, and with it all that is in its queues.
    pub(crate) fn stop(&self) {
        self.server.stop();
    }

    /// Starts it again at the same port, without any queue.
    pub(crate) fn start(&self) {
        self.server.start();
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The processor time that it has taken so far.
    pub(crate) fn processor_seconds(&self) -> f64 {
        self.server.processor_seconds()
    }

    /// `[queue]` with this prefix, by way of `port`, and nobody who handles what is in it.
    pub(crate) fn config(port: u16, prefix: &str) -> String {
        format!("{}[workers]\nenabled = false\n", Self::handled(port, prefix))
    }

    /// The same, with workers.
    pub(crate) fn handled(port: u16, prefix: &str) -> String {
        format!(
            "[queue]\nendpoint_url = \"http://127.0.0.1:{port}\"\nregion = \"eu-central-1\"\nprefix = \"{prefix}\"\n"
        )
    }

    pub(crate) fn client(&self) -> Client {
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(format!("http://127.0.0.1:{}", self.port))
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build();
        Client::from_conf(config)
    }

    pub(crate) async fn url(&self, queue: &str) -> String {
        // It may be about to be created.
        let answer = eventually(Duration::from_secs(20), async || {
            self.client().get_queue_url().queue_name(queue).send().await.map_err(|error| format!("{queue}: {error:?}"))
        });
        answer.await.queue_url.expect("it has a URL")
    }

    pub(crate) async fn attribute(&self, queue: &str, name: QueueAttributeName) -> Option<String> {
        let url = self.url(queue).await;
        let answer =
            self.client().get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::All).send();
        answer.await.expect("its attributes").attributes.and_then(|mut all| all.remove(&name))
    }

    /// Sends a message as somebody else would.
    pub(crate) async fn send(&self, queue: &str, body: &str) {
        let url = self.url(queue).await;
        self.client().send_message().queue_url(url).message_body(body).send().await.expect("it is sent");
    }

    /// Sends a message with attributes; to a FIFO queue, into `group`.
    pub(crate) async fn send_with(&self, queue: &str, body: &str, attributes: &[(&str, &str)], group: Option<&str>) {
        let value = |value: &str| {
            let value = MessageAttributeValue::builder().data_type("String").string_value(value).build();
            value.expect("an attribute with its type")
        };
        let attributes = attributes.iter().map(|(name, text)| ((*name).to_owned(), value(text))).collect();
        let mut request = self.client().send_message().queue_url(self.url(queue).await).message_body(body);
        if let Some(group) = group {
            request = request.message_group_id(group).message_deduplication_id(format!("{:x}", rand::random::<u64>()));
        }
        request.set_message_attributes(Some(attributes)).send().await.expect("it is sent");
    }

    /// Sets an attribute of a queue, as somebody else would.
    pub(crate) async fn set(&self, queue: &str, name: QueueAttributeName, value: &str) {
        let request = self.client().set_queue_attributes().queue_url(self.url(queue).await);
        request.attributes(name, value).send().await.expect("it is set");
    }

    /// The names of the queues with a prefix.
    pub(crate) async fn queues(&self, prefix: &str) -> Vec<String> {
        let answer = self.client().list_queues().queue_name_prefix(prefix).send().await.expect("queues can be listed");
        let name = |url: String| url.rsplit('/').next().unwrap_or_default().to_owned();
        answer.queue_urls.unwrap_or_default().into_iter().map(name).collect()
    }

    /// Messages that are in a queue, those in hand among them.
    pub(crate) async fn count(&self, queue: &str) -> u64 {
        let number =
            async |name| self.attribute(queue, name).await.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        number(QueueAttributeName::ApproximateNumberOfMessages).await
            + number(QueueAttributeName::ApproximateNumberOfMessagesNotVisible).await
            + number(QueueAttributeName::ApproximateNumberOfMessagesDelayed).await
    }

    /// Takes `count` messages and removes them; what is more than that within a moment fails the test.
    pub(crate) async fn take(&self, queue: &str, count: usize) -> Vec<Received> {
        let mut taken = self.drain(queue, count, Duration::from_secs(30)).await;
        assert!(taken.len() >= count, "{} of {count} messages in {queue}: {taken:?}", taken.len());
        taken.extend(self.drain(queue, usize::MAX, Duration::from_millis(300)).await);
        assert_eq!(taken.len(), count, "more messages than expected in {queue}: {taken:?}");
        taken
    }

    /// Takes messages and removes them, until there are `count` or the time is over.
    pub(crate) async fn drain(&self, queue: &str, count: usize, limit: Duration) -> Vec<Received> {
        let (client, url, deadline) = (self.client(), self.url(queue).await, Instant::now() + limit);
        let mut taken = Vec::new();
        while taken.len() < count && Instant::now() < deadline {
            let answer = client
                .receive_message()
                .queue_url(&url)
                .max_number_of_messages(10)
                .wait_time_seconds(if count == usize::MAX { 0 } else { 1 })
                .message_attribute_names("All")
                .message_system_attribute_names(MessageSystemAttributeName::All)
                .send()
                .await
                .expect("messages can be received");
            for message in answer.messages.unwrap_or_default() {
                let receipt = message.receipt_handle.clone().expect("a receipt");
                client
                    .delete_message()
                    .queue_url(&url)
                    .receipt_handle(receipt)
                    .send()
                    .await
                    .expect("it can be deleted");
                taken.push(received(message));
            }
        }
        taken
    }
}

fn received(message: Message) -> Received {
    let body = message.body.expect("a body");
    let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
    let attributes = message.message_attributes.unwrap_or_default();
    let attributes = attributes.into_iter().map(|(name, value)| (name, value.string_value.unwrap_or_default()));
    Received { body, attributes: attributes.collect() }
}
