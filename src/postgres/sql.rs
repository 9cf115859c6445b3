//! Sessions for SQL and COPY, and what their errors mean.
//!
//! Every session pins the settings that change how values are printed or that could cut it short:
//! a role or a database may have its own, and then the stream and the copy would disagree. They go
//! into the startup packet, where they win over `ALTER ROLE … SET`.
//! What they are opened over is a [`transport`]; here is what PostgreSQL has to say then.

use std::{io, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::{
    Client,
    config::{SslMode, SslNegotiation},
    error::SqlState,
};

use super::transport::{self, Cleartext, Established, OpenError, Transport};
use crate::{
    config::{SourceConfig, SourceUrl},
    quote,
    retry::Kind,
    tls,
};

/// What every session sets, wherever it comes from: also the replication connection.
pub const PINNED: [(&str, &str); 17] = [
    ("search_path", "pg_catalog"),
    ("DateStyle", "ISO,MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("lc_monetary", "C"),
    ("client_encoding", "UTF8"),
    // A regclass prints a name.
    ("quote_all_identifiers", "off"),
    // How our own statements are read.
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
    // The publication and the slot are made outside of a transaction of ours, and a deferrable one may wait for long.
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("lock_timeout", "0"),
];

/// What can not be in the startup packet. Timeouts that not every supported server has: an unknown setting is fatal
/// there. And a database without an encoding takes whatever bytes it is given, which are no UTF-8 at times: asked for
/// UTF-8, it refuses to print them, and so to stream anything after them. Without a conversion they come as they are.
pub(super) const ADAPT: &str = "SELECT set_config(name, CASE name WHEN 'client_encoding' THEN 'SQL_ASCII' ELSE '0' END, false) \
    FROM pg_settings WHERE name IN ('idle_session_timeout', 'transaction_timeout') \
    OR name = 'client_encoding' AND current_setting('server_encoding') = 'SQL_ASCII'";

/// A server that has not let us in by then is taken to be absent.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A statement or a connection failed.
///
/// The message names what failed and the remedy, where there is one. It never holds a value of a
/// row, which is why PostgreSQL's own text is kept only for the classes that speak of the server.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    kind: Kind,
    code: Option<SqlState>,
    message: String,
}

impl SqlError {
    /// Whether to try again.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// PostgreSQL's SQLSTATE, if it was PostgreSQL who refused.
    pub fn code(&self) -> Option<&SqlState> {
        self.code.as_ref()
    }

    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, code: None, message: message.into() }
    }

    pub(crate) fn transient(message: impl Into<String>) -> Self {
        Self::new(Kind::Transient, message)
    }

    pub(crate) fn definite(message: impl Into<String>) -> Self {
        Self::new(Kind::Definite, message)
    }

    /// An error of a statement in a session that stands.
    fn of_statement(error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => Self {
                kind: kind_of(db.code()),
                code: Some(db.code().clone()),
                message: format!("PostgreSQL: {} ({})", speakable(db), db.code().code()),
            },
            None if error.is_closed() || io_error(error).is_some() => {
                Self::new(Kind::Transient, "the connection to PostgreSQL is lost")
            }
            None => Self::definite(format!("PostgreSQL: {error}")),
        }
    }
}

impl From<tokio_postgres::Error> for SqlError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::of_statement(&error)
    }
}

impl From<OpenError> for SqlError {
    fn from(error: OpenError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

/// Opens a session. A task of its own drives the connection until the client is dropped.
pub async fn connect(source: &SourceConfig, application_name: &str) -> Result<Client, SqlError> {
    connect_over(transport::open(&source.url).await?, source, application_name).await
}

/// As [`connect`], with settings of the session's own (`-c name=value …`). They are given before there is a statement, so no
/// log of statements and of their parameters has them.
pub async fn connect_with(
    source: &SourceConfig,
    application_name: &str,
    settings: Option<&SecretString>,
) -> Result<Client, SqlError> {
    bounded(transport::open(&source.url).await?, source, application_name, settings).await
}

/// As [`connect`], over what is open already.
pub async fn connect_over(
    transport: Transport,
    source: &SourceConfig,
    application_name: &str,
) -> Result<Client, SqlError> {
    bounded(transport, source, application_name, None).await
}

async fn bounded(
    transport: Transport,
    source: &SourceConfig,
    application_name: &str,
    settings: Option<&SecretString>,
) -> Result<Client, SqlError> {
    let place = Place::of(source);
    // tokio-postgres bounds nothing here: a server may accept and then be silent.
    let login = Box::pin(log_in(transport, source, &place, application_name, settings));
    match tokio::time::timeout(LOGIN_TIMEOUT, login).await {
        Ok(outcome) => outcome,
        Err(_) => Err(place.silent()),
    }
}

async fn log_in(
    transport: Transport,
    source: &SourceConfig,
    place: &Place,
    application_name: &str,
    settings: Option<&SecretString>,
) -> Result<Client, SqlError> {
    let mut config = source.url.connection().clone();
    let mut options = startup_options(config.get_options());
    if let Some(settings) = settings {
        options = format!("{options} {}", settings.expose_secret());
    }
    config.application_name(application_name).options(options);
    // There is nothing more to negotiate.
    config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    let opened = config.connect_raw(transport, Established).await;
    let (client, connection) = opened.map_err(|error| place.refused(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %SqlError::from(error), "a session ended");
        }
    });
    client.batch_execute(ADAPT).await?;
    Ok(client)
}

/// Asks the server to end what `client` is waiting for. It fails when nothing runs, too.
pub async fn cancel(url: &SourceUrl, client: &Client) -> Result<(), SqlError> {
    let transport = transport::open(url).await?;
    client.cancel_token().cancel_query_raw(transport, Established).await?;
    Ok(())
}

/// The URL's own options come first, so that ours win.
fn startup_options(given: Option<&str>) -> String {
    // A space ends an option, unless a backslash is before it.
    let pinned = PINNED.iter().map(|(name, value)| format!("-c {name}={}", value.replace(' ', "\\ ")));
    given.map(str::to_owned).into_iter().chain(pinned).collect::<Vec<_>>().join(" ")
}

/// The words for who was asked for what.
struct Place {
    name: String,
    user: String,
    database: String,
}

impl Place {
    fn of(source: &SourceConfig) -> Self {
        let name = source.url.endpoint().to_string();
        Self { name, user: source.url.user().to_owned(), database: source.url.database().to_owned() }
    }

    fn silent(&self) -> SqlError {
        let seconds = LOGIN_TIMEOUT.as_secs();
        SqlError::new(Kind::Transient, format!("PostgreSQL at {} has not answered for {seconds} s", self.name))
    }

    /// Why no session came about.
    fn refused(&self, error: &tokio_postgres::Error) -> SqlError {
        if let Some(db) = error.as_db_error() {
            let message = self.remedy(db);
            return SqlError { kind: kind_of(db.code()), code: Some(db.code().clone()), message };
        }
        if let Some(why) = tls::refusal(error, "source") {
            return SqlError::new(Kind::Transient, format!("TLS to PostgreSQL at {}: {why}", self.name));
        }
        if let Some(io) = io_error(error) {
            return self.unreachable(io);
        }
        let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
        if cause.contains("password") {
            let user = &self.user;
            return SqlError::definite(format!(
                "PostgreSQL at {} asks for the password of role {user:?}, and none is configured; set source.password_file",
                self.name
            ));
        }
        if cause.contains("channel binding") {
            return SqlError::definite(format!(
                "PostgreSQL at {} does not bind the password to its certificate, and channel_binding=require asks for it; \
                 use scram-sha-256 in pg_hba.conf over TLS, or channel_binding=prefer",
                self.name
            ));
        }
        let kind = if error.is_closed() { Kind::Transient } else { Kind::Definite };
        SqlError::new(kind, format!("PostgreSQL at {}: {cause}", self.name))
    }

    fn unreachable(&self, error: &io::Error) -> SqlError {
        use io::ErrorKind as E;
        let name = &self.name;
        match error.kind() {
            _ if Cleartext::is_in(error) => SqlError::definite(format!("PostgreSQL at {name}: {Cleartext}")),
            E::TimedOut => self.silent(),
            // How tokio-postgres tells of bytes that are no message.
            E::InvalidInput | E::InvalidData | E::Other => {
                SqlError::definite(format!("{name} does not answer as PostgreSQL does; correct the port in source.url"))
            }
            _ => SqlError::new(Kind::Transient, format!("{name} can not be reached: {error}")),
        }
    }

    fn remedy(&self, error: &tokio_postgres::error::DbError) -> String {
        let Self { name, user, database } = self;
        let said = error.message();
        match error.code().code() {
            "28P01" => {
                format!("{name} does not take the password of role {user:?}; correct source.password_file or the URL")
            }
            // The words, where the server speaks English: only then is the remedy known.
            "28000" if said.contains("channel binding") => format!(
                "PostgreSQL at {name}: {said}; whoever answers shows another certificate than PostgreSQL's own: look at what \
                 is in between, and if it is meant to be there, such as a pooler, set channel_binding=disable"
            ),
            "28000" if said.contains("client certificate") => {
                format!("PostgreSQL at {name}: {said}; set source.sslcert and source.sslkey")
            }
            "28000" => {
                format!("{name} does not let role {user:?} in ({said}); add a pg_hba.conf entry for it, or create it")
            }
            "3D000" => format!("{name} has no database {database:?}; correct source.url or create it"),
            "42501" => format!(
                "role {user:?} may not connect to {database:?} ({said}); GRANT CONNECT ON DATABASE {} TO {}",
                quote::postgres(database),
                quote::postgres(user)
            ),
            "53300" => format!("{name} has no connection left ({said}); raise max_connections, or end idle sessions"),
            "57P03" => format!("{name} does not take connections yet ({said}); wait"),
            "57P01" | "57P02" => format!("{name} is shutting down ({said}); wait"),
            code => format!("PostgreSQL at {name}: {} ({code})", speakable(error)),
        }
    }
}

fn io_error(error: &tokio_postgres::Error) -> Option<&io::Error> {
    std::error::Error::source(error).and_then(|source| source.downcast_ref())
}

/// Which SQLSTATEs time may mend: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
pub fn kind_of(code: &SqlState) -> Kind {
    match code.code() {
        // A dropped database does not come back.
        "57P04" => Kind::Definite,
        // A slot or an object in use; a lock that was not to be had.
        "55006" | "55P03" => Kind::Transient,
        // A timeout of the role's or the database's, which struck before the session could set it aside.
        "25P03" | "25P04" => Kind::Transient,
        code if ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class)) => Kind::Transient,
        _ => Kind::Definite,
    }
}

/// SQLSTATEs of bytes that are no text in the database's encoding, or none in UTF-8.
pub(super) const NO_UTF8: [&str; 2] = ["22021", "22P05"];
/// What is said of them, since PostgreSQL quotes the bytes.
pub(super) const NO_UTF8_SAID: &str =
    "a value has bytes that can not be converted from the database's encoding to UTF-8; correct it at the source";

/// PostgreSQL's own words, unless they may quote a row.
fn speakable(error: &tokio_postgres::error::DbError) -> &str {
    let classes = ["08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58"];
    if NO_UTF8.contains(&error.code().code()) {
        return NO_UTF8_SAID;
    }
    // A syntax error in a value has a class of its own (22); in a statement, the statement is ours.
    if classes.iter().any(|class| error.code().code().starts_with(class)) { error.message() } else { "an error" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_url_do_not_win_over_the_pinned_ones() {
        let options = startup_options(Some("-c DateStyle=German"));
        assert!(options.starts_with("-c DateStyle=German -c search_path=pg_catalog "), "{options}");
        assert!(options.contains("-c DateStyle=ISO,MDY "), "{options}");
        assert!(options.contains(r"-c default_transaction_isolation=read\ committed "), "{options}");
    }

    #[test]
    fn what_time_mends_is_transient_and_nothing_else() {
        for code in ["57P01", "57P03", "53300", "53100", "40001", "40P01", "08006", "55006", "25P04"] {
            assert_eq!(kind_of(&SqlState::from_code(code)), Kind::Transient, "{code}");
        }
        for code in ["28P01", "28000", "3D000", "42501", "42704", "42P01", "57P04", "22P02", "55000", "XX000"] {
            assert_eq!(kind_of(&SqlState::from_code(code)), Kind::Definite, "{code}");
        }
    }

    fn source(url: &str) -> SourceConfig {
        SourceConfig::new(url.parse().expect(url))
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_named_as_such() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let error = connect(&source(&format!("postgres://w@127.0.0.1:{port}/shop")), "test").await.expect_err("closed");
        assert_eq!(error.kind(), Kind::Transient);
        assert!(error.to_string().contains(&format!("127.0.0.1:{port} refuses connections")), "{error}");
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_named_as_such() {
        let error = connect(&source("postgres://w@/shop?host=/nowhere"), "test").await.expect_err("absent");
        assert!(error.to_string().contains("no socket /nowhere/.s.PGSQL.5432"), "{error}");
    }

    #[tokio::test]
    async fn a_host_that_does_not_resolve_is_named() {
        let error = connect(&source("postgres://w@no-such-host.invalid/shop"), "test").await.expect_err("invalid");
        assert!(error.to_string().contains("\"no-such-host.invalid\" of source.url can not be resolved"), "{error}");
    }
}
