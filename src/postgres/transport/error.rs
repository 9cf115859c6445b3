//! Why there is no connection, and whether another try can help.
//!
//! What the server shows may be mended there while walhouse runs, such as a certificate that has expired: that is waited for,
//! and told each time. What this side is configured with is not.

use crate::{
    config::{Endpoint, SslMode},
    retry::Kind,
    tls::TlsError,
};
use std::{fmt, io, net::IpAddr, time::Duration};

/// No connection came about, or it is not one to be used.
#[derive(Debug)]
pub enum OpenError {
    /// The host's name has no address that anybody knows of.
    Unresolved {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// It has none at all.
    NoAddress {
        /// The name.
        host: String,
    },
    /// A name that should be this machine's is not.
    NotLocal {
        /// The name.
        host: String,
        /// Where it leads.
        address: IpAddr,
    },
    /// Nobody is there, or not for us.
    Unreachable {
        /// Where.
        endpoint: Endpoint,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing was said within a time.
    Silent {
        /// Where.
        endpoint: Endpoint,
        /// Which.
        limit: Duration,
    },
    /// The server has no TLS, and it is asked for.
    NoTls {
        /// Where.
        endpoint: Endpoint,
        /// What is asked for.
        mode: SslMode,
    },
    /// More came before the handshake than an honest server sends.
    Early {
        /// Where.
        endpoint: Endpoint,
    },
    /// An error in the place of an answer about TLS.
    Busy {
        /// Where.
        endpoint: Endpoint,
    },
    /// It is not PostgreSQL.
    Foreign {
        /// Where.
        endpoint: Endpoint,
    },
    /// TLS failed for a reason.
    Refused {
        /// Where.
        endpoint: Endpoint,
        /// What is wrong and what to do.
        why: String,
    },
    /// The handshake has no end.
    HungUp {
        /// Where.
        endpoint: Endpoint,
        /// What the system said.
        source: io::Error,
    },
    /// No certificate can have such a name.
    NoName {
        /// The host.
        host: String,
    },
    /// A file of ours.
    Files(TlsError),
}

impl std::error::Error for OpenError {}

impl From<TlsError> for OpenError {
    fn from(error: TlsError) -> Self {
        Self::Files(error)
    }
}

impl OpenError {
    /// Whether another try can help.
    pub fn kind(&self) -> Kind {
        match self {
            // The resolver's errors have no kind of their own; glibc's and musl's texts begin alike.
            Self::Unresolved { source, .. } => {
                let text = source.to_string();
                let passing = ["Temporary failure", "Try again"].iter().any(|start| text.contains(start));
                if passing { Kind::Transient } else { Kind::Definite }
            }
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Kind::Definite,
            Self::NotLocal { .. }
            | Self::Foreign { .. }
            | Self::Early { .. }
            | Self::NoName { .. }
            | Self::Files(_) => Kind::Definite,
            _ => Kind::Transient,
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unresolved { host, source } => write!(
                f,
                "the host {host:?} of source.url can not be resolved ({source}); correct the name, or use an address"
            ),
            Self::NoAddress { host } => write!(f, "the host {host:?} of source.url has no address; correct the name"),
            Self::NotLocal { host, address } => write!(
                f,
                "{host} is {address}, which is not this machine; say with sslmode in source.url how the connection is to be \
                 protected, such as sslmode=verify-full"
            ),
            Self::Unreachable { endpoint, source } => unreachable(endpoint, source, f),
            Self::Silent { endpoint, limit } => {
                write!(f, "PostgreSQL at {endpoint} has not answered for {} s", limit.as_secs())
            }
            Self::NoTls { endpoint, mode } => write!(
                f,
                "PostgreSQL at {endpoint} has no TLS, and sslmode={mode} asks for it; set ssl = on there, or sslmode=disable \
                 in source.url where nobody can listen"
            ),
            Self::Early { endpoint } => write!(
                f,
                "{endpoint} sends data before TLS has begun, as somebody in between would; look at what is between walhouse \
                 and PostgreSQL"
            ),
            Self::Busy { endpoint } => {
                write!(f, "PostgreSQL at {endpoint} can not begin a session; see its log, and wait")
            }
            Self::Foreign { endpoint } => {
                write!(f, "{endpoint} does not answer as PostgreSQL does; correct the port in source.url")
            }
            Self::Refused { endpoint, why } => write!(f, "TLS to PostgreSQL at {endpoint}: {why}"),
            Self::HungUp { endpoint, source } => write!(
                f,
                "PostgreSQL at {endpoint} has ended the connection within TLS's handshake ({source}); see its log"
            ),
            Self::NoName { host } => write!(
                f,
                "no certificate can be for the host {host:?} of source.url; use a name or an address that one can have"
            ),
            Self::Files(error) => error.fmt(f),
        }
    }
}

fn unreachable(endpoint: &Endpoint, error: &io::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use io::ErrorKind as E;
    match error.kind() {
        E::ConnectionRefused => {
            write!(f, "{endpoint} refuses connections; is PostgreSQL running, and does it listen there?")
        }
        E::NotFound => {
            write!(f, "there is no socket {endpoint}; is PostgreSQL running, and is this its unix_socket_directories?")
        }
        E::PermissionDenied => write!(f, "{endpoint} may not be opened by this user; see unix_socket_permissions"),
        _ => write!(f, "{endpoint} can not be reached: {error}"),
    }
}

/// A server asks for the password itself, over a connection that is not encrypted.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the server asks for the password in the clear, and the connection is not encrypted: it was not sent; use scram-sha-256 \
     in pg_hba.conf, or TLS (sslmode=verify-full)"
)]
pub struct Cleartext;

impl Cleartext {
    /// Whether it is that.
    pub(in crate::postgres) fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}
