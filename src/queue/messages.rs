//! Messages of a queue: taking them, keeping them, and letting them go.

use super::{
    client::{QueueError, Sent, Sqs, fates, is_of_the_message, text},
    letters,
    pending::Destination,
};
use crate::retry::Kind;
use aws_sdk_sqs::{
    error::ProvideErrorMetadata,
    types::{
        DeleteMessageBatchRequestEntry, Message as Raw, MessageSystemAttributeName as System,
        QueueAttributeName as Attribute, SendMessageBatchRequestEntry,
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

/// How many messages a queue has, nearly: that is all that SQS tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Those that may be taken.
    pub visible: u64,
    /// Those that were taken, and are neither deleted nor given back.
    pub in_flight: u64,
    /// Those that may not be taken yet.
    pub delayed: u64,
}

impl Depth {
    /// All of them.
    pub fn all(&self) -> u64 {
        self.visible + self.in_flight + self.delayed
    }
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

impl Message {
    /// What SQS counts of it once it has these attributes too: the body, and of each attribute its name, its type and its value.
    pub fn size(&self, with: &[(&str, String)]) -> usize {
        const TYPE: usize = "String".len();
        let own = self.attributes.iter().map(|(name, value)| name.len() + TYPE + value.len());
        let with = with.iter().map(|(name, value)| name.len() + TYPE + value.len());
        self.body.len() + own.chain(with).sum::<usize>()
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

    /// How many messages a queue has.
    ///
    /// # Errors
    /// What SQS says.
    pub async fn depth(&self, of: Destination) -> Result<Depth, QueueError> {
        let url = self.url(of).await?;
        let request = self.client().get_queue_attributes().queue_url(url);
        let request = request
            .attribute_names(Attribute::ApproximateNumberOfMessages)
            .attribute_names(Attribute::ApproximateNumberOfMessagesNotVisible)
            .attribute_names(Attribute::ApproximateNumberOfMessagesDelayed);
        let answer = request.send().await.map_err(|error| self.error(&error, of))?;
        let told = answer.attributes.unwrap_or_default();
        let number = |name| told.get(&name).and_then(|text| text.parse().ok()).unwrap_or_default();
        Ok(Depth {
            visible: number(Attribute::ApproximateNumberOfMessages),
            in_flight: number(Attribute::ApproximateNumberOfMessagesNotVisible),
            delayed: number(Attribute::ApproximateNumberOfMessagesDelayed),
        })
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
        let gone = answer.successful().iter().map(|deleted| deleted.id());
        Ok(fates(receipts.len(), gone, answer.failed(), |failed| failed.sender_fault()))
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

    /// Sends dead letters to a queue, without what makes them dead letters, and says of each whether it is there. One that is
    /// sent a second time within five minutes a FIFO queue takes once.
    ///
    /// # Errors
    /// If it is not known what became of them: any of them may be there.
    pub(super) async fn send_home(&self, to: Destination, letters: &[Message]) -> Result<Sent, QueueError> {
        let url = self.url(to).await?;
        let entry = |(index, letter): (usize, &Message)| {
            let attributes = letters::revived(letter).attributes.into_iter().filter(|(_, value)| !value.is_empty());
            let attributes = attributes.map(|(name, value)| (name, text(value)));
            let mut entry = SendMessageBatchRequestEntry::builder()
                .id(index.to_string())
                .message_body(&letter.body)
                .set_message_attributes(Some(attributes.collect()));
            if self.is_fifo() {
                let group = letter.group.as_deref().unwrap_or(&letter.id);
                entry = entry.message_group_id(group).message_deduplication_id(format!("{}-redriven", letter.id));
            }
            entry.build().expect("an entry with its id and body")
        };
        let entries = letters.iter().enumerate().map(entry).collect();
        let answer = self.client().send_message_batch().queue_url(url).set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| self.error(&error, to))?;
        let taken = answer.successful().iter().map(|taken| taken.id());
        Ok(fates(letters.len(), taken, answer.failed(), |failed| is_of_the_message(failed.code())))
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
