use super::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{os::unix::fs::PermissionsExt, path::PathBuf};

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("walhouse-tls-{:016x}", rand::random::<u64>()));
        fs::create_dir(&path).expect("a directory can be made");
        Self(path)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("a file can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode can be set");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The certificate and the key of an authority, and of somebody it vouches for.
fn pairs() -> [(String, String); 2] {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let client = CertificateParams::default().signed_by(&key, &authority).expect("a certificate");
    [(authority.pem(), authority.key().serialize_pem()), (client.pem(), key.serialize_pem())]
}

fn settings(roots: Option<&Path>, identity: Option<(&Path, &Path)>) -> TlsConfig {
    TlsConfig {
        section: "source",
        mode: SslMode::VerifyFull,
        roots: roots.map(Path::to_owned),
        identity: identity.map(|(certificate, key)| (certificate.to_owned(), key.to_owned())),
    }
}

#[track_caller]
fn refused(tls: &TlsConfig, words: &[&str]) {
    let error = client_config(tls, &[]).expect_err("a refusal").to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {error}");
    assert!(!error.contains("PRIVATE"), "{error}");
}

#[test]
fn files_that_can_not_be_used_are_named_by_their_key_with_what_to_do() {
    let directory = Directory::new();
    let [(root, _), (certificate, key)] = pairs();
    let root = directory.write("ca.pem", &root, 0o644);
    let certificate = directory.write("client.pem", &certificate, 0o644);
    let private = directory.write("client.key", &key, 0o600);
    client_config(&settings(Some(&root), Some((&certificate, &private))), &[]).expect("these can be used");

    let absent = directory.0.join("absent.pem");
    refused(&settings(Some(&absent), None), &["source.sslrootcert: ", "absent.pem", "can not be read"]);
    refused(&settings(Some(&private), None), &["source.sslrootcert: ", "-----BEGIN CERTIFICATE-----"]);
    refused(&settings(Some(&root), Some((&absent, &private))), &["source.sslcert: ", "can not be read"]);
    refused(&settings(Some(&root), Some((&certificate, &absent))), &["source.sslkey: ", "can not be read"]);
    refused(&settings(Some(&root), Some((&certificate, &certificate))), &["source.sslkey: ", "chmod 06"]);
    let broken = directory.write("broken.key", &key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), 0o600);
    refused(&settings(Some(&root), Some((&certificate, &broken))), &["source.sslkey: ", "openssl pkey"]);
    let other = directory.write("other.key", &KeyPair::generate().expect("a key").serialize_pem(), 0o600);
    refused(
        &settings(Some(&root), Some((&certificate, &other))),
        &["source.sslkey: ", "does not belong", "client.pem"],
    );
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let directory = Directory::new();
    let [(root, _), (certificate, key)] = pairs();
    let root = directory.write("ca.pem", &root, 0o644);
    let certificate = directory.write("client.pem", &certificate, 0o644);
    let is_roots = fs::metadata(&root).expect("it is there").uid() == 0;
    for (mode, fine) in
        [(0o600, true), (0o400, true), (0o640, is_roots), (0o660, false), (0o644, false), (0o604, false)]
    {
        let key = directory.write("client.key", &key, mode);
        let tls = settings(Some(&root), Some((&certificate, &key)));
        match client_config(&tls, &[]) {
            Ok(_) => assert!(fine, "{mode:o}"),
            Err(error) => {
                let error = error.to_string();
                assert!(!fine && error.contains(&format!("its mode is {mode:04o}")), "{mode:o}: {error}");
            }
        }
    }
}

#[test]
fn an_error_within_others_is_found_and_told_in_words() {
    let expired = Error::InvalidCertificate(CertificateError::ExpiredContext {
        time: UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000)),
        not_after: UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000)),
    });
    let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, expired));
    let said = refusal(&wrapped, "source").expect("it is TLS's");
    assert_eq!(said, "its certificate has expired on 2023-11-14T22:13:20Z; renew it there, and have it loaded");
    assert_eq!(refusal(&io::Error::other("a cable was pulled"), "source"), None);
    let alert = Error::AlertReceived(AlertDescription::CertificateRequired);
    assert!(refusal(&alert, "clickhouse").is_some_and(|said| said.contains("set clickhouse.sslcert")));
}

#[test]
fn a_name_is_shown_as_people_write_it() {
    assert_eq!(plain("DnsName(\"db.internal\")"), "db.internal");
    assert_eq!(plain("IpAddress(127.0.0.1)"), "127.0.0.1");
    assert_eq!(plain("anything"), "anything");
}
