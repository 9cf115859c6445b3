//! What single values may be.

/// Whether a value is in a range.
pub(super) fn within<T: PartialOrd + std::fmt::Display>(value: T, least: T, most: T) -> Result<(), String> {
    if value >= least && value <= most {
        return Ok(());
    }
    Err(format!("{value} is out of range; give {least} to {most}"))
}

/// PostgreSQL's own rule for slots, so that the refusal comes before anything is created.
pub(super) fn slot_name(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(format!("{name:?} is not a slot name; use 1 to 63 lower case letters, digits and underscores"))
}

/// A name in PostgreSQL.
pub(super) fn identifier(name: &str) -> Result<(), String> {
    // PostgreSQL cuts a longer name in silence, and would then find another one.
    if (1..=63).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!("{name:?} is not a name; use 1 to 63 bytes without control characters"))
}

/// A database of ClickHouse that may be walhouse's.
pub(super) fn database_name(name: &str) -> Result<(), String> {
    if ["system", "information_schema"].iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
        return Err(format!("{name:?} belongs to ClickHouse; use a database of its own, such as \"analytics\""));
    }
    if (1..=200).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!("{name:?} is not a name; use 1 to 200 bytes without control characters"))
}

/// A URL of ClickHouse's HTTP interface. Never quotes it: where it is wrong, it may hold a password.
pub(super) fn http_url(text: &str) -> Result<(), String> {
    let form = "it is not a URL of the form http://host:8123 or https://host:8443";
    let url: axum::http::Uri = text.parse().map_err(|_| form.to_owned())?;
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("it holds credentials; use clickhouse.user and clickhouse.password_file".to_owned());
    }
    if url.query().is_some() {
        return Err("it holds parameters; only host, port and path are taken".to_owned());
    }
    match url.scheme_str() {
        Some("http" | "https") if url.host().is_some_and(|host| !host.is_empty()) => Ok(()),
        _ => Err(form.to_owned()),
    }
}
