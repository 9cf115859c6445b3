//! Who is at the other end: the certificate that the server has shown.
//!
//! SCRAM can be bound to it (`tls-server-end-point`, RFC 5929): both sides mix a hash of the certificate into what proves the
//! password, so that a server in between, with a certificate of its own, has nothing to pass on. The hash is the one that the
//! certificate is signed with, and SHA-256 where that is MD5 or SHA-1. Of a signature without a hash of its own, such as
//! Ed25519, nothing is defined, and PostgreSQL has nothing to offer either.

use rustls::{ProtocolVersion, pki_types::CertificateDer};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use std::time::SystemTime;
use x509_cert::{
    Certificate,
    der::{Decode, asn1::ObjectIdentifier},
};

/// The server, as it has shown itself in the handshake.
pub struct Peer {
    end_point: Option<Vec<u8>>,
    valid_until: Option<SystemTime>,
    version: Option<ProtocolVersion>,
    knows_us: bool,
}

impl Peer {
    pub(super) fn new(certificate: &CertificateDer<'_>, version: Option<ProtocolVersion>, knows_us: bool) -> Self {
        let parsed = Certificate::from_der(certificate).ok();
        let end_point = parsed.as_ref().and_then(|parsed| {
            let algorithm = parsed.signature_algorithm();
            // The first field of RSA-PSS's parameters, where there are any, is the hash.
            let within = algorithm.parameters.as_ref().map(|any| any.value());
            hash(algorithm.oid, within.unwrap_or_default(), certificate)
        });
        let valid_until = parsed
            .map(|parsed| SystemTime::UNIX_EPOCH + parsed.tbs_certificate().validity().not_after.to_unix_duration());
        Self { end_point, valid_until, version, knows_us }
    }

    /// What SCRAM is bound to; `None` if nothing is defined for such a certificate.
    pub fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }

    /// When the certificate expires.
    pub fn valid_until(&self) -> Option<SystemTime> {
        self.valid_until
    }

    /// Whether there is a certificate to show to it, should it ask.
    pub fn knows_us(&self) -> bool {
        self.knows_us
    }

    /// `TLS 1.3`
    pub fn version(&self) -> &'static str {
        match self.version {
            Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
            _ => "TLS 1.3",
        }
    }
}

const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

fn hash(algorithm: ObjectIdentifier, parameters: &[u8], certificate: &[u8]) -> Option<Vec<u8>> {
    if algorithm == RSA_PSS {
        return hash_of_pss(parameters, certificate);
    }
    Some(match algorithm.to_string().as_str() {
        // RSA with MD5, SHA-1 or SHA-256; ECDSA with SHA-1 or SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => Sha256::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => Sha224::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Sha384::digest(certificate).to_vec(),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Sha512::digest(certificate).to_vec(),
        _ => return None,
    })
}

/// Its hash is the first that its parameters name; SHA-1, and so SHA-256, if they name none.
fn hash_of_pss(parameters: &[u8], certificate: &[u8]) -> Option<Vec<u8>> {
    // 2.16.840.1.101.3.4.2.x, as it is encoded.
    const NIST: [u8; 8] = [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
    let named = parameters.windows(NIST.len() + 1).find(|window| window.starts_with(&NIST));
    Some(match named.and_then(<[u8]>::last) {
        None | Some(1) => Sha256::digest(certificate).to_vec(),
        Some(2) => Sha384::digest(certificate).to_vec(),
        Some(3) => Sha512::digest(certificate).to_vec(),
        Some(4) => Sha224::digest(certificate).to_vec(),
        Some(_) => return None,
    })
}
