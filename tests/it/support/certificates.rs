//! Certificates, made for one test: an authority, what it issues, and what nobody should trust.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
    SignatureAlgorithm, date_time_ymd,
};

/// A certificate and its key, in PEM form.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Pair {
    /// Writes both into a directory, the key for nobody else to read, and returns where.
    pub(crate) fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
        fs::write(&certificate, &self.certificate).expect("a certificate can be written");
        fs::write(&key, &self.key).expect("a key can be written");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a file's mode can be set");
        (certificate, key)
    }
}

/// An authority of the test's own.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// One that signs with ECDSA and SHA-256.
    pub(crate) fn new(name: &str) -> Self {
        Self::signing_with(name, &PKCS_ECDSA_P256_SHA256)
    }

    pub(crate) fn signing_with(name: &str, algorithm: &'static SignatureAlgorithm) -> Self {
        let key = KeyPair::generate_for(algorithm).expect("a key can be made");
        Self(CertifiedIssuer::self_signed(authority(name, &[]), key).expect("an authority can be made"))
    }

    /// Its own certificate, into a file.
    pub(crate) fn write(&self, directory: &Path, name: &str) -> PathBuf {
        let path = directory.join(format!("{name}.crt"));
        fs::write(&path, self.0.pem()).expect("a certificate can be written");
        path
    }

    /// A certificate for these hosts, names or addresses.
    pub(crate) fn issue(&self, hosts: &[&str]) -> Pair {
        self.sign(params(hosts))
    }

    /// One that has expired long ago.
    pub(crate) fn issue_expired(&self, hosts: &[&str]) -> Pair {
        let mut params = params(hosts);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 2, 3);
        self.sign(params)
    }

    /// A certificate of a client, for this role.
    pub(crate) fn issue_client(&self, role: &str) -> Pair {
        let mut params = params(&[]);
        params.distinguished_name.push(DnType::CommonName, role);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate can be made");
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A certificate that nobody but itself has signed: an authority's, as `openssl req -x509` makes it.
pub(crate) fn self_signed(hosts: &[&str]) -> Pair {
    let key = KeyPair::generate().expect("a key can be made");
    let certificate = authority("self-signed", hosts).self_signed(&key).expect("a certificate can be made");
    Pair { certificate: certificate.pem(), key: key.serialize_pem() }
}

fn params(hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(hosts).expect("hosts are names or addresses");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

fn authority(name: &str, hosts: &[&str]) -> CertificateParams {
    let mut params = params(hosts);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}
