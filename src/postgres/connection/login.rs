//! Who walhouse is, and how it proves that.
//!
//! By SCRAM-SHA-256 where the server lets it: the password is never sent, and the server proves that it knows it too. Over TLS
//! it is bound to the server's certificate, if the server offers that (`SCRAM-SHA-256-PLUS`); a server that does not, though it
//! could, is told that we would have: it finds out if somebody in between has struck the offer out. tokio-postgres does the
//! same for its sessions.

use super::{ConnectionError, ReplicationConnection};
use crate::postgres::{sql, transport::Peer};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, Message},
        frontend,
    },
};
use tokio_postgres::{Config, config};

impl ReplicationConnection {
    pub(super) async fn log_in(
        &mut self,
        config: &Config,
        application: &str,
        replication: bool,
    ) -> Result<(), ConnectionError> {
        let user = config.get_user().unwrap_or("postgres").to_owned();
        let database = config.get_dbname().unwrap_or(&user).to_owned();
        let mut parameters =
            vec![("user", user.as_str()), ("database", database.as_str()), ("application_name", application)];
        if replication {
            parameters.push(("replication", "database"));
        }
        parameters.extend_from_slice(&sql::PINNED);
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(|source| self.io(source))?;
        self.write(&mut out).await?;
        self.authenticate(&user, config).await?;
        loop {
            match self.message("the connection").await? {
                Message::ReadyForQuery(_) => return Ok(()),
                Message::BackendKeyData(_) | Message::ParameterStatus(_) => {}
                _ => return Err(ConnectionError::Protocol("an unexpected message before it was ready")),
            }
        }
    }

    async fn authenticate(&mut self, user: &str, config: &Config) -> Result<(), ConnectionError> {
        let password = || config.get_password().ok_or(ConnectionError::NoPassword);
        // Every other way proves nothing of the certificate.
        let unbound = || match config.get_channel_binding() {
            config::ChannelBinding::Require => Err(ConnectionError::Unbound),
            _ => Ok(()),
        };
        let mut out = BytesMut::new();
        match self.message("the connection").await? {
            Message::AuthenticationOk => return unbound(),
            // Only over TLS or a Unix socket does this come so far.
            Message::AuthenticationCleartextPassword => {
                unbound()?;
                frontend::password_message(password()?, &mut out).map_err(|source| self.io(source))?;
            }
            Message::AuthenticationMd5Password(body) => {
                unbound()?;
                let hash = md5_hash(user.as_bytes(), password()?, body.salt());
                frontend::password_message(hash.as_bytes(), &mut out).map_err(|source| self.io(source))?;
            }
            Message::AuthenticationSasl(body) => {
                let (mechanism, binding) = self.mechanism(&body, config.get_channel_binding())?;
                return self.scram(mechanism, binding, password()?).await;
            }
            Message::AuthenticationGss | Message::AuthenticationSspi => {
                return Err(ConnectionError::Authentication("GSSAPI or SSPI"));
            }
            _ => return Err(ConnectionError::Authentication("an unknown authentication method")),
        }
        self.write(&mut out).await?;
        self.authentication_ok().await
    }

    /// Which of the offered mechanisms, and what it is bound to.
    fn mechanism(
        &self,
        offered: &AuthenticationSaslBody,
        wanted: config::ChannelBinding,
    ) -> Result<(&'static str, ChannelBinding), ConnectionError> {
        let offers = |name| offered.mechanisms().any(|mechanism| Ok(mechanism == name)).unwrap_or(false);
        let end_point = self.stream.peer().and_then(Peer::end_point);
        let end_point = end_point.filter(|_| wanted != config::ChannelBinding::Disable);
        match end_point {
            Some(hash) if offers(SCRAM_SHA_256_PLUS) => {
                Ok((SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash.to_vec())))
            }
            _ if wanted == config::ChannelBinding::Require => Err(ConnectionError::Unbound),
            _ if !offers(SCRAM_SHA_256) => {
                Err(ConnectionError::Authentication("a SASL mechanism other than SCRAM-SHA-256"))
            }
            Some(_) => Ok((SCRAM_SHA_256, ChannelBinding::unrequested())),
            None => Ok((SCRAM_SHA_256, ChannelBinding::unsupported())),
        }
    }

    async fn scram(
        &mut self,
        mechanism: &str,
        binding: ChannelBinding,
        password: &[u8],
    ) -> Result<(), ConnectionError> {
        let mut out = BytesMut::new();
        let mut scram = ScramSha256::new(password, binding);
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out).map_err(|source| self.io(source))?;
        self.write(&mut out).await?;
        match self.message("the password").await? {
            Message::AuthenticationSaslContinue(body) => scram.update(body.data()).map_err(|source| self.io(source))?,
            _ => return Err(ConnectionError::Protocol("no SCRAM challenge after the first SASL message")),
        }
        frontend::sasl_response(scram.message(), &mut out).map_err(|source| self.io(source))?;
        self.write(&mut out).await?;
        match self.message("the password").await? {
            Message::AuthenticationSaslFinal(body) => scram.finish(body.data()).map_err(|source| self.io(source))?,
            _ => return Err(ConnectionError::Protocol("no SCRAM proof of the server")),
        }
        self.authentication_ok().await
    }

    async fn authentication_ok(&mut self) -> Result<(), ConnectionError> {
        match self.message("the password").await? {
            Message::AuthenticationOk => Ok(()),
            _ => Err(ConnectionError::Protocol("authentication did not end")),
        }
    }
}
