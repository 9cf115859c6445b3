//! `[metrics]`: how much is measured.

use super::within;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// `[metrics]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Tables that have series of their own. Further ones are counted together, as `table="(others)"`; 0 counts all so.
    ///
    /// Lower it where Prometheus has too many series, raise it with more tables than this.
    pub max_tables: usize,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { max_tables: 2000 }
    }
}

impl MetricsConfig {
    pub(super) fn check(&self) -> Result<(), (Cow<'static, str>, String)> {
        within(self.max_tables, 0, 100_000).map_err(|why| (Cow::from("metrics.max_tables"), why))
    }
}
