//! Where the source is: `postgres://user[:password]@host[:port]/database?parameters`.
//!
//! tokio-postgres reads the URL, except for what it does not know (`sslmode=verify-full`,
//! `sslrootcert`), which is taken out and interpreted here. It is more lenient about `@` and `/`
//! than redaction can be: what it would guess is refused, so that the place of the password is
//! certain. No error of this module quotes the URL.

use std::{error::Error, fmt, net::IpAddr, path::PathBuf, str::FromStr};

use tokio_postgres::config::Host;

use super::value::{REDACTED, as_text};

/// The source's address and credentials.
#[derive(Clone)]
pub struct SourceUrl {
    /// The URL without its password.
    redacted: String,
    connection: tokio_postgres::Config,
    ssl_mode: SslMode,
}

/// How the connection is protected. No mode falls back to plain text by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Not encrypted: for Unix sockets and loopback addresses only.
    Disable,
    /// Encrypted, whoever answers.
    Require,
    /// Encrypted, by a server whose certificate is trusted.
    VerifyCa,
    /// Encrypted, by a server whose certificate is trusted and names the host.
    VerifyFull,
}

/// What to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The socket itself (`…/.s.PGSQL.5432`), not its directory.
    Unix(PathBuf),
    /// A host by name or address. Whatever it resolves to must pass [`check_loopback`].
    Tcp {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
    },
}

impl SourceUrl {
    /// Where to connect to.
    pub fn endpoint(&self) -> Endpoint {
        let port = self.connection.get_ports().first().copied().unwrap_or(5432);
        if let Some(address) = self.connection.get_hostaddrs().first() {
            return Endpoint::Tcp { host: address.to_string(), port };
        }
        match self.connection.get_hosts().first() {
            Some(Host::Unix(directory)) => Endpoint::Unix(directory.join(format!(".s.PGSQL.{port}"))),
            Some(Host::Tcp(host)) => Endpoint::Tcp { host: host.clone(), port },
            None => Endpoint::Tcp { host: "localhost".to_owned(), port },
        }
    }

    /// The role to connect as.
    pub fn user(&self) -> &str {
        self.connection.get_user().unwrap_or_default()
    }

    /// The database to connect to.
    pub fn database(&self) -> &str {
        self.connection.get_dbname().unwrap_or_default()
    }

    /// How the connection is protected.
    pub fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    /// For tokio-postgres, with the password that applies. Its `Debug` keeps the password to itself.
    pub fn connection(&self) -> &tokio_postgres::Config {
        &self.connection
    }

    pub(super) fn set_password(&mut self, password: &str) {
        self.connection.password(password);
    }
}

/// Refuses an address to which the connection would cross a network unencrypted.
pub fn check_loopback(address: IpAddr) -> Result<(), String> {
    // ::ffff:127.0.0.1 is how a dual-stack resolver may write 127.0.0.1.
    if address.to_canonical().is_loopback() {
        return Ok(());
    }
    Err(format!(
        "{address} is not a loopback address: the connection would not be encrypted, since this version of walhouse \
         does not support TLS to PostgreSQL yet; use a Unix socket, 127.0.0.1, or a local tunnel"
    ))
}

impl FromStr for SourceUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = Parts::split(text)?;
        let mut ssl_mode = SslMode::Disable;
        let mut kept = Vec::new();
        for (key, value) in &parts.parameters {
            match *key {
                "sslmode" => ssl_mode = value.parse()?,
                "sslrootcert" => return Err(tls_later("sslrootcert")),
                "password" => return Err("the parameter password is not taken; use source.password_file".to_owned()),
                _ => kept.push(format!("{key}={value}")),
            }
        }
        if ssl_mode != SslMode::Disable {
            return Err(tls_later(&format!("sslmode={ssl_mode}")));
        }
        let parameters = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
        let mut connection = parse_connection(&format!("{}{parameters}", parts.address))?;
        connection.ssl_mode(tokio_postgres::config::SslMode::Disable);
        let url = Self { redacted: parts.redacted(), connection, ssl_mode };
        url.check()?;
        Ok(url)
    }
}

impl SourceUrl {
    fn check(&self) -> Result<(), String> {
        if self.user().is_empty() {
            return Err("it names no role; write postgres://ROLE@host/database".to_owned());
        }
        if self.database().is_empty() {
            return Err("it names no database; write postgres://role@host/DATABASE".to_owned());
        }
        if self.connection.get_hosts().len() > 1 || self.connection.get_hostaddrs().len() > 1 {
            return Err("it names several hosts; a replication slot lives on one server, so give one".to_owned());
        }
        match self.endpoint() {
            Endpoint::Tcp { host, .. } => host.parse().map_or(Ok(()), check_loopback),
            Endpoint::Unix(_) => Ok(()),
        }
    }
}

fn tls_later(what: &str) -> String {
    format!(
        "{what}: this version of walhouse does not support TLS to PostgreSQL yet; use a Unix socket or a loopback \
         address, with sslmode=disable or without sslmode"
    )
}

fn parse_connection(text: &str) -> Result<tokio_postgres::Config, String> {
    text.parse().map_err(|error: tokio_postgres::Error| {
        // The outer message says only that the string is invalid; neither quotes a value.
        error.source().map_or_else(|| error.to_string(), ToString::to_string)
    })
}

impl FromStr for SslMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "disable" => Self::Disable,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            "allow" | "prefer" => {
                return Err(format!("sslmode={text} may fall back to plain text; use disable or verify-full"));
            }
            _ => return Err("sslmode is none of disable, require, verify-ca, verify-full".to_owned()),
        })
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disable => "disable",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        })
    }
}

impl fmt::Display for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted)
    }
}

impl fmt::Debug for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.redacted, f)
    }
}

as_text!(SourceUrl);

/// The URL's text, cut where no reader can disagree.
struct Parts<'a> {
    /// Everything before `?`.
    address: &'a str,
    scheme: &'a str,
    userinfo: Option<&'a str>,
    /// Host, port and path.
    place: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Parts<'a> {
    fn split(text: &'a str) -> Result<Self, String> {
        let (address, query) = text.split_once('?').unwrap_or((text, ""));
        let (scheme, rest) = address
            .split_once("://")
            .filter(|(scheme, _)| ["postgres", "postgresql"].contains(scheme))
            .ok_or("it is not a URL of the form postgres://role@host:5432/database")?;
        let (userinfo, place) = match rest.split_once('@') {
            Some((userinfo, place)) => (Some(userinfo), place),
            None => (None, rest),
        };
        if place.contains('@') || query.contains('@') || userinfo.is_some_and(|text| text.contains('/')) {
            return Err("a password or parameter holds @, / or ?; write them as %40, %2F and %3F".to_owned());
        }
        let parameters = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').ok_or_else(|| "a parameter has no value; write name=value".to_owned()))
            .collect::<Result<_, _>>()?;
        Ok(Self { address, scheme, userinfo, place, parameters })
    }

    fn redacted(&self) -> String {
        let mut text = format!("{}://", self.scheme);
        if let Some(userinfo) = self.userinfo {
            match userinfo.split_once(':') {
                Some((user, _)) => text.push_str(&format!("{user}:{REDACTED}@")),
                None => text.push_str(&format!("{userinfo}@")),
            }
        }
        text.push_str(self.place);
        for (at, (key, value)) in self.parameters.iter().enumerate() {
            text.push_str(&format!("{}{key}={value}", if at == 0 { '?' } else { '&' }));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> SourceUrl {
        text.parse().expect(text)
    }

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn hosts_addresses_and_unix_sockets_are_read() {
        assert_eq!(read("postgres://w@localhost/shop").endpoint(), tcp("localhost", 5432));
        assert_eq!(read("postgresql://w@127.0.0.1:6432/shop").endpoint(), tcp("127.0.0.1", 6432));
        assert_eq!(read("postgres://w@[::1]:5433/shop").endpoint(), tcp("::1", 5433));
        assert_eq!(read("postgres://w@db.internal/shop").endpoint(), tcp("db.internal", 5432));
        assert_eq!(read("postgres:///shop?user=w&host=localhost").endpoint(), tcp("localhost", 5432));
        let socket = |port| Endpoint::Unix(PathBuf::from(format!("/run/postgresql/.s.PGSQL.{port}")));
        assert_eq!(read("postgres://w@/shop?host=/run/postgresql").endpoint(), socket(5432));
        assert_eq!(read("postgres://w@/shop?host=/run/postgresql&port=5433").endpoint(), socket(5433));
        assert_eq!(read("postgres://w@%2Frun%2Fpostgresql:5433/shop").endpoint(), socket(5433));
    }

    #[test]
    fn escaped_names_and_passwords_are_decoded() {
        let url = read("postgres://w%20h:p%40ss%2Fw@localhost/sh%20op?sslmode=disable");
        assert_eq!((url.user(), url.database()), ("w h", "sh op"));
        assert_eq!(url.connection().get_password(), Some(&b"p@ss/w"[..]));
    }

    #[test]
    fn the_password_is_in_no_output() {
        let url = read("postgres://w:canary@localhost:5432/shop?sslmode=disable");
        assert_eq!(url.to_string(), "postgres://w:(redacted)@localhost:5432/shop?sslmode=disable");
        assert!(!format!("{url:?} {:?}", url.connection()).contains("canary"));
    }

    #[test]
    fn a_url_whose_password_has_no_certain_place_is_refused_without_quoting_it() {
        for text in [
            "postgres://w:can@ary@localhost/shop",
            "postgres://w:can/ary@localhost/shop",
            "postgres://w:can?ary@localhost/shop",
            "postgres://w@localhost/shop?password=canary",
            "mysql://w:canary@localhost/shop",
            "w:canary",
            "postgres://w:canary@localhost:canary/shop",
            "postgres://w:canary@localhost/shop?canary",
        ] {
            let error = text.parse::<SourceUrl>().expect_err(text);
            assert!(!error.contains("can"), "{error}");
        }
    }

    #[test]
    fn tls_is_refused_until_it_is_there() {
        for parameter in ["sslmode=require", "sslmode=verify-ca", "sslmode=verify-full", "sslrootcert=/ca.pem"] {
            let error = format!("postgres://w@localhost/shop?{parameter}").parse::<SourceUrl>().expect_err(parameter);
            assert!(error.contains("does not support TLS to PostgreSQL yet"), "{error}");
        }
        for mode in ["allow", "prefer", "nonsense"] {
            format!("postgres://w@localhost/shop?sslmode={mode}").parse::<SourceUrl>().expect_err(mode);
        }
    }

    #[test]
    fn an_address_beyond_this_machine_is_refused_because_nothing_would_be_encrypted() {
        for host in ["10.0.0.5", "[2001:db8::1]", "0.0.0.0"] {
            let error = format!("postgres://w@{host}/shop").parse::<SourceUrl>().expect_err(host);
            assert!(error.contains("would not be encrypted"), "{error}");
        }
        "postgres://w@localhost/shop?hostaddr=10.0.0.5".parse::<SourceUrl>().expect_err("hostaddr decides");
        for address in ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(check_loopback(address.parse().expect(address)), Ok(()));
        }
    }

    #[test]
    fn a_role_a_database_and_one_host_are_needed() {
        for (text, word) in [
            ("postgres://localhost/shop", "role"),
            ("postgres://w@localhost", "database"),
            ("postgres://w@localhost/", "database"),
            ("postgres://w@a,b/shop", "several hosts"),
            ("postgres://w@localhost/shop?nonsense=1", "nonsense"),
            ("postgres://w@localhost/shop?port=many", "port"),
        ] {
            let error = text.parse::<SourceUrl>().expect_err(text);
            assert!(error.contains(word), "{error}");
        }
    }
}
