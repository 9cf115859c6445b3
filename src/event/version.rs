use super::Lsn;
use std::fmt;

/// Which history of the source LSNs belong to. It rises when LSNs may fall: after a restore to
/// an earlier point, or with a new cluster. An operator says so; walhouse never guesses it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Epoch(pub u8);

/// The version of a row: `_version`, a `UInt128` that decides in `ReplacingMergeTree` which of
/// several rows of one key is the latest.
///
/// epoch (8 bits) ‖ LSN of the transaction's commit record (56 bits) ‖ LSN of the change's own
/// record (64 bits).
///
/// The commit comes first because the order of commits is what decides between transactions. The
/// record alone does not: a heap insert is logged *before* it waits on a unique index, so an
/// INSERT that waits for another transaction's DELETE of the same key carries the lower position
/// and is yet the later change. Within a transaction, records rise in the order of statements.
///
/// Both parts are physical, so a replay through any slot in any batching finds the same number.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Version(pub u128);

impl Version {
    /// The version of a row of the initial copy: any streamed change of its key wins over it.
    pub const COPY: Version = Version(0);

    /// The version of a change at `record` of the transaction that committed at `commit`.
    pub fn new(epoch: Epoch, commit: Lsn, record: Lsn) -> Self {
        debug_assert!(commit.0 >> 56 == 0, "WAL positions stay below 2^56 for thousands of years");
        let commit = u128::from(commit.0 & ((1 << 56) - 1));
        Version(u128::from(epoch.0) << 120 | commit << 64 | u128::from(record.0))
    }

    /// The history that this version belongs to.
    pub fn epoch(self) -> Epoch {
        Epoch((self.0 >> 120) as u8)
    }

    /// The LSN of the transaction's commit record.
    pub fn commit(self) -> Lsn {
        Lsn((self.0 >> 64) as u64 & ((1 << 56) - 1))
    }

    /// The LSN of the change's own record.
    pub fn record(self) -> Lsn {
        Lsn(self.0 as u64)
    }
}

/// As text, since many readers of JSON keep no more than 53 bits of a number.
impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.0.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Version)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.epoch().0, self.commit(), self.record())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_decides_before_the_record() {
        let waited = Version::new(Epoch(0), Lsn(200), Lsn(10));
        let deleted = Version::new(Epoch(0), Lsn(100), Lsn(90));
        assert!(waited > deleted);
        assert!(Version::new(Epoch(1), Lsn(1), Lsn(1)) > waited);
        assert!(Version::COPY < Version::new(Epoch(0), Lsn(1), Lsn(1)));
    }

    #[test]
    fn the_parts_come_back() {
        let version = Version::new(Epoch(7), Lsn(0x12_3456_789A), Lsn(u64::MAX));
        assert_eq!(
            (version.epoch(), version.commit(), version.record()),
            (Epoch(7), Lsn(0x12_3456_789A), Lsn(u64::MAX))
        );
        assert_eq!(format!("{version:?}"), "7:12/3456789A:FFFFFFFF/FFFFFFFF");
    }

    #[test]
    fn as_text_it_is_a_whole_number_that_comes_back() {
        let version = Version::new(Epoch(255), Lsn(1), Lsn(2));
        let text = String::from(version);
        assert_eq!(text, version.0.to_string());
        assert_eq!(Version::try_from(text), Ok(version));
        assert!(Version::try_from("one".to_owned()).is_err());
    }
}
