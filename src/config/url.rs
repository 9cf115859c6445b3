//! Where the source is: `postgres://user[:password]@host[:port]/database?parameters`.
//!
//! tokio-postgres reads the URL, except for what it does not know (`sslmode=verify-full`,
//! `sslrootcert`), which is taken out and interpreted here. It is more lenient about `@` and `/`
//! than redaction can be: what it would guess is refused, so that the place of the password is
//! certain. No error of this module quotes the URL.

use std::{error::Error, fmt, net::IpAddr, path::PathBuf, str::FromStr};

use tokio_postgres::config::{Host, SslNegotiation};

use super::{
    tls::{ChannelBinding, SslMode, TlsConfig, TlsKeys},
    value::{REDACTED, as_text},
};

/// The source's address and credentials.
#[derive(Clone)]
pub struct SourceUrl {
    /// The URL without its password.
    redacted: String,
    connection: tokio_postgres::Config,
    tls: TlsKeys,
    /// Whether `channel_binding` is in the URL.
    binds: bool,
}

/// What to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The socket itself (`…/.s.PGSQL.5432`), not its directory.
    Unix(PathBuf),
    /// A host by name or address.
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

    /// How the connection is protected. A Unix socket leaves the machine to nobody, and knows no TLS.
    pub fn tls(&self) -> TlsConfig {
        match self.endpoint() {
            Endpoint::Unix(_) => TlsKeys::default().resolve(SECTION, SslMode::Disable),
            Endpoint::Tcp { .. } if self.is_local_by_name() => self.tls.resolve(SECTION, SslMode::Prefer),
            Endpoint::Tcp { .. } => self.tls.resolve(SECTION, SslMode::VerifyFull),
        }
    }

    /// Whether nothing but an address of this machine will do: nobody has said how it is to be protected elsewhere.
    pub fn must_be_local(&self) -> bool {
        self.tls.mode.is_none() && self.tls().mode == SslMode::Prefer
    }

    /// The name that the server's certificate has to have: the host's, or where only an address is given, that.
    pub fn server_name(&self) -> String {
        match (self.connection.get_hosts().first(), self.endpoint()) {
            (Some(Host::Tcp(host)), _) => host.clone(),
            (_, Endpoint::Tcp { host, .. }) => host,
            (_, Endpoint::Unix(_)) => "localhost".to_owned(),
        }
    }

    fn is_local_by_name(&self) -> bool {
        let Endpoint::Tcp { host, .. } = self.endpoint() else { return true };
        host == "localhost" || host.parse().is_ok_and(is_loopback)
    }

    /// Whether the first bytes are those of TLS already, without a word of PostgreSQL's before.
    pub fn begins_with_tls(&self) -> bool {
        self.connection.get_ssl_negotiation() == SslNegotiation::Direct
    }

    pub(super) fn tls_keys(&mut self) -> &mut TlsKeys {
        &mut self.tls
    }

    /// Fails with the key if the URL has it too.
    pub(super) fn set_channel_binding(&mut self, binding: ChannelBinding) -> Result<(), &'static str> {
        if self.binds {
            return Err("channel_binding");
        }
        self.connection.channel_binding(binding.into());
        Ok(())
    }

    /// What is wrong about the protection, and at which key.
    pub(super) fn check_tls(&self) -> Result<(), (&'static str, String)> {
        self.tls.check()?;
        let mode = self.tls().mode;
        if self.begins_with_tls() && mode < SslMode::Require {
            let why = "sslnegotiation=direct needs require, verify-ca or verify-full: there is no way back from it";
            return Err(("sslmode", why.to_owned()));
        }
        Ok(())
    }

    /// For tokio-postgres, with the password that applies. Its `Debug` keeps the password to itself.
    pub fn connection(&self) -> &tokio_postgres::Config {
        &self.connection
    }

    pub(super) fn set_password(&mut self, password: &str) {
        self.connection.password(password);
    }
}

/// Whether an address is this machine's own.
pub fn is_loopback(address: IpAddr) -> bool {
    // ::ffff:127.0.0.1 is how a dual-stack resolver may write 127.0.0.1.
    address.to_canonical().is_loopback()
}

impl From<ChannelBinding> for tokio_postgres::config::ChannelBinding {
    fn from(binding: ChannelBinding) -> Self {
        match binding {
            ChannelBinding::Disable => Self::Disable,
            ChannelBinding::Prefer => Self::Prefer,
            ChannelBinding::Require => Self::Require,
        }
    }
}

impl FromStr for SourceUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = Parts::split(text)?;
        let (mut tls, mut binds) = (TlsKeys::default(), false);
        let mut kept = Vec::new();
        for (key, value) in &parts.parameters {
            let file = || unescaped(value).map(|path| Some(PathBuf::from(path)));
            match *key {
                "sslmode" => tls.mode = Some(value.parse().map_err(|_| NO_MODE)?),
                "sslrootcert" => tls.roots = file()?,
                "sslcert" => tls.certificate = file()?,
                "sslkey" => tls.key = file()?,
                "sslpassword" => return Err("the parameter sslpassword is not taken; decrypt the key".to_owned()),
                "password" => return Err("the parameter password is not taken; use source.password_file".to_owned()),
                key if OURS.contains(&key) => {
                    return Err(format!("the parameter {key} is not taken; remove it: walhouse decides this"));
                }
                key => {
                    binds |= key == "channel_binding";
                    kept.push(format!("{key}={value}"));
                }
            }
        }
        let parameters = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
        let connection = parse_connection(&format!("{}{parameters}", parts.address))?;
        let url = Self { redacted: parts.redacted(), connection, tls, binds };
        url.check()?;
        Ok(url)
    }
}

const NO_MODE: &str = "sslmode is none of disable, prefer, require, verify-ca and verify-full";
/// What tokio-postgres would take, and the sockets are not opened by it.
const OURS: [&str; 7] = [
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "load_balance_hosts",
];
/// The section of the configuration.
const SECTION: &str = "source";

/// A parameter's value with its escapes (`%20`) undone.
fn unescaped(value: &str) -> Result<String, String> {
    let wrong = || "a path has an escape that is none; write % as %25".to_owned();
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((plain, escaped)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        let digits = escaped.get(..2).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        bytes.push(u8::from_str_radix(digits.ok_or_else(wrong)?, 16).map_err(|_| wrong())?);
        rest = &escaped[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).map_err(|_| wrong())
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
        self.check_tls().map_err(|(key, why)| format!("{key}: {why}"))
    }
}

fn parse_connection(text: &str) -> Result<tokio_postgres::Config, String> {
    text.parse().map_err(|error: tokio_postgres::Error| {
        // The outer message says only that the string is invalid; neither quotes a value.
        error.source().map_or_else(|| error.to_string(), ToString::to_string)
    })
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
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
    fn what_leaves_the_machine_is_verified_unless_somebody_says_otherwise() {
        let mode = |url: &str| read(url).tls().mode;
        for host in ["db.internal", "10.0.0.5", "[2001:db8::1]", "0.0.0.0", "localhost.example"] {
            assert_eq!(mode(&format!("postgres://w@{host}/shop")), SslMode::VerifyFull, "{host}");
            assert!(!read(&format!("postgres://w@{host}/shop")).must_be_local());
        }
        for host in ["localhost", "127.0.0.1", "127.8.9.1", "[::1]", "[::ffff:127.0.0.1]"] {
            let url = read(&format!("postgres://w@{host}/shop"));
            assert!(url.tls().mode == SslMode::Prefer && url.must_be_local(), "{host}");
            assert!(!read(&format!("postgres://w@{host}/shop?sslmode=prefer")).must_be_local(), "{host}");
        }
        assert_eq!(mode("postgres://w@localhost/shop?hostaddr=10.0.0.5"), SslMode::VerifyFull);
        assert_eq!(mode("postgres://w@/shop?host=/run/postgresql&sslmode=verify-full"), SslMode::Disable);
        for (word, expected) in
            [("disable", SslMode::Disable), ("require", SslMode::Require), ("verify-ca", SslMode::VerifyCa)]
        {
            assert_eq!(mode(&format!("postgres://w@db.internal/shop?sslmode={word}")), expected);
        }
        for word in ["allow", "nonsense", ""] {
            let error = format!("postgres://w@db/shop?sslmode={word}").parse::<SourceUrl>().expect_err(word);
            assert!(error.contains("verify-full"), "{error}");
        }
    }

    #[test]
    fn the_files_and_the_name_are_read_as_libpq_reads_them() {
        let url = read("postgres://w@db/shop?hostaddr=10.0.0.5&sslrootcert=/a%20b/ca.pem&sslcert=c.pem&sslkey=c.key");
        let tls = url.tls();
        assert_eq!(tls.roots, Some(PathBuf::from("/a b/ca.pem")));
        assert_eq!(tls.identity, Some((PathBuf::from("c.pem"), PathBuf::from("c.key"))));
        assert_eq!((url.endpoint(), url.server_name().as_str()), (tcp("10.0.0.5", 5432), "db"));
        assert_eq!(read("postgres://w@[::1]/shop").server_name(), "::1");
        assert_eq!(read("postgres:///shop?user=w&hostaddr=10.0.0.5").server_name(), "10.0.0.5");
        for (parameters, words) in [
            ("sslrootcert=/ca.pem&sslmode=disable", "sslrootcert: "),
            ("sslcert=/c.pem", "sslkey"),
            ("sslpassword=canary", "decrypt the key"),
            ("sslmode=prefer&sslnegotiation=direct", "sslmode: "),
            ("keepalives=0", "keepalives is not taken"),
            ("sslrootcert=%zz", "%25"),
        ] {
            let error = format!("postgres://w@db/shop?{parameters}").parse::<SourceUrl>().expect_err(parameters);
            assert!(error.contains(words) && !error.contains("canary"), "{error}");
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
