//! `[log]`: what is told, and how.

use super::value::LogFormat;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// `[log]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,walhouse::postgres=debug`.
    ///
    /// Raise it for one module while you look into something. The status page shows only what this lets through.
    pub level: String,
    /// How a line looks: `"text"` for people, `"json"` for machines, one object a line.
    ///
    /// Choose `"json"` where logs are collected.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::default() }
    }
}

impl LogConfig {
    /// A word that is no level would be taken for a module, and the log would be silent.
    pub(super) fn check(&self) -> Result<(), (Cow<'static, str>, String)> {
        let is_level = |part: &str| part.contains(['=', '[']) || part.trim().parse::<LevelFilter>().is_ok();
        let known = self.level.split(',').all(is_level) && EnvFilter::try_new(&self.level).is_ok();
        let refused = || format!("{:?} is not a level; use error, warn, info, debug or trace", self.level);
        known.then_some(()).ok_or_else(|| (Cow::from("log.level"), refused()))
    }
}
