//! Masks in PostgreSQL's own words, so that the two sides of a masked column can be compared
//! without trusting walhouse's own hashing, and without a value leaving the servers.
//!
//! The salt is no part of a statement nor a parameter of one, which `pg_stat_statements` and the server's log may keep: the
//! session begins with what is made of it, as settings of its own.

use secrecy::{ExposeSecret, SecretString};

use crate::{
    mask::{Mask, pads},
    quote,
};

/// What hashes are keyed with, as settings that a session begins with.
pub(super) fn settings(salt: Option<&SecretString>) -> Option<SecretString> {
    let [inner, outer] = pads(salt?);
    let settings = [("inner", inner), ("outer", outer)]
        .map(|(name, pad)| format!("-c walhouse.mask_{name}={}", pad.expose_secret()));
    Some(settings.join(" ").into())
}

/// What PostgreSQL computes in the place of `column`, of the column's type or, for a hash, as text.
pub(super) fn expression(mask: &Mask, column: &str) -> String {
    match mask {
        Mask::Null => format!("(CASE WHEN false THEN {column} END)"),
        // The literal has no type of its own, and takes the column's.
        Mask::Fixed(text) => {
            format!(
                "(CASE WHEN {column} IS DISTINCT FROM NULL THEN {} ELSE {column} END)",
                quote::postgres_string(text)
            )
        }
        Mask::Hash(hash) => {
            let text = format!("convert_to(concat({column}), 'UTF8')");
            let pad = |name: &str| format!("decode(current_setting('walhouse.mask_{name}'), 'hex')");
            // RFC 2104: H(K xor opad, H(K xor ipad, text)).
            let digest = if hash.is_keyed() {
                format!("sha256({} || sha256({} || {text}))", pad("outer"), pad("inner"))
            } else {
                format!("sha256({text})")
            };
            format!("(CASE WHEN {column} IS DISTINCT FROM NULL THEN encode({digest}, 'hex') END)")
        }
    }
}
