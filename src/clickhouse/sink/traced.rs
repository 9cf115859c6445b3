//! The transactions of the lane that are traced, from their commits until they are durable.

use crate::{
    event::{Event, Lsn, Transaction},
    lane::CORRELATION_PREFIX,
    trace::{self, Kind, Parent, Span},
};
use std::collections::VecDeque;

/// While ClickHouse is away so many wait, and no more.
const MAX_WAITING: usize = 4096;

/// Watches the stream for them.
#[derive(Debug)]
pub(super) struct Traced {
    is_on: bool,
    transaction: Option<Transaction>,
    correlation: Option<String>,
    changes: u64,
    /// By the ends of their commits.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    end: Lsn,
    commit: Lsn,
    span: Span,
    correlation: Option<String>,
    changes: u64,
}

impl Default for Traced {
    fn default() -> Self {
        let waiting = VecDeque::new();
        Self { is_on: trace::is_on(), transaction: None, correlation: None, changes: 0, waiting }
    }
}

impl Traced {
    /// Takes the next event of the stream; `data` is the group's.
    #[inline]
    pub(super) fn see(&mut self, event: &Event, data: &[u8]) {
        if self.is_on {
            self.follow(event, data);
        }
    }

    fn follow(&mut self, event: &Event, data: &[u8]) {
        match event {
            Event::Begin(transaction) => {
                (self.transaction, self.correlation, self.changes) = (Some(*transaction), None, 0);
            }
            Event::Change(_) => self.changes += 1,
            Event::Message { transactional: true, prefix, content, .. } if prefix.bytes(data) == CORRELATION_PREFIX => {
                self.correlation = Some(String::from_utf8_lossy(content.bytes(data)).into_owned());
            }
            Event::Commit { end } => self.commit(*end),
            _ => {}
        }
    }

    fn commit(&mut self, end: Lsn) {
        let Some(transaction) = self.transaction.take() else { return };
        let correlation = self.correlation.take().filter(|id| !id.is_empty());
        // Without rows there is nothing to wait for.
        if self.changes == 0 || self.waiting.len() == MAX_WAITING {
            return;
        }
        let parent = match &correlation {
            Some(id) => Parent::of(None, id),
            None => Parent::alone(),
        };
        if let Some(parent) = parent {
            let span = parent.span(transaction.time, Some(&transaction.commit.to_string()));
            let changes = self.changes;
            self.waiting.push_back(Waiting { end, commit: transaction.commit, span, correlation, changes });
        }
    }

    /// Everything up to here is durable.
    pub(super) fn durable(&mut self, position: Lsn) {
        while let Some(first) = self.waiting.front()
            && first.end <= position
            && let Some(Waiting { commit, span, correlation, changes, .. }) = self.waiting.pop_front()
        {
            let changes = i64::try_from(changes).unwrap_or(i64::MAX);
            let mut attributes =
                vec![("walhouse.commit_lsn", commit.to_string().into()), ("walhouse.changes", changes.into())];
            attributes.extend(correlation.map(|id| ("correlation_id", id.into())));
            span.end("commit".to_owned(), Kind::Internal, attributes, None);
        }
    }
}
