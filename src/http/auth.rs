//! Who may use the API.
//!
//! Two bearer tokens, of a viewer and of an operator. Compared are their digests, in constant time and always both, so that no
//! answer's time says anything of either. A token is in a header and never in a cookie: no page of another site can make a
//! browser send it. Nor is any other site allowed to read or send anything (CORS): see [`super::page`].
//!
//! Without any token, whoever is on this machine may look, as with `/metrics`. A page in a browser here could have its own name
//! resolved to a loopback address and then read the answers as its own: so the request's host has to be one of this machine's.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, StatusCode, Uri, header, uri::Authority};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::HttpConfig;

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Look.
    Viewer,
    /// Everything.
    Operator,
}

impl Role {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }
}

/// Why somebody may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("a token is needed: send it as the header Authorization: Bearer <token>")]
    NoToken,
    #[error("this token is neither http.viewer_token nor http.operator_token")]
    WrongToken,
    #[error("this is for operators: send the token that is configured as http.operator_token")]
    NotOperator,
    #[error("nobody may do this, since no http.operator_token is configured; set it, or http.operator_token_file")]
    NoOperator,
    #[error(
        "http.listen is not a loopback address and no token is configured, so nobody may use the API; set \
         http.viewer_token and http.operator_token"
    )]
    Closed,
    #[error(
        "the request's Host is none of this machine's; ask for localhost, or configure http.viewer_token, with which any \
         name will do"
    )]
    ForeignHost,
}

impl Denied {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::NoToken | Self::WrongToken => StatusCode::UNAUTHORIZED,
            _ => StatusCode::FORBIDDEN,
        }
    }
}

/// The tokens, and where it is listened.
pub(super) struct Access {
    viewer: Option<[u8; 32]>,
    operator: Option<[u8; 32]>,
    listen: SocketAddr,
}

impl Access {
    pub(super) fn new(config: &HttpConfig) -> Self {
        let of = |token: &Option<SecretString>| token.as_ref().map(|token| digest(token.expose_secret().as_bytes()));
        Self { viewer: of(&config.viewer_token), operator: of(&config.operator_token), listen: config.listen }
    }

    /// The role of whoever sends this.
    pub(super) fn role(&self, uri: &Uri, headers: &HeaderMap) -> Result<Role, Denied> {
        if self.viewer.is_none() && self.operator.is_none() {
            return match self.listen.ip().to_canonical().is_loopback() {
                false => Err(Denied::Closed),
                true if !self.is_local(uri, headers) => Err(Denied::ForeignHost),
                true => Ok(Role::Viewer),
            };
        }
        let token = digest(bearer(headers).ok_or(Denied::NoToken)?);
        let is = |known: Option<[u8; 32]>| known.is_some_and(|known| known.ct_eq(&token).into());
        match (is(self.operator), is(self.viewer)) {
            (true, _) => Ok(Role::Operator),
            (false, true) => Ok(Role::Viewer),
            (false, false) => Err(Denied::WrongToken),
        }
    }

    /// Whether a role is enough for what needs another one.
    pub(super) fn allow(&self, role: Role, needed: Role) -> Result<(), Denied> {
        if role >= needed {
            return Ok(());
        }
        Err(if self.operator.is_some() { Denied::NotOperator } else { Denied::NoOperator })
    }

    fn is_local(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let of_header = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
        let known = |authority: &Authority| {
            let host = authority.host().trim_start_matches('[').trim_end_matches(']');
            let is_ours = |ip: IpAddr| ip.to_canonical().is_loopback() || ip == self.listen.ip();
            host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(is_ours)
        };
        of_header.as_ref().is_some_and(known) && uri.authority().is_none_or(known)
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// Of several such headers none counts: servers between may see another one.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (one, None) = (all.next()?, all.next()) else { return None };
    let (scheme, token) = one.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    const VIEWER: &str = "a-token-of-a-viewer";
    const OPERATOR: &str = "a-token-of-an-operator";

    fn access(listen: &str, viewer: Option<&str>, operator: Option<&str>) -> Access {
        let secret = |token: Option<&str>| token.map(SecretString::from);
        let (viewer_token, operator_token) = (secret(viewer), secret(operator));
        Access::new(&HttpConfig {
            listen: listen.parse().unwrap(),
            viewer_token,
            operator_token,
            ..HttpConfig::default()
        })
    }

    fn headers(all: &[(HeaderName, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn with(access: &Access, authorization: &str) -> Result<Role, Denied> {
        access.role(&Uri::from_static("/"), &headers(&[(header::AUTHORIZATION, authorization)]))
    }

    #[test]
    fn each_token_has_its_role_and_nothing_else_has_any() {
        let access = access("0.0.0.0:1", Some(VIEWER), Some(OPERATOR));
        assert_eq!(with(&access, &format!("Bearer {VIEWER}")), Ok(Role::Viewer));
        assert_eq!(with(&access, &format!("bearer   {OPERATOR} ")), Ok(Role::Operator));
        for wrong in [
            "Bearer a-token-of-a-viewe",
            "Bearer a-token-of-a-viewers",
            "Bearer A-token-of-a-viewer",
            "Bearer x",
            "Bearer ",
        ] {
            assert_eq!(with(&access, wrong), Err(Denied::WrongToken), "{wrong}");
        }
        for none in ["", "Bearer", VIEWER, "Basic YTpi"] {
            assert_eq!(with(&access, none), Err(Denied::NoToken), "{none}");
        }
        let mut twice = headers(&[(header::AUTHORIZATION, "Bearer x")]);
        twice.append(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {OPERATOR}")).unwrap());
        assert_eq!(access.role(&Uri::from_static("/"), &twice), Err(Denied::NoToken));
        assert_eq!(access.allow(Role::Viewer, Role::Operator), Err(Denied::NotOperator));
        assert_eq!(access.allow(Role::Operator, Role::Viewer), Ok(()));
    }

    #[test]
    fn without_tokens_only_this_machine_may_look_and_nobody_may_act() {
        let local = |listen: &str, host: &str| {
            access(listen, None, None).role(&Uri::from_static("/"), &headers(&[(header::HOST, host)]))
        };
        for host in ["localhost", "LOCALHOST:9464", "127.0.0.1:1", "127.9.9.9", "[::1]:9464"] {
            assert_eq!(local("127.0.0.1:9464", host), Ok(Role::Viewer), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1:9464", "", "a@b@c"] {
            assert_eq!(local("127.0.0.1:9464", host), Err(Denied::ForeignHost), "{host}");
        }
        for listen in ["0.0.0.0:9464", "10.0.0.1:9464", "[::]:9464"] {
            assert_eq!(local(listen, "localhost"), Err(Denied::Closed), "{listen}");
        }
        let access = access("[::1]:9464", None, None);
        assert_eq!(access.role(&Uri::from_static("/"), &HeaderMap::new()), Err(Denied::ForeignHost));
        let absolute = Uri::from_static("http://evil.example/api/v1/status");
        assert_eq!(access.role(&absolute, &headers(&[(header::HOST, "localhost")])), Err(Denied::ForeignHost));
        assert_eq!(access.allow(Role::Viewer, Role::Operator), Err(Denied::NoOperator));
    }

    #[test]
    fn one_token_closes_the_api_to_whoever_has_none() {
        for (viewer, operator) in [(Some(VIEWER), None), (None, Some(OPERATOR))] {
            let access = access("127.0.0.1:9464", viewer, operator);
            let local = headers(&[(header::HOST, "localhost")]);
            assert_eq!(access.role(&Uri::from_static("/"), &local), Err(Denied::NoToken));
        }
    }
}
