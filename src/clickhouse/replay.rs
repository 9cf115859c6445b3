//! A replay, as it is asked for and as it is stored while it is on its way.
//!
//! It rewinds delivery and nothing else: the checkpoint stays, and with it what a restart would go on from if there were no
//! replay. What is stored tells a restart to go on with it, from where everything was durable.

use crate::event::Lsn;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is to be delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayOrder {
    /// The position from which on.
    #[serde(with = "text")]
    pub from: Lsn,
    /// Whether events are sent again too.
    pub events: bool,
    /// The checkpoint when it was taken up: what comes behind it was never delivered before. 0/0 until then.
    #[serde(with = "text", default)]
    pub upto: Lsn,
    /// Everything before was delivered again and is durable.
    #[serde(with = "text", default)]
    pub at: Lsn,
}

/// Between which positions something can be delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReplayRange {
    /// What the slot has acknowledged: PostgreSQL gives nothing from before.
    pub first: Lsn,
    /// What is durable: the rest comes anyway.
    pub checkpoint: Lsn,
    /// The end of the WAL.
    pub end: Lsn,
}

impl ReplayOrder {
    /// As it is stored.
    pub fn note(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What was stored.
    pub fn noted(note: &str) -> Option<Self> {
        serde_json::from_str(note).ok()
    }

    /// Where delivery begins, after a restart where it goes on.
    pub fn start(&self) -> Lsn {
        self.from.max(self.at)
    }
}

impl fmt::Display for ReplayOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {}", self.from)?;
        if self.upto > Lsn::ZERO {
            write!(f, " to {}, {} is durable again", self.upto, self.start())?;
        }
        f.write_str(if self.events { ", with events" } else { "" })
    }
}

impl ReplayRange {
    /// Why nothing can be delivered from a position on, if it can not.
    pub fn refuses(&self, from: Lsn) -> Option<String> {
        let Self { first, checkpoint, end } = self;
        let range =
            format!("what can be delivered again lies between {first}, where the slot stands, and {checkpoint}");
        if from > *end {
            return Some(format!("{from} lies in the future, the WAL ends at {end}; {range}"));
        }
        if from > *checkpoint {
            return Some(format!("{from} lies beyond the checkpoint, so what follows it is delivered anyway; {range}"));
        }
        (from < *first).then(|| {
            format!(
                "{from} lies before the slot, and PostgreSQL would pass over what is between in silence; {range}. A larger \
                 source.replay_window keeps more from now on; walhouse resync puts right what is older"
            )
        })
    }
}

/// Positions as PostgreSQL writes them.
mod text {
    use crate::event::Lsn;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lsn)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_comes_back() {
        let order = ReplayOrder { from: Lsn(16), events: true, upto: Lsn(64), at: Lsn(32) };
        assert_eq!(ReplayOrder::noted(&order.note()), Some(order));
        assert_eq!(order.start(), Lsn(32));
        assert_eq!(order.to_string(), "from 0/10 to 0/40, 0/20 is durable again, with events");
        assert_eq!(ReplayOrder::noted("{}"), None);
    }

    #[test]
    fn what_can_not_be_delivered_again_is_refused_with_the_range() {
        let range = ReplayRange { first: Lsn(16), checkpoint: Lsn(32), end: Lsn(48) };
        for (from, why) in [(15, "before the slot"), (33, "beyond the checkpoint"), (49, "in the future")] {
            let refused = range.refuses(Lsn(from)).expect(why);
            assert!(refused.contains(why) && refused.contains("between 0/10"), "{refused}");
        }
        assert_eq!([16, 24, 32].map(|from| range.refuses(Lsn(from))), [None, None, None]);
    }
}
