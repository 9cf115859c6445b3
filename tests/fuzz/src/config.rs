//! Configurations, and the words and numbers in them.
//!
//! What is taken is printed without its secrets, and that is taken again and says the same; what is printed of a size, a span,
//! a type, a pattern or a position is read as what it was; a URL's password is in no output and no error.

use std::{cell::RefCell, fmt::Debug, fs, path::PathBuf, str::FromStr, thread};
use walhouse::{
    clickhouse::types::ColumnType,
    config::{self, ByteSize, Config, Glob, REDACTED, SourceUrl, Timespan},
    event::Lsn,
};

/// Beyond it a text is no word.
const LONGEST_WORD: usize = 100;

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.len() <= LONGEST_WORD {
        printed::<ByteSize>(text);
        printed::<Timespan>(text);
        printed::<ColumnType>(text);
        printed::<Lsn>(text);
        pattern(text);
    }
    if text.starts_with("postgres") {
        return url(text);
    }
    // A file that never ends is none.
    if !text.contains("/dev/") && !text.contains("/proc/") {
        file(text);
    }
}

fn printed<T: FromStr + ToString + PartialEq + Debug>(text: &str) {
    let Ok(value) = text.parse::<T>() else { return };
    let again = value.to_string();
    assert_eq!(again.parse::<T>().ok(), Some(value), "{text:?} is printed as {again:?}");
}

fn pattern(text: &str) {
    let Ok(glob) = text.parse::<Glob>() else { return };
    assert_eq!(glob.to_string(), text);
}

fn url(text: &str) {
    let userinfo = text.split_once("://").and_then(|(_, rest)| rest.split_once('@')).map(|(userinfo, _)| userinfo);
    let password = userinfo.and_then(|userinfo| userinfo.split_once(':')).map(|(_, password)| password);
    // Shorter ones are in many words.
    let is_shown = |password: &str| password == REDACTED || password.len() < 8 || text.matches(password).count() > 1;
    let secret = password.filter(|password| !is_shown(password));
    let hidden = |told: &str| secret.is_none_or(|secret| !told.contains(secret));
    let url = match text.parse::<SourceUrl>() {
        Ok(url) => url,
        Err(why) => return assert!(hidden(&why) && !why.is_empty(), "{why}"),
    };
    let shown = url.to_string();
    assert!(secret.is_none_or(|secret| !shown.contains(secret) && !format!("{url:?}").contains(secret)));
    assert!(!url.user().is_empty() && !url.database().is_empty());
    let again: SourceUrl = shown.parse().expect("what is shown of a URL is one");
    assert_eq!(
        (again.endpoint(), again.user(), again.database(), again.tls().mode, again.server_name()),
        (url.endpoint(), url.user(), url.database(), url.tls().mode, url.server_name())
    );
    assert_eq!(again.to_string(), shown);
}

fn file(text: &str) {
    let config = match load(text) {
        Ok(config) => config,
        Err(why) => return assert!(!why.is_empty()),
    };
    let shown = config.redacted_toml().expect("what was read can be printed");
    for secret in secrets(text) {
        assert!(!shown.contains(&secret), "a secret is printed");
        assert!(!format!("{config:?}").contains(&secret), "a secret is in an output for programmers");
    }
    let again = load(&shown).unwrap_or_else(|why| panic!("what is printed is no configuration: {why}\n{shown}"));
    assert_eq!(again.redacted_toml().unwrap(), shown, "what is printed says something else");
}

/// Texts that stand where a secret does, and nowhere else.
fn secrets(text: &str) -> Vec<String> {
    let Ok(tree) = text.parse::<toml::Table>() else { return Vec::new() };
    let places = [
        ("source", "password"),
        ("clickhouse", "password"),
        ("http", "viewer_token"),
        ("http", "operator_token"),
        ("masking", "salt"),
    ];
    let found = places.iter().filter_map(|(section, key)| tree.get(*section)?.get(*key)?.as_str());
    found.filter(|secret| secret.len() >= 8 && text.matches(secret).count() == 1).map(str::to_owned).collect()
}

fn load(text: &str) -> Result<Config, String> {
    thread_local! {
        static FILE: RefCell<PathBuf> = RefCell::new(
            std::env::temp_dir().join(format!("walhouse-fuzz-{}-{:?}.toml", std::process::id(), thread::current().id())),
        );
    }
    FILE.with_borrow(|file| {
        fs::write(file, text).unwrap();
        let loaded = config::load(file).map_err(|error| error.to_string());
        // So many would be left behind by a process that is killed, and only one that is alive needs it.
        fs::remove_file(file).unwrap();
        loaded
    })
}
