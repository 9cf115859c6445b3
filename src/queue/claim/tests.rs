//! What goes into the store comes back, and nothing else does.

use super::*;
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let name = format!("walhouse-claim-{}-{:x}", std::process::id(), rand::random::<u64>());
        let directory = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(&directory.0).unwrap();
        directory
    }

    fn claims(&self) -> Claims {
        let url = format!("file://{}/objects", self.0.display());
        Claims::new(&ObjectsConfig { url, ..ObjectsConfig::default() })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const MOST: u64 = 64 << 20;

fn body(payload: &Value) -> String {
    json!({"metadata": {"eventId": "e1", "eventTimestamp": "2026-03-14T15:09:26Z"}, "payload": payload}).to_string()
}

fn reference(claim: &Claim) -> Reference {
    let message: Value = serde_json::from_str(&claim.body).unwrap();
    Referred::of(&message).expect("a reference").reference().clone()
}

async fn put(claims: &Claims, payload: &Value) -> Reference {
    reference(&claims.put(&body(payload)).await.unwrap())
}

#[tokio::test]
async fn a_payload_comes_back_as_it_was_and_one_that_is_written_again_is_the_same_object() {
    let directory = Directory::new();
    let claims = directory.claims();
    // More than one part, and one that ends where a part ends.
    for size in [1, 5 << 20, 12_345_678] {
        let payload = json!({"x": "ü".repeat(size / 2)});
        let first = put(&claims, &payload).await;
        assert_eq!(put(&claims, &payload).await, first);
        assert_eq!(first.bytes, payload.to_string().len() as u64);
        assert_eq!(claims.fetch(&first, MOST).await, Ok(payload.to_string()));
    }
    let (one, other) = (put(&claims, &json!({"n": 1})).await, put(&claims, &json!({"n": 2})).await);
    assert_ne!(one.location, other.location, "one id, two payloads");
    assert_eq!(claims.fetch(&one, MOST).await.as_deref(), Ok(r#"{"n":1}"#));
}

#[tokio::test]
async fn a_reference_leads_to_payloads_of_the_configured_store_alone() {
    let directory = Directory::new();
    let claims = directory.claims();
    let good = put(&claims, &json!({"n": 1})).await;
    let base = format!("file://{}", directory.0.display());
    fs::create_dir_all(directory.0.join("objects/merchant/2026")).unwrap();
    for place in ["secret.json", "objects/merchant/2026/report.json", "objects/payloads/secret.json"] {
        fs::copy(good.location.strip_prefix("file://").unwrap(), directory.0.join(place)).unwrap();
    }
    for location in [
        format!("{base}/secret.json"),
        format!("{base}/objects/../secret.json"),
        format!("{base}/objects/payloads/../secret.json"),
        format!("{base}/objects/payloads/../../secret.json"),
        format!("{base}/objects/payloads/%2e%2e/x.json"),
        format!("{base}/objects/payloads//x.json"),
        format!("{base}/objects/payloads/./x.json"),
        format!("{base}/objects/merchant/2026/report.json"),
        format!("{base}/objects/payloads/secret.json"),
        format!("{base}/objects2/payloads/2026-03-14/x.json"),
        "file:///etc/passwd".to_owned(),
        "s3://bucket/payloads/2026-03-14/x.json".to_owned(),
        "http://169.254.169.254/payloads/2026-03-14/x.json".to_owned(),
        good.location.replacen("file://", "file:///", 1),
        good.location.replacen("file://", "FILE://", 1),
        String::new(),
    ] {
        let refused = claims.fetch(&Reference { location: location.clone(), ..good.clone() }, MOST).await;
        let named = shown(&location);
        assert!(matches!(&refused, Err(FetchError::Definite(why)) if why.contains(&named)), "{location}: {refused:?}");
    }
}

#[tokio::test]
async fn what_is_not_what_the_reference_says_is_refused_for_good_and_names_the_place() {
    let directory = Directory::new();
    let claims = directory.claims();
    let good = put(&claims, &json!({"amount": 100})).await;
    let refused = |reference: Reference, most: u64| {
        let claims = &claims;
        async move {
            match claims.fetch(&reference, most).await {
                Err(FetchError::Definite(why)) => {
                    assert!(why.contains(&reference.location), "{why}");
                    why
                }
                other => panic!("{other:?}"),
            }
        }
    };
    assert!(refused(good.clone(), 5).await.contains("workers.max_payload"));
    assert!(refused(Reference { sha256: "0".repeat(64), ..good.clone() }, MOST).await.contains("SHA-256"));
    assert!(refused(Reference { bytes: 3, ..good.clone() }, MOST).await.contains("has 14 bytes, and not 3"));
    let path = good.location.strip_prefix("file://").unwrap();
    fs::write(path, r#"{"amount":900}"#).unwrap();
    assert!(refused(good.clone(), MOST).await.contains("SHA-256"));
    fs::write(path, "").unwrap();
    assert!(refused(good, MOST).await.contains("has 0 bytes"));
}

#[tokio::test]
async fn what_is_gone_is_told_from_a_store_that_is_away() {
    let directory = Directory::new();
    let claims = directory.claims();
    let good = put(&claims, &json!({"n": 1})).await;
    fs::remove_file(good.location.strip_prefix("file://").unwrap()).unwrap();
    let missing = claims.fetch(&good, MOST).await;
    assert!(matches!(&missing, Err(FetchError::Missing(why)) if why.contains(&good.location)), "{missing:?}");
    let objects = directory.0.join("objects");
    fs::remove_dir_all(&objects).unwrap();
    let away = claims.fetch(&good, MOST).await;
    assert!(matches!(&away, Err(FetchError::Away(why)) if why.contains("is not there")), "{away:?}");
    // A file in its place.
    fs::write(&objects, "").unwrap();
    let away = claims.fetch(&good, MOST).await;
    assert!(matches!(&away, Err(FetchError::Away(why)) if why.contains("can not be written")), "{away:?}");
    let refused = claims.put(&body(&json!({"n": 1}))).await.unwrap_err().to_string();
    assert!(refused.contains("objects can not be written") && refused.contains("objects.url"), "{refused}");
    assert!(claims.ready().await.is_err());
    fs::remove_file(&objects).unwrap();
    assert_eq!((put(&claims, &json!({"n": 1})).await, claims.ready().await), (good, Ok(())));
}
