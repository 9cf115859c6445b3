//! TLS, the same for everything that walhouse connects to by itself: what is verified, and what its errors mean.
//!
//! The files are read when a connection is made, so that a certificate that was renewed is used from then on. A key that others
//! may read is refused, as PostgreSQL's own clients refuse it. There is one implementation of cryptography, and no version
//! before TLS 1.2.

use crate::config::{SslMode, TlsConfig};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{self, CryptoProvider},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// The settings can not be used: a file is not what it should be. Says which key, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// What a client of these settings does; `protocols` is what it speaks, by the names that are registered for that.
///
/// # Errors
/// If a file can not be used.
pub fn client_config(tls: &TlsConfig, protocols: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError(error.to_string()))?;
    let verifier = verifier(tls, &provider)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match &tls.identity {
        Some((certificate, key)) => {
            let chain = certificates(certificate, tls.section, "sslcert")?;
            let private = private_key(key, tls.section)?;
            builder.with_client_auth_cert(chain, private).map_err(|error| {
                TlsError(format!(
                    "{section}.sslkey: {} does not belong to the certificate {} ({error}); give the pair that was issued",
                    key.display(),
                    certificate.display(),
                    section = tls.section
                ))
            })?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn verifier(tls: &TlsConfig, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let roots = if tls.verifies() { Some(roots(tls)?) } else { None };
    match roots {
        Some(roots) if tls.mode == SslMode::VerifyFull => {
            let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
            Ok(built.map_err(|error| TlsError(format!("{}.sslrootcert: {error}", tls.section)))?)
        }
        roots => Ok(Arc::new(AnyName { roots, provider: Arc::clone(provider) })),
    }
}

/// Whom to trust.
fn roots(tls: &TlsConfig) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let Some(path) = &tls.roots else {
        let found = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(found.certs);
        if store.is_empty() {
            return Err(TlsError(format!(
                "this system has no root certificates; install ca-certificates, or set {}.sslrootcert",
                tls.section
            )));
        }
        return Ok(store);
    };
    for certificate in certificates(path, tls.section, "sslrootcert")? {
        store.add(certificate).map_err(|error| {
            TlsError(format!("{}.sslrootcert: {} holds what is no certificate: {error}", tls.section, path.display()))
        })?;
    }
    Ok(store)
}

fn certificates(path: &Path, section: &str, key: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refused = |why: String| TlsError(format!("{section}.{key}: {}: {why}", path.display()));
    let read = fs::read(path).map_err(|error| refused(format!("it can not be read ({error})")))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(refused("it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)".to_owned())),
    }
}

/// The client's key. Nothing of it is ever in a message.
fn private_key(path: &Path, section: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    let refused = |why: String| TlsError(format!("{section}.sslkey: {}: {why}", path.display()));
    let unreadable = |error: io::Error| refused(format!("it can not be read ({error})"));
    let metadata = fs::metadata(path).map_err(unreadable)?;
    // Root's may be read by a group: so it comes as a secret of an orchestrator.
    let (forbidden, least) = if metadata.uid() == 0 { (0o037, "0640") } else { (0o077, "0600") };
    if metadata.mode() & forbidden != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(refused(format!("others may read it (its mode is {mode:04o}); chmod {least}, or less")));
    }
    PrivateKeyDer::from_pem_slice(&fs::read(path).map_err(unreadable)?).map_err(|_| {
        refused("it holds no private key in PEM form that is not encrypted; decrypt it with openssl pkey".to_owned())
    })
}

/// The name is not asked for, and without roots nor is a signature; the peer has to own the certificate that it shows.
#[derive(Debug)]
struct AnyName {
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What TLS has to say in an error, wherever in it that is: what is wrong with the other side, and what to do. `None` if it is
/// about something else.
pub fn refusal(error: &(dyn std::error::Error + 'static), section: &str) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<Error>() {
            return Some(words(error, section));
        }
        if let Some(error) = error.downcast_ref::<TlsError>() {
            return Some(error.to_string());
        }
        // An input/output error does not name what it was made of as its source, but that one's.
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            return refusal(inner, section);
        }
        next = error.source();
    }
    None
}

fn words(error: &Error, section: &str) -> String {
    match error {
        Error::InvalidCertificate(error) => of_certificate(error, section),
        Error::AlertReceived(alert) => of_alert(*alert, section),
        Error::NoCertificatesPresented => "it shows no certificate; give it one".to_owned(),
        Error::PeerIncompatible(_) => {
            format!("it speaks no version and no cipher of TLS that is safe ({error}); allow TLS 1.2 or 1.3 there")
        }
        Error::InvalidMessage(_) => {
            format!("it does not answer as TLS does ({error}); correct the port in {section}.url")
        }
        other => format!("TLS has failed ({other}); look into the server's log"),
    }
}

fn of_certificate(error: &CertificateError, section: &str) -> String {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            let day = humantime::format_rfc3339_seconds(time(*not_after));
            format!("its certificate has expired on {day}; renew it there, and have it loaded")
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            let day = humantime::format_rfc3339_seconds(time(*not_before));
            format!("its certificate is valid from {day} on; set the clock right, here or where it was issued")
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "its certificate is signed by nobody who is trusted here; set {section}.sslrootcert to the certificate of the \
             authority that has issued it"
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names = match presented.is_empty() {
                true => "no host at all (a common name does not count)".to_owned(),
                false => presented.iter().map(|name| plain(name)).collect::<Vec<_>>().join(", "),
            };
            let expected = expected.to_str();
            format!(
                "its certificate is for {names} and not for {expected}; write that name into {section}.url, or issue one \
                 with {expected} in its subjectAltName"
            )
        }
        // The word of the library beneath, which has no kind of its own here.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "its certificate is an authority's own (CA:TRUE), as self-signed ones are; issue one for the server with \
             basicConstraints=CA:FALSE, signed by that authority"
                .to_owned()
        }
        other => format!("its certificate is not valid ({other}); issue another one"),
    }
}

/// `DnsName("db.internal")` is for programmers.
fn plain(presented: &str) -> String {
    let inner = presented.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(presented).trim_matches('"').to_owned()
}

fn of_alert(alert: AlertDescription, section: &str) -> String {
    use AlertDescription as A;
    match alert {
        A::CertificateRequired => {
            format!("it asks for a certificate of the client; set {section}.sslcert and {section}.sslkey")
        }
        A::UnknownCA | A::BadCertificate | A::UnsupportedCertificate | A::AccessDenied | A::DecryptError => format!(
            "it does not take the client's certificate ({alert:?}); set {section}.sslcert and {section}.sslkey to a pair \
             that its authority has issued"
        ),
        A::CertificateExpired | A::CertificateRevoked | A::CertificateUnknown => {
            format!("the client's certificate is not valid any more ({alert:?}); renew {section}.sslcert")
        }
        other => format!("it has ended TLS ({other:?}); look into its log"),
    }
}

fn time(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

#[cfg(test)]
mod tests;
