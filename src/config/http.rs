//! `[http]`: metrics, health, and the API with its tokens.

use std::{borrow::Cow, net::SocketAddr, path::PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::value::{self, secret};

/// Shorter tokens can be guessed.
const SHORTEST_TOKEN: usize = 16;
/// Longer ones are refused by servers between.
const LONGEST_TOKEN: usize = 1024;

/// `[http]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Where metrics, health, the status page and the API are served: address and port.
    ///
    /// Give another address where Prometheus scrapes from another machine; the API then asks for a token for
    /// everything.
    #[serde(deserialize_with = "value::address")]
    pub listen: SocketAddr,
    /// Who has it may look at everything of the API that shows no data. 16 to 1024 visible characters.
    ///
    /// Set it where `listen` is no loopback address; `openssl rand -hex 32` makes one. A file is better.
    #[serde(with = "secret", skip_serializing_if = "Option::is_none")]
    pub viewer_token: Option<SecretString>,
    /// A file whose content is the viewer's token.
    ///
    /// Prefer it to `viewer_token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub viewer_token_file: Option<PathBuf>,
    /// Who has it may also pause, resume, resync, and deal with dead letters. 16 to 1024 visible characters, other than
    /// the viewer's.
    ///
    /// Set it where operators act through the API or the status page; without it nobody may. A file is better.
    #[serde(with = "secret", skip_serializing_if = "Option::is_none")]
    pub operator_token: Option<SecretString>,
    /// A file whose content is the operator's token.
    ///
    /// Prefer it to `operator_token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator_token_file: Option<PathBuf>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9464)),
            viewer_token: None,
            viewer_token_file: None,
            operator_token: None,
            operator_token_file: None,
        }
    }
}

impl HttpConfig {
    pub(super) fn check(&self) -> Result<(), (Cow<'static, str>, String)> {
        let (viewer, operator) = (self.viewer_token.as_ref(), self.operator_token.as_ref());
        for (key, secret) in [("http.viewer_token", viewer), ("http.operator_token", operator)] {
            if let Some(secret) = secret {
                token(secret.expose_secret()).map_err(|why| (Cow::from(key), why))?;
            }
        }
        match (viewer, operator) {
            (Some(viewer), Some(operator)) if viewer.expose_secret() == operator.expose_secret() => {
                let why = "it is the operator's token too, so viewers would be operators; give two different ones";
                Err((Cow::from("http.viewer_token"), why.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// What can stand in a header, and can not be guessed. Never quotes it.
fn token(text: &str) -> Result<(), String> {
    if !(SHORTEST_TOKEN..=LONGEST_TOKEN).contains(&text.len()) {
        return Err(format!(
            "a token has {SHORTEST_TOKEN} to {LONGEST_TOKEN} characters; make one with: openssl rand -hex 32"
        ));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let why = "a token is of visible ASCII characters without spaces; make one with: openssl rand -hex 32";
        return Err(why.to_owned());
    }
    Ok(())
}
