//! What takes the place of values that are not to reach ClickHouse.
//!
//! A mask belongs to a column's specification, and is laid over a value where PostgreSQL's text
//! enters the column, or an event that tells of it, and nowhere else. So whatever comes from PostgreSQL
//! is masked, be it from the stream, from the copy or from a lookup, and what comes from the batch, from
//! a queue or from ClickHouse itself moves between columns as it is: it was masked before.
//!
//! A hash is made of the value's text. Rows of one key carry one text as long as PostgreSQL itself
//! does not tell of a change of the key, so a hash may take the place of a key column too.

use std::{borrow::Cow, fmt};

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::config::Masking;

/// What takes the place of a column's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mask {
    /// The hash of its text, in hexadecimal.
    Hash(Hash),
    /// NULL.
    Null,
    /// This text.
    Fixed(String),
}

/// SHA-256, or HMAC-SHA-256 where there is a salt.
#[derive(Clone)]
pub struct Hash {
    keyed: Option<Hmac<Sha256>>,
}

/// What the salt is told apart by in what is stored: its hash of this text.
const FINGERPRINT_OF: &[u8] = b"walhouse masking salt";
/// Digits of the fingerprint.
const FINGERPRINT_DIGITS: usize = 16;

impl Hash {
    /// Keyed with the salt, if there is one.
    pub fn new(salt: Option<&SecretString>) -> Self {
        let keyed = |salt: &SecretString| {
            Hmac::new_from_slice(salt.expose_secret().as_bytes()).expect("HMAC takes keys of any length")
        };
        Self { keyed: salt.map(keyed) }
    }

    fn hex(&self, text: &[u8]) -> String {
        match &self.keyed {
            None => hex(&Sha256::digest(text)),
            Some(keyed) => {
                let mut keyed = keyed.clone();
                keyed.update(text);
                hex(&keyed.finalize().into_bytes())
            }
        }
    }

    /// Whether it has a salt.
    pub fn is_keyed(&self) -> bool {
        self.keyed.is_some()
    }

    /// Tells one salt from another without telling it; empty where there is none.
    pub fn fingerprint(&self) -> String {
        if self.keyed.is_none() {
            return String::new();
        }
        let mut digits = self.hex(FINGERPRINT_OF);
        digits.truncate(FINGERPRINT_DIGITS);
        digits
    }
}

/// Without the salt.
impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hash").field(&self.fingerprint()).finish()
    }
}

impl PartialEq for Hash {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint() == other.fingerprint()
    }
}

impl Eq for Hash {}

impl Mask {
    /// As configured.
    pub fn new(masking: &Masking, salt: Option<&SecretString>) -> Self {
        match masking {
            Masking::Hash => Self::Hash(Hash::new(salt)),
            Masking::Null => Self::Null,
            Masking::Fixed(text) => Self::Fixed(text.clone()),
        }
    }

    /// What takes the place of a value in PostgreSQL's text form; `None` is NULL. A NULL needs none.
    pub fn over(&self, text: &[u8]) -> Option<Cow<'_, [u8]>> {
        match self {
            Self::Hash(hash) => Some(hash.hex(text).into_bytes().into()),
            Self::Null => None,
            Self::Fixed(fixed) => Some(fixed.as_bytes().into()),
        }
    }
}

/// The two keys that HMAC-SHA-256 makes of a salt, inner and outer, in hexadecimal: what a server
/// needs that has SHA-256 alone (RFC 2104).
pub fn pads(salt: &SecretString) -> [SecretString; 2] {
    const BLOCK: usize = 64;
    let salt = salt.expose_secret().as_bytes();
    let mut key = if salt.len() > BLOCK { Sha256::digest(salt).to_vec() } else { salt.to_vec() };
    key.resize(BLOCK, 0);
    [0x36, 0x5c].map(|pad| hex(&key.iter().map(|byte| byte ^ pad).collect::<Vec<_>>()).into())
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(mask: &Mask, value: &str) -> Option<String> {
        mask.over(value.as_bytes()).map(|text| String::from_utf8(text.into_owned()).unwrap())
    }

    #[test]
    fn a_hash_is_sha_256_and_with_a_salt_hmac_sha_256() {
        let plain = Mask::new(&Masking::Hash, None);
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(text(&plain, "abc").as_deref(), Some(abc), "FIPS 180-2, B.1");
        let salted = Mask::new(&Masking::Hash, Some(&"Jefe".into()));
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(text(&salted, "what do ya want for nothing?").as_deref(), Some(expected), "RFC 4231, case 2");
    }

    #[test]
    fn two_plain_hashes_over_the_pads_are_the_keyed_one() {
        for salt in ["Jefe".to_owned(), "s".repeat(64), "s".repeat(65)] {
            let bytes = |hex: &str| -> Vec<u8> {
                (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
            };
            let [inner, outer] = pads(&salt.as_str().into()).map(|pad| bytes(pad.expose_secret()));
            let inside = Sha256::digest([inner.as_slice(), b"text"].concat());
            let expected = hex(&Sha256::digest([outer.as_slice(), &inside].concat()));
            let salted = Mask::new(&Masking::Hash, Some(&salt.into()));
            assert_eq!(text(&salted, "text"), Some(expected));
        }
    }

    #[test]
    fn the_other_masks_do_not_look_at_the_value() {
        assert_eq!(text(&Mask::Null, "secret"), None);
        assert_eq!(text(&Mask::Fixed("-".into()), "secret").as_deref(), Some("-"));
    }

    #[test]
    fn a_salt_is_told_apart_and_never_shown() {
        let salted = |salt: &str| Mask::new(&Masking::Hash, Some(&salt.into()));
        assert_eq!(salted("canary"), salted("canary"));
        assert_ne!(salted("canary"), salted("another"));
        assert_ne!(salted("canary"), Mask::new(&Masking::Hash, None));
        assert!(!format!("{:?}", salted("canary")).contains("canary"));
    }
}
