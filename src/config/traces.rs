//! `[tracing]`: where traces go.

use super::within;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// `[tracing]`. Without an endpoint nothing is traced.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracingConfig {
    /// Where traces are sent to by OTLP over HTTP: the address of a collector, such as `http://localhost:4318`. Nothing
    /// is traced without it.
    ///
    /// Set it where a collector of OpenTelemetry is. Keys of a service go into `OTEL_EXPORTER_OTLP_HEADERS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// The share of traces that begin here and are sent, 0 to 1. Those that an application has begun are its decision.
    ///
    /// Raise it while you look for something; 1 sends every commit.
    pub sample_ratio: f64,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample_ratio: 0.01 }
    }
}

/// What OTLP adds to an address that has no path of its own.
const PATH: &str = "v1/traces";

impl TracingConfig {
    /// What traces are posted to.
    pub fn url(&self) -> Option<String> {
        let endpoint = self.otlp_endpoint.as_ref()?;
        let has_path = endpoint.splitn(4, '/').nth(3).is_some_and(|path| !path.is_empty());
        Some(if has_path { endpoint.clone() } else { format!("{}/{PATH}", endpoint.trim_end_matches('/')) })
    }

    pub(super) fn check(&self) -> Result<(), (Cow<'static, str>, String)> {
        let at = |key: &'static str| move |message| (Cow::from(key), message);
        if let Some(url) = &self.otlp_endpoint {
            let url = url.parse::<axum::http::Uri>().ok();
            let fits = url.is_some_and(|url| {
                let plain = url.authority().is_some_and(|authority| !authority.as_str().contains('@'));
                plain && url.query().is_none() && matches!(url.scheme_str(), Some("http" | "https"))
            });
            // Never quoted: a key may stand in it where it is wrong.
            let why = "it is not a URL of the form http://localhost:4318; keys of a service go into \
                       OTEL_EXPORTER_OTLP_HEADERS";
            fits.then_some(()).ok_or_else(|| why.to_owned()).map_err(at("tracing.otlp_endpoint"))?;
        }
        within(self.sample_ratio, 0.0, 1.0).map_err(at("tracing.sample_ratio"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(endpoint: &str, sample_ratio: f64) -> TracingConfig {
        TracingConfig { otlp_endpoint: Some(endpoint.to_owned()), sample_ratio }
    }

    #[test]
    fn an_address_without_a_path_gets_the_one_of_otlp() {
        let url = |endpoint: &str| with(endpoint, 0.0).url().unwrap();
        assert_eq!(url("http://localhost:4318"), "http://localhost:4318/v1/traces");
        assert_eq!(url("http://localhost:4318/"), "http://localhost:4318/v1/traces");
        assert_eq!(url("https://otlp.example.com/tenant/traces"), "https://otlp.example.com/tenant/traces");
        assert_eq!(TracingConfig::default().url(), None);
    }

    #[test]
    fn what_can_not_be_is_refused_without_being_quoted() {
        assert_eq!(with("http://localhost:4318", 1.0).check(), Ok(()));
        for endpoint in ["localhost:4318", "http://canary@host", "http://host/?key=canary", "grpc://host:4317", ""] {
            let (key, why) = with(endpoint, 0.5).check().expect_err(endpoint);
            assert!(key == "tracing.otlp_endpoint" && !why.contains("canary"), "{why}");
        }
        for ratio in [-0.1, 1.1, f64::NAN] {
            assert_eq!(with("http://localhost", ratio).check().expect_err("no share").0, "tracing.sample_ratio");
        }
    }
}
