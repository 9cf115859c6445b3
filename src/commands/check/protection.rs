//! How the connections are protected: what was agreed upon, not only what was asked for.

use super::{Found, fine, plural, warning};
use crate::{
    config::{ClickHouseConfig, Endpoint, SourceConfig, SslMode, TlsConfig, is_loopback},
    postgres::transport::Transport,
};
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A certificate that expires within so many days is spoken of.
const SOON: u64 = 14;

/// Of the connection to PostgreSQL.
pub(super) fn of_postgres(source: &SourceConfig, transport: &Transport) -> Found {
    let Some(peer) = transport.peer() else {
        return match transport.endpoint() {
            Endpoint::Unix(_) => fine("a Unix socket: not encrypted, and it stays on this machine"),
            Endpoint::Tcp { host, .. } if is_local(host) => fine("not encrypted; it stays on this machine"),
            Endpoint::Tcp { .. } => warning(
                "not encrypted: whoever is in between reads and changes it",
                "set ssl = on in PostgreSQL, and sslmode=verify-full in source.url",
            ),
        };
    };
    let tls = source.url.tls();
    let mut what = format!("{}, {}", peer.version(), proven(&tls));
    if peer.end_point().is_some() {
        what.push_str("; SCRAM is bound to its certificate");
    }
    if peer.knows_us() {
        what.push_str("; with a certificate of the client");
    }
    let left = peer.valid_until().map(|until| until.duration_since(SystemTime::now()).unwrap_or_default());
    if let Some(until) = peer.valid_until() {
        what.push_str(&format!("; valid until {}", humantime::format_rfc3339_seconds(until)));
    }
    let days = left.map_or(u64::MAX, |left| left.as_secs() / DAY.as_secs());
    if days < SOON && tls.verifies() {
        let days = plural(usize::try_from(days).unwrap_or_default(), "day");
        return warning(
            what,
            format!("renew the certificate within {days}: walhouse does not connect to one that has expired"),
        );
    }
    let local = matches!(transport.endpoint(), Endpoint::Tcp { host, .. } if is_local(host));
    if tls.verifies() || local {
        return fine(what);
    }
    warning(what, "set sslmode=verify-full, and sslrootcert if the authority is your own")
}

/// Of those to ClickHouse.
pub(super) fn of_clickhouse(config: &ClickHouseConfig) -> Found {
    let host = config.url.parse::<axum::http::Uri>().ok().and_then(|url| url.host().map(str::to_owned));
    let local = host.is_some_and(|host| is_local(host.trim_matches(['[', ']'])));
    match config.tls() {
        None if local => fine("not encrypted; it stays on this machine"),
        None => warning(
            "not encrypted: whoever is in between reads and changes it",
            "set https_port in ClickHouse, and clickhouse.url to https://host:8443",
        ),
        Some(tls) if tls.verifies() || local => fine(format!("TLS, {}", proven(&tls))),
        Some(tls) => warning(
            format!("TLS, {}", proven(&tls)),
            "set clickhouse.sslmode = \"verify-full\", and clickhouse.sslrootcert if the authority is your own",
        ),
    }
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(is_loopback)
}

/// What is known of who is there.
fn proven(tls: &TlsConfig) -> String {
    let what = match tls.mode {
        SslMode::VerifyFull => "the certificate is trusted and names the host",
        _ if tls.verifies() => "the certificate is trusted, whatever host it names",
        _ => "nothing is known of who answers",
    };
    format!("{what} ({})", tls.mode)
}
