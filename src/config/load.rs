//! From a file and the environment to a checked [`Config`].
//!
//! The file may be a variable itself, `env:NAME`, for containers into which nothing can be written.
//!
//! The `config` crate parses the TOML and lays the environment over it. Keys of the file keep their
//! case and their dots; variables are `WALHOUSE__SECTION__KEY`, in any case, and an empty one counts
//! as unset. Its errors quote values and lines of the file, where a password may stand, so they are
//! taken apart here and told again without them.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use config::{Environment, File, FileFormat};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::Config;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can not be read.
    #[error("{}: {source}; {}", path.display(), readable(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what, without the line itself.
        message: String,
    },
    /// A key is wrong.
    #[error("{}: {key}: {message}", origin)]
    Value {
        /// The file, or the environment variable.
        origin: String,
        /// The key's path, such as `batch.max_delay`.
        key: String,
        /// What is wrong with it, and what is accepted.
        message: String,
    },
}

/// What to do about a file that can not be read.
fn readable(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "let the user that runs walhouse read it",
        _ => "give the path of a configuration with --config",
    }
}

/// Reads the file, lays the environment over it, and checks the outcome.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    load_with(path, std::env::vars_os())
}

const PREFIX: &str = "WALHOUSE__";
/// What a path begins with that is a variable's name.
const VARIABLE: &str = "env:";

pub(super) fn load_with(
    path: &Path,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Config, ConfigError> {
    let variables: Vec<_> = variables.collect();
    let text = match path.to_str().and_then(|path| path.strip_prefix(VARIABLE)) {
        Some(name) => given(name, &variables),
        None => fs::read_to_string(path),
    };
    let text = text.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let mut loader = Loader { path, variables: HashMap::new() };
    loader.collect(variables.into_iter())?;
    let environment = Environment::with_prefix("WALHOUSE")
        .prefix_separator("__")
        .separator("__")
        .source(Some(loader.variables.clone()));
    let merged = config::Config::builder()
        .add_source(File::from_str(&text, FileFormat::Toml))
        .add_source(environment)
        .build()
        .map_err(|error| loader.refused(None, &error))?;
    let mut config = Config::deserialize(merged.cache).map_err(|error| loader.refused(None, &error))?;
    loader.resolve_secrets(&mut config)?;
    config.source.hand_tls_to_url().map_err(|(key, message)| loader.value(&key, message))?;
    config.source.outbox = config.queue.as_ref().map(super::QueueConfig::outbox);
    config.check().map_err(|(key, message)| loader.value(&key, message))?;
    Ok(config)
}

/// The text of a variable.
fn given(name: &str, variables: &[(OsString, OsString)]) -> io::Result<String> {
    let refused = |kind, why: &str| Err(io::Error::new(kind, why));
    match variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_str()) {
        Some(Some(text)) if !text.is_empty() => Ok(text.to_owned()),
        Some(Some(_)) => refused(io::ErrorKind::InvalidData, "the environment variable is empty"),
        Some(None) => refused(io::ErrorKind::InvalidData, "the environment variable is not valid UTF-8"),
        None => refused(io::ErrorKind::NotFound, "there is no such environment variable"),
    }
}

struct Loader<'a> {
    path: &'a Path,
    /// Those of ours, by the name they have.
    variables: HashMap<String, String>,
}

impl Loader<'_> {
    fn collect(&mut self, variables: impl Iterator<Item = (OsString, OsString)>) -> Result<(), ConfigError> {
        for (name, value) in variables {
            let Ok(name) = name.into_string() else { continue };
            if !name.get(..PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(PREFIX)) || value.is_empty() {
                continue;
            }
            let key = key_of(&name);
            let value = value.into_string().map_err(|_| ConfigError::Value {
                origin: name.clone(),
                key,
                message: "the variable is not valid UTF-8".to_owned(),
            })?;
            self.variables.insert(name, value);
        }
        Ok(())
    }

    /// An error at a key, with where that key was set.
    fn value(&self, key: &str, message: String) -> ConfigError {
        let variable = self.variables.keys().find(|name| key_of(name) == key);
        let origin =
            variable.map_or_else(|| self.path.display().to_string(), |name| format!("environment variable {name}"));
        ConfigError::Value { origin, key: key.to_owned(), message }
    }

    /// Tells an error of the `config` crate again, without the values that it quotes.
    fn refused(&self, key: Option<&str>, error: &config::ConfigError) -> ConfigError {
        use config::ConfigError as E;
        match error {
            E::FileParse { cause, .. } => {
                ConfigError::Syntax { path: self.path.to_owned(), message: without_snippet(&cause.to_string()) }
            }
            E::At { error, key: inner, .. } => self.refused(inner.as_deref().or(key), error),
            E::NotFound(missing) => {
                let missing = if missing == "source" { "source.url" } else { missing };
                self.value(missing, "it is missing, and has no default".to_owned())
            }
            E::Type { expected, key: inner, .. } => {
                self.value(inner.as_deref().or(key).unwrap_or_default(), format!("expected {expected}"))
            }
            E::Message(message) => self.retold(key.unwrap_or_default(), message),
            _ => self.value(key.unwrap_or_default(), "it can not be read".to_owned()),
        }
    }

    fn retold(&self, key: &str, message: &str) -> ConfigError {
        if let Some((field, accepted)) = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once("`, "))
        {
            let path = if key.is_empty() { field.to_owned() } else { format!("{key}.{field}") };
            return self.value(&path, format!("unknown key; {}", accepted.replace('`', "")));
        }
        // serde's own messages quote the value that they found before they say what they expected.
        let quotes = ["invalid type: ", "invalid value: "].iter().any(|start| message.starts_with(start));
        match message.rsplit_once(", expected ") {
            Some((_, expected)) if quotes => self.value(key, format!("expected {}", plain(expected))),
            _ if quotes => self.value(key, "it has the wrong type".to_owned()),
            _ => self.value(key, message.to_owned()),
        }
    }

    fn resolve_secrets(&self, config: &mut Config) -> Result<(), ConfigError> {
        let source = &mut config.source;
        self.resolve(&mut source.password, source.password_file.as_deref(), "source.password_file")?;
        if let Some(password) = &source.password {
            source.url.set_password(password.expose_secret());
        }
        let clickhouse = &mut config.clickhouse;
        self.resolve(&mut clickhouse.password, clickhouse.password_file.as_deref(), "clickhouse.password_file")?;
        let http = &mut config.http;
        self.resolve(&mut http.viewer_token, http.viewer_token_file.as_deref(), "http.viewer_token_file")?;
        self.resolve(&mut http.operator_token, http.operator_token_file.as_deref(), "http.operator_token_file")?;
        let masking = &mut config.masking;
        self.resolve(&mut masking.salt, masking.salt_file.as_deref(), "masking.salt_file")?;
        // As if there were none, where somebody believes that there is one.
        match &masking.salt {
            Some(salt) if salt.expose_secret().is_empty() => Err(self.value("masking.salt", "it is empty".to_owned())),
            _ => Ok(()),
        }
    }

    fn resolve(&self, secret: &mut Option<SecretString>, file: Option<&Path>, key: &str) -> Result<(), ConfigError> {
        let Some(file) = file else { return Ok(()) };
        let refused = |message: String| self.value(key, message);
        if secret.is_some() {
            let other = key.trim_end_matches("_file");
            return Err(refused(format!("{other} is set too; give one of them")));
        }
        let content = fs::read_to_string(file)
            .map_err(|error| refused(format!("{} can not be read: {error}", file.display())))?;
        let content = content.strip_suffix('\n').unwrap_or(&content);
        let content = content.strip_suffix('\r').unwrap_or(content);
        if content.is_empty() {
            return Err(refused(format!("{} is empty; it must hold the secret", file.display())));
        }
        *secret = Some(content.into());
        Ok(())
    }
}

/// `WALHOUSE__BATCH__MAX_DELAY` → `batch.max_delay`, as the overlay does it.
fn key_of(variable: &str) -> String {
    variable.get(PREFIX.len()..).unwrap_or_default().to_lowercase().replace("__", ".")
}

/// `struct SourceConfig` is for programmers.
fn plain(expected: &str) -> &str {
    if expected.starts_with("struct ") { "a section with keys" } else { expected }
}

/// The parser draws the offending line between its position and its verdict: `3 | password = "…`.
fn without_snippet(message: &str) -> String {
    let drawn =
        |line: &&str| line.split_once('|').is_some_and(|(gutter, _)| gutter.trim().bytes().all(|b| b.is_ascii_digit()));
    message.lines().filter(|line| !drawn(line)).map(str::trim).collect::<Vec<_>>().join(": ")
}
