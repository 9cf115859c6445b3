//! Messages of a queue: taking them, keeping them, and letting them go.

use super::{
    client::{QueueError, Refusal, Sent, Sqs},
    pending::Destination,
};
use crate::retry::Kind;
use aws_sdk_sqs::{
    error::ProvideErrorMetadata,
    types::{
        DeleteMessageBatchRequestEntry, Message as Raw, MessageAttributeValue, MessageSystemAttributeName as System,
    },
};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// SQS keeps so many attributes of a message.
pub(super) const MAX_ATTRIBUTES: usize = 10;

/// A message that was taken, and is invisible to others for a while.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// SQS's own id of it.
    pub id: String,
    /// By which it is kept and let go; each time it is taken another one.
    pub receipt: String,
    /// What it says.
    pub body: String,
    /// By name. Those that are no text are left out.
    pub attributes: BTreeMap<String, String>,
    /// How often it was taken, this time included.
    pub taken: u32,
    /// When it was sent.
    pub sent: Option<SystemTime>,
    /// Of a FIFO queue: what it is in order with.
    pub group: Option<String>,
}

impl From<Raw> for Message {
    fn from(raw: Raw) -> Self {
        let system = raw.attributes.unwrap_or_default();
        let number = |name: &System| system.get(name).and_then(|text| text.parse::<u64>().ok());
        let attributes = raw.message_attributes.unwrap_or_default().into_iter();
        Self {
            id: raw.message_id.unwrap_or_default(),
            receipt: raw.receipt_handle.unwrap_or_default(),
            body: raw.body.unwrap_or_default(),
            attributes: attributes.filter_map(|(name, value)| Some((name, value.string_value?))).collect(),
            taken: number(&System::ApproximateReceiveCount).and_then(|count| count.try_into().ok()).unwrap_or(1),
            sent: number(&System::SentTimestamp).map(|millis| UNIX_EPOCH + Duration::from_millis(millis)),
            group: system.get(&System::MessageGroupId).cloned(),
        }
    }
}

impl Sqs {
    /// Takes up to `most` messages, which are then invisible for `lease`; waits for the first one for up to `patience`.
    ///
    /// # Errors
    /// What SQS says.
    pub async fn take(
        &self,
        from: Destination,
        most: usize,
        lease: Duration,
        patience: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let url = self.url(from).await?;
        let answer = self
            .client()
            .receive_message()
            .queue_url(url)
            .max_number_of_messages(i32::try_from(most).unwrap_or(1))
            .visibility_timeout(seconds(lease))
            .wait_time_seconds(seconds(patience))
            .message_attribute_names("All")
            .message_system_attribute_names(System::All)
            .send()
            .await;
        let answer = answer.map_err(|error| self.error(&error, from))?;
        Ok(answer.messages.unwrap_or_default().into_iter().map(Message::from).collect())
    }

    /// Keeps a message invisible for so long from now on; zero gives it back.
    ///
    /// # Errors
    /// What SQS says; definite if the message is not this reader's any more.
    pub async fn hide(&self, from: Destination, message: &Message, lease: Duration) -> Result<(), QueueError> {
        let url = self.url(from).await?;
        let request = self.client().change_message_visibility().queue_url(url).receipt_handle(&message.receipt);
        let answer = request.visibility_timeout(seconds(lease)).send().await;
        answer.map(|_| ()).map_err(|error| {
            let said = self.error(&error, from);
            if is_gone(error.code()) { QueueError { kind: Kind::Definite, ..said } } else { said }
        })
    }

    /// Deletes messages that were taken, and says of each whether it is gone.
    ///
    /// # Errors
    /// If it is not known what became of them.
    pub async fn delete(&self, from: Destination, receipts: &[String]) -> Result<Sent, QueueError> {
        let url = self.url(from).await?;
        let entry = |(index, receipt): (usize, &String)| {
            let entry = DeleteMessageBatchRequestEntry::builder().id(index.to_string()).receipt_handle(receipt);
            entry.build().expect("an entry with its id and receipt")
        };
        let entries = receipts.iter().enumerate().map(entry).collect();
        let answer = self.client().delete_message_batch().queue_url(url).set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| self.error(&error, from))?;
        let unknown = || Err(Refusal { of_the_message: false, code: "without an answer".to_owned() });
        let mut gone: Sent = receipts.iter().map(|_| unknown()).collect();
        for deleted in answer.successful() {
            if let Some(place) = deleted.id().parse().ok().and_then(|index: usize| gone.get_mut(index)) {
                *place = Ok(());
            }
        }
        for failed in answer.failed() {
            if let Some(place) = failed.id().parse().ok().and_then(|index: usize| gone.get_mut(index)) {
                *place = Err(Refusal { of_the_message: failed.sender_fault(), code: failed.code().to_owned() });
            }
        }
        Ok(gone)
    }

    /// Sends what was taken from a queue to another one, with these attributes in place of those of the same name. What
    /// has the same `once` within five minutes a FIFO queue takes once.
    ///
    /// # Errors
    /// If it is not known to be there.
    pub async fn pass_on(
        &self,
        to: Destination,
        message: &Message,
        with: &[(&str, String)],
        once: String,
    ) -> Result<(), QueueError> {
        let url = self.url(to).await?;
        let mut attributes = message.attributes.clone();
        for (name, value) in with {
            // Whoever else sent it may have used them all.
            while attributes.len() >= MAX_ATTRIBUTES && !attributes.contains_key(*name) {
                attributes.pop_last();
            }
            attributes.insert((*name).to_owned(), value.clone());
        }
        let text = |value: String| {
            let value = MessageAttributeValue::builder().data_type("String").string_value(value).build();
            value.expect("an attribute with its type")
        };
        let attributes = attributes.into_iter().filter(|(_, value)| !value.is_empty());
        let mut request = self
            .client()
            .send_message()
            .queue_url(url)
            .message_body(&message.body)
            .set_message_attributes(Some(attributes.map(|(name, value)| (name, text(value))).collect()));
        if self.is_fifo() {
            let group = message.group.as_deref().unwrap_or(&message.id);
            request = request.message_group_id(group).message_deduplication_id(once);
        }
        request.send().await.map(|_| ()).map_err(|error| self.error(&error, to))
    }
}

/// Whether SQS says of a message that it is not in this reader's hand: it was handed to somebody else, or is deleted.
fn is_gone(code: Option<&str>) -> bool {
    // Some codes come with the service's name in front of them.
    let word = code.and_then(|code| code.rsplit(['.', '#']).next());
    matches!(word, Some("ReceiptHandleIsInvalid" | "MessageNotInflight" | "InvalidParameterValue"))
}

/// SQS counts in whole seconds; a part of one is one.
fn seconds(duration: Duration) -> i32 {
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(whole).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sqs_says_of_a_message_that_is_not_in_hand_is_understood() {
        for code in ["InvalidParameterValue", "ReceiptHandleIsInvalid", "AWS.SimpleQueueService.MessageNotInflight"] {
            assert!(is_gone(Some(code)), "{code}");
        }
        assert!(!is_gone(Some("ThrottlingException")) && !is_gone(None));
    }

    #[test]
    fn a_part_of_a_second_is_a_second() {
        assert_eq!([0, 1, 1000, 1001, 2500].map(|millis| seconds(Duration::from_millis(millis))), [0, 1, 1, 2, 3]);
    }
}
