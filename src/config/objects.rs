//! `[objects]`: where the results of reports and exports are put.

use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    path::{Component, Path, PathBuf},
};

/// `[objects]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectsConfig {
    /// A directory of this machine, `file:///path`, or a bucket, `s3://bucket`, with what keys begin with behind it.
    /// With `[queue]` also the payloads of events that are too large for SQS. Every process with the same configuration
    /// has to see the same place.
    ///
    /// Change it to a bucket as soon as there is more than one machine. Credentials come from AWS's environment
    /// variables, or from the role of the task or the machine.
    pub url: String,
    /// Where S3 is; AWS if it is absent. For an `s3://` URL alone.
    ///
    /// Set it for a store that is not AWS's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_url: Option<String>,
    /// The bucket's region; `AWS_REGION` if it is absent. For an `s3://` URL alone.
    ///
    /// Set it where the environment does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// Where objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory.
    Directory(PathBuf),
    /// A bucket of S3.
    Bucket {
        /// Its name.
        name: String,
        /// What keys begin with, without slashes at its ends; may be empty.
        prefix: String,
    },
}

impl Default for ObjectsConfig {
    fn default() -> Self {
        Self { url: "file:///var/lib/walhouse/objects".to_owned(), endpoint_url: None, region: None }
    }
}

const FORMS: &str = "give \"file:///absolute/path\" or \"s3://bucket/prefix\"";

impl ObjectsConfig {
    /// Where `url` points.
    ///
    /// # Errors
    /// If it is of another form; says which ones there are.
    pub fn place(&self) -> Result<Place, String> {
        if self.url.chars().any(|one| one.is_control() || matches!(one, '?' | '#' | '@')) {
            return Err(format!("it holds what is no part of a path; {FORMS}"));
        }
        if let Some(path) = self.url.strip_prefix("file://") {
            let path = Path::new(path);
            // Relative to what? Not to wherever somebody happened to start walhouse.
            if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
                return Err(format!("its path is not absolute; {FORMS}"));
            }
            if path.parent().is_none() {
                return Err("it is the root of the file system; give a directory of its own".to_owned());
            }
            return Ok(Place::Directory(path.to_owned()));
        }
        let Some(rest) = self.url.strip_prefix("s3://") else { return Err(format!("it has another form; {FORMS}")) };
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        if !(3..=63).contains(&name.len()) || !name.bytes().all(legal) {
            return Err(format!("it does not name a bucket; {FORMS}"));
        }
        Ok(Place::Bucket { name: name.to_owned(), prefix: prefix.trim_matches('/').to_owned() })
    }

    pub(super) fn check(&self) -> Result<(), (Cow<'static, str>, String)> {
        let at = |key: &'static str| move |message| (Cow::from(key), message);
        let place = self.place().map_err(at("objects.url"))?;
        if let Some(url) = &self.endpoint_url {
            endpoint(url).map_err(at("objects.endpoint_url"))?;
        }
        for (key, value) in [("objects.endpoint_url", &self.endpoint_url), ("objects.region", &self.region)] {
            if value.is_some() && matches!(place, Place::Directory(_)) {
                return Err(at(key)(
                    "it is of use for an s3:// URL alone; remove it, or change objects.url".to_owned(),
                ));
            }
        }
        Ok(())
    }
}

/// Never quotes the URL, which may hold a password where it is wrong.
fn endpoint(text: &str) -> Result<(), String> {
    let url = text.parse::<axum::http::Uri>().ok();
    let fits = url.is_some_and(|url| {
        let plain = url.authority().is_some_and(|authority| !authority.as_str().contains('@')) && url.query().is_none();
        plain && matches!(url.scheme_str(), Some("http" | "https"))
    });
    fits.then_some(()).ok_or_else(|| "it is not a URL of the form https://host:9000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Result<Place, String> {
        ObjectsConfig { url: url.to_owned(), ..ObjectsConfig::default() }.place()
    }

    #[test]
    fn a_directory_is_absolute_and_a_bucket_has_its_prefix() {
        assert_eq!(place("file:///a/b"), Ok(Place::Directory(PathBuf::from("/a/b"))));
        let bucket = |prefix: &str| Ok(Place::Bucket { name: "shop-reports".to_owned(), prefix: prefix.to_owned() });
        assert_eq!(place("s3://shop-reports"), bucket(""));
        assert_eq!(place("s3://shop-reports/a/b/"), bucket("a/b"));
        for url in [
            "file://objects",
            "file://./objects",
            "file:///a/../b",
            "file:///",
            "objects",
            "/objects",
            "s3://",
            "s3://a",
            "s3://Up/x",
            "s3://user:canary@bucket",
            "https://bucket/x",
            "",
        ] {
            let why = place(url).expect_err(url);
            assert!(!why.contains("canary"), "{why}");
        }
    }

    #[test]
    fn what_is_of_no_use_is_refused() {
        let here = ObjectsConfig { region: Some("eu-central-1".to_owned()), ..ObjectsConfig::default() };
        assert_eq!(here.check().expect_err("a directory has no region").0, "objects.region");
        let there = ObjectsConfig { url: "s3://bucket".to_owned(), ..here };
        assert_eq!(there.check(), Ok(()));
    }
}
