//! How a connection is protected: the settings that PostgreSQL's own clients know by the same names.
//!
//! Whoever says nothing gets `verify-full`. Only towards a server on this machine, where a certificate names nobody, it is
//! `prefer`; and that is the one mode in which a server without TLS is talked to all the same.

use super::{
    ClickHouseConfig, SourceConfig,
    value::{as_text, words},
};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// How much a connection has to be protected. Each is more than the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Not encrypted.
    Disable,
    /// Encrypted if the server can, whoever answers.
    Prefer,
    /// Encrypted, whoever answers; with a root of its own as `verify-ca`.
    Require,
    /// Encrypted, by a server whose certificate is trusted.
    VerifyCa,
    /// Encrypted, by a server whose certificate is trusted and names the host.
    VerifyFull,
}

words!(SslMode: "disable" => Disable, "prefer" => Prefer, "require" => Require, "verify-ca" => VerifyCa,
    "verify-full" => VerifyFull);

/// Whether the password's exchange is bound to the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If the server offers it.
    Prefer,
    /// Always; without it nothing is sent.
    Require,
}

words!(ChannelBinding: "disable" => Disable, "prefer" => Prefer, "require" => Require);
as_text!(SslMode, ChannelBinding);

/// What stands for the roots of the system.
const SYSTEM: &str = "system";

/// The settings as they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsKeys {
    /// `sslmode`
    pub(super) mode: Option<SslMode>,
    /// `sslrootcert`: a file of certificates in PEM form, or `system`.
    pub(super) roots: Option<PathBuf>,
    /// `sslcert`: a file with the client's certificate, and those between it and its root.
    pub(super) certificate: Option<PathBuf>,
    /// `sslkey`: a file with its private key.
    pub(super) key: Option<PathBuf>,
}

/// The settings that apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The section of the configuration that they are from, for messages.
    pub section: &'static str,
    /// How much has to be proven.
    pub mode: SslMode,
    /// Whom to trust; the system's roots if it is absent.
    pub roots: Option<PathBuf>,
    /// The client's certificate, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl TlsConfig {
    /// Whether it has to be proven who the server is, by the signature of a root. A root that was given is always asked for.
    pub fn verifies(&self) -> bool {
        self.mode >= SslMode::VerifyCa || self.roots.is_some()
    }
}

impl TlsKeys {
    /// What is wrong with them together, and at which key.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let given = [("sslrootcert", &self.roots), ("sslcert", &self.certificate), ("sslkey", &self.key)];
        let given = given.iter().find(|(_, path)| path.is_some());
        match (self.mode, given) {
            (Some(SslMode::Disable), Some((key, _))) => {
                return Err((key, "sslmode is disable, so it would do nothing; remove one of them".to_owned()));
            }
            (Some(mode), _) if self.wants_system() && mode != SslMode::VerifyFull => {
                let why = "with the system's roots anybody's certificate would do; set sslmode to verify-full";
                return Err(("sslrootcert", why.to_owned()));
            }
            _ => {}
        }
        match (&self.certificate, &self.key) {
            (Some(_), None) => Err(("sslcert", "its private key is missing; set sslkey too".to_owned())),
            (None, Some(_)) => {
                Err(("sslkey", "the certificate that it belongs to is missing; set sslcert too".to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn wants_system(&self) -> bool {
        self.roots.as_deref() == Some(Path::new(SYSTEM))
    }

    /// The settings that apply where `usual` is the mode of those who name none.
    pub(super) fn resolve(&self, section: &'static str, usual: SslMode) -> TlsConfig {
        // Who names the system's roots wants them to be asked.
        let usual = if self.wants_system() { SslMode::VerifyFull } else { usual };
        TlsConfig {
            section,
            mode: self.mode.unwrap_or(usual),
            roots: self.roots.clone().filter(|_| !self.wants_system()),
            identity: self.certificate.clone().zip(self.key.clone()),
        }
    }

    /// Takes what `other` has. What both have is named.
    fn add(&mut self, other: Self) -> Result<(), &'static str> {
        fn one<T>(ours: &mut Option<T>, theirs: Option<T>, key: &'static str) -> Result<(), &'static str> {
            if ours.is_some() && theirs.is_some() {
                return Err(key);
            }
            *ours = theirs.or(ours.take());
            Ok(())
        }
        one(&mut self.mode, other.mode, "sslmode")?;
        one(&mut self.roots, other.roots, "sslrootcert")?;
        one(&mut self.certificate, other.certificate, "sslcert")?;
        one(&mut self.key, other.key, "sslkey")
    }
}

impl SourceConfig {
    /// Gives the keys beside the URL to it; what it can not take, with the key.
    pub(super) fn hand_tls_to_url(&mut self) -> Result<(), (String, String)> {
        let twice = |key: &str| (format!("source.{key}"), "source.url has it too; give it in one place".to_owned());
        let beside = TlsKeys {
            mode: self.sslmode,
            roots: self.sslrootcert.clone(),
            certificate: self.sslcert.clone(),
            key: self.sslkey.clone(),
        };
        let from_beside = beside != TlsKeys::default();
        self.url.tls_keys().add(beside).map_err(twice)?;
        if let Some(binding) = self.channel_binding {
            self.url.set_channel_binding(binding).map_err(twice)?;
        }
        let checked = if from_beside { self.url.check_tls() } else { Ok(()) };
        checked.map_err(|(key, why)| (format!("source.{key}"), why))
    }
}

impl ClickHouseConfig {
    fn tls_keys(&self) -> TlsKeys {
        TlsKeys {
            mode: self.sslmode,
            roots: self.sslrootcert.clone(),
            certificate: self.sslcert.clone(),
            key: self.sslkey.clone(),
        }
    }

    /// How its connections are protected; `None` if they are not, because the URL says http.
    pub fn tls(&self) -> Option<TlsConfig> {
        let is_https = self.url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
        is_https.then(|| self.tls_keys().resolve("clickhouse", SslMode::VerifyFull))
    }

    pub(super) fn check_tls(&self) -> Result<(), (&'static str, String)> {
        let keys = self.tls_keys();
        match (self.tls(), keys.mode) {
            (Some(_), Some(SslMode::Disable | SslMode::Prefer)) => {
                Err(("sslmode", "the URL says https; give require, verify-ca or verify-full, or no sslmode".to_owned()))
            }
            (None, None | Some(SslMode::Disable)) if keys.roots.is_none() && keys.certificate.is_none() => Ok(()),
            (None, _) => {
                Err(("url", "sslmode, sslrootcert and sslcert need https; write https://host:8443".to_owned()))
            }
            (Some(_), _) => keys.check(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(mode: Option<SslMode>, roots: Option<&str>) -> TlsKeys {
        TlsKeys { mode, roots: roots.map(PathBuf::from), ..TlsKeys::default() }
    }

    #[test]
    fn what_contradicts_itself_is_refused_at_its_key() {
        let key = |keys: TlsKeys| keys.check().expect_err("a contradiction").0;
        assert_eq!(key(keys(Some(SslMode::Disable), Some("/ca.pem"))), "sslrootcert");
        assert_eq!(key(keys(Some(SslMode::Require), Some("system"))), "sslrootcert");
        assert_eq!(key(TlsKeys { certificate: Some("/c.pem".into()), ..TlsKeys::default() }), "sslcert");
        assert_eq!(key(TlsKeys { key: Some("/c.key".into()), ..TlsKeys::default() }), "sslkey");
        for fine in [keys(None, None), keys(Some(SslMode::VerifyFull), Some("system")), keys(None, Some("system"))] {
            assert_eq!(fine.check(), Ok(()));
        }
    }

    #[test]
    fn a_root_that_was_given_is_always_asked_for() {
        for mode in [SslMode::Prefer, SslMode::Require] {
            assert!(!keys(Some(mode), None).resolve("source", mode).verifies());
            assert!(keys(Some(mode), Some("/ca.pem")).resolve("source", mode).verifies());
        }
        let system = keys(None, Some("system")).resolve("source", SslMode::Prefer);
        assert_eq!((system.mode, system.roots), (SslMode::VerifyFull, None));
    }

    #[test]
    fn clickhouse_is_verified_over_https_and_nothing_is_said_in_vain_over_http() {
        let clickhouse =
            |url: &str, sslmode| ClickHouseConfig { url: url.to_owned(), sslmode, ..ClickHouseConfig::default() };
        assert_eq!(clickhouse("https://ch:8443", None).tls().map(|tls| tls.mode), Some(SslMode::VerifyFull));
        assert_eq!(clickhouse("HTTPS://ch:8443", None).tls().map(|tls| tls.mode), Some(SslMode::VerifyFull));
        assert_eq!(clickhouse("http://ch:8123", None).tls(), None);
        assert_eq!(clickhouse("http://ch:8123", Some(SslMode::Disable)).check_tls(), Ok(()));
        for (url, mode, key) in [
            ("http://ch:8123", SslMode::VerifyFull, "url"),
            ("https://ch:8443", SslMode::Disable, "sslmode"),
            ("https://ch:8443", SslMode::Prefer, "sslmode"),
        ] {
            assert_eq!(clickhouse(url, Some(mode)).check_tls().expect_err(url).0, key);
        }
    }
}
