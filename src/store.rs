//! Objects: what reports and exports leave behind, and payloads that are too large for a queue, in a directory of this machine
//! or in a bucket of S3.
//!
//! An object is there whole or not at all, under its key and nothing else: in a directory it is written beside its place and then
//! renamed into it, after a sync; in S3 it is one request, or an upload in parts that its end makes visible. To write it again
//! takes the place of what was there. It is written as it comes, and a few parts of it are in memory.

use crate::config::{ObjectsConfig, Place};
use bytes::Bytes;
use object_store::{
    Attribute, Attributes, ClientOptions, Error, ObjectStore, ObjectStoreExt, RetryConfig, aws::AmazonS3Builder,
    buffered::BufWriter, local::LocalFileSystem, path::Path as Key,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::io::AsyncWriteExt;

/// What a part has, and up to how many of them are on their way. S3 takes no smaller ones.
const PART: usize = 5 << 20;
const PARTS_AT_ONCE: usize = 2;
/// A request to S3 that fails is repeated for so long.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRIES: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an object could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(String);

/// Why an object could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The store is there, and has no such object.
    #[error("there is no such object")]
    Missing,
    /// The store can not be asked now; what is wrong, and what to do.
    #[error("{0}")]
    Away(String),
}

/// Where objects are.
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    /// What locations begin with, up to the key; ends with a slash.
    base: String,
    /// What keys begin with in the bucket.
    prefix: Key,
    /// The directory, if it is one.
    directory: Option<PathBuf>,
}

impl Store {
    /// The configured one. Nothing is created or asked for yet, but the directory.
    ///
    /// # Errors
    /// If it can not be used, and what to do.
    pub fn new(config: &ObjectsConfig) -> Result<Self, StoreError> {
        let refused = |why: String| StoreError(format!("objects.url: {why}"));
        match config.place().map_err(refused)? {
            Place::Directory(path) => {
                let inner = local(&path).map_err(refused)?;
                let base = format!("file://{}/", path.display().to_string().trim_end_matches('/'));
                Ok(Self { inner: Arc::new(inner), base, prefix: Key::default(), directory: Some(path) })
            }
            Place::Bucket { name, prefix } => {
                let inner = s3(config, &name).map_err(|error| refused(error.to_string()))?;
                let slash = if prefix.is_empty() { "" } else { "/" };
                let base = format!("s3://{name}/{prefix}{slash}");
                Ok(Self { inner: Arc::new(inner), base, prefix: Key::from(prefix), directory: None })
            }
        }
    }

    /// Where an object is that has this key.
    pub fn location(&self, key: &str) -> String {
        format!("{}{key}", self.base)
    }

    /// The key of the object at a location; `None` if that is not in this store. Whatever a location says, it leads nowhere else:
    /// each part of the key is a plain name.
    pub fn key_of<'a>(&self, location: &'a str) -> Option<&'a str> {
        let plain = |part: &str| {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            !part.is_empty() && !part.bytes().all(|byte| byte == b'.') && part.bytes().all(legal)
        };
        location.strip_prefix(&self.base).filter(|key| key.split('/').all(plain))
    }

    /// How many bytes an object has.
    ///
    /// # Errors
    /// If it is not there, or that can not be known now.
    pub async fn size(&self, key: &str) -> Result<u64, ReadError> {
        let key = self.key(key);
        match self.inner.head(&key).await {
            Ok(found) => Ok(found.size),
            Err(Error::NotFound { .. }) => Err(self.not_found(&key).await),
            Err(error @ Error::PermissionDenied { .. }) if self.directory.is_none() => Err(ReadError::Away(format!(
                "{} (s3:GetObject; and s3:ListBucket, without which S3 says the same of an object that is gone)",
                self.describe(&error)
            ))),
            Err(error) => Err(ReadError::Away(self.describe(&error))),
        }
    }

    /// A part of an object: of the bytes from `start` on as many as one request brings, and none beyond its end, `size`.
    ///
    /// # Errors
    /// If it is not there, or can not be read now.
    pub async fn part(&self, key: &str, start: u64, size: u64) -> Result<Bytes, ReadError> {
        let key = self.key(key);
        let end = size.min(start + PART as u64);
        match self.inner.get_range(&key, start..end).await {
            Ok(bytes) => Ok(bytes),
            Err(Error::NotFound { .. }) => Err(self.not_found(&key).await),
            Err(error) => Err(ReadError::Away(self.describe(&error))),
        }
    }

    /// What it means that an object was not found: a store that is not there has none either.
    async fn not_found(&self, key: &Key) -> ReadError {
        if let Some(directory) = &self.directory {
            return match directory.is_dir() {
                true => ReadError::Missing,
                false => ReadError::Away(format!("{} is not there: create it, or mount it", directory.display())),
            };
        }
        match self.inner.get(key).await {
            Err(Error::NotFound { source, .. }) if source.to_string().contains("NoSuchBucket") => {
                ReadError::Away(format!("{} is not there: create it, or correct objects.url", self.base))
            }
            _ => ReadError::Missing,
        }
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn ready(&self) -> Result<(), String> {
        if let Some(directory) = &self.directory {
            return writable(directory).map_err(|error| no_directory(directory, &error));
        }
        match self.inner.head(&self.key(".walhouse")).await {
            // Whoever may write there need not be one who may look.
            Ok(_) | Err(Error::NotFound { .. } | Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) => {
                Ok(())
            }
            Err(error) => Err(self.describe(&error)),
        }
    }

    /// Begins to write an object. It is there once [`Writer::finish`] has returned, and never if that is not called.
    ///
    /// # Errors
    /// If what an earlier attempt has left there can not be removed.
    pub async fn write(&self, key: &str, content_type: &'static str) -> Result<Writer<'_>, StoreError> {
        let mut writer =
            BufWriter::with_capacity(Arc::clone(&self.inner), self.key(key), PART).with_max_concurrency(PARTS_AT_ONCE);
        match &self.directory {
            Some(directory) => {
                let object = directory.join(key);
                remove_parts(&object).map_err(|error| StoreError(no_directory(directory, &error)))?;
            }
            // A directory has no place for it.
            None => {
                let attributes = Attributes::from_iter([(Attribute::ContentType, content_type)]);
                writer = writer.with_attributes(attributes);
            }
        }
        Ok(Writer { writer: Some(writer), store: self })
    }

    fn key(&self, key: &str) -> Key {
        Key::from_iter(self.prefix.parts().chain(Key::from(key).parts()))
    }

    /// An error, for people: what, where, and what to do.
    fn describe(&self, error: &Error) -> String {
        let at = self.base.trim_end_matches('/');
        if let Some(directory) = &self.directory
            && let Err(error) = writable(directory)
        {
            return no_directory(directory, &error);
        }
        match error {
            Error::NotFound { .. } => format!("{at} is not there: create it, or correct objects.url"),
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                format!("{at} does not let this identity in: see its policy, and AWS_ACCESS_KEY_ID or the role")
            }
            _ => {
                let mut cause: &dyn std::error::Error = error;
                while let Some(inner) = cause.source() {
                    cause = inner;
                }
                // S3's own answers are pages.
                let cause = cause.to_string();
                format!(
                    "{at} can not be used: {}",
                    cause.lines().next().unwrap_or_default().chars().take(200).collect::<String>()
                )
            }
        }
    }
}

/// An object on its way.
pub struct Writer<'a> {
    writer: Option<BufWriter>,
    store: &'a Store,
}

impl Writer<'_> {
    /// Adds to it. After an error there is nothing more to be done with it.
    ///
    /// # Errors
    /// If it could not be written.
    pub async fn put(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let Some(writer) = &mut self.writer else { return Err(StoreError("it has failed before".to_owned())) };
        let put = writer.put(bytes).await;
        put.map_err(|error| StoreError(self.store.describe(&error)))
    }

    /// Makes it appear.
    ///
    /// # Errors
    /// If it is not known to be there.
    pub async fn finish(mut self) -> Result<(), StoreError> {
        let Some(mut writer) = self.writer.take() else { return Err(StoreError("it has failed before".to_owned())) };
        writer.shutdown().await.map_err(|error| StoreError(self.store.describe_io(error)))
    }
}

impl Store {
    fn describe_io(&self, error: io::Error) -> String {
        match error.downcast::<Error>() {
            Ok(error) => self.describe(&error),
            Err(error) => format!("{} can not be used: {error}", self.base.trim_end_matches('/')),
        }
    }
}

impl Drop for Writer<'_> {
    /// Takes back what there is of it; where nobody is left to do that, the bucket's own rule for incomplete uploads does.
    fn drop(&mut self) {
        let (Some(mut writer), Ok(runtime)) = (self.writer.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        runtime.spawn(async move {
            if let Err(error) = writer.abort().await {
                tracing::debug!(%error, "a part of an object is left behind");
            }
        });
    }
}

/// Whether objects could be written, and what there is to say of the place. Nothing of that stays: a directory that is not there is
/// not made, and in a bucket an upload is begun and given up, which is what a large object needs too.
///
/// # Errors
/// If they could not, and what to do.
pub async fn probe(config: &ObjectsConfig) -> Result<String, StoreError> {
    let refused = |why: String| StoreError(format!("objects.url: {why}"));
    if let Place::Directory(path) = config.place().map_err(refused)? {
        let nearest = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(&path);
        writable(nearest).map_err(|error| StoreError(no_directory(&path, &error)))?;
        let will = if nearest == path { "can be written" } else { "will be created" };
        return Ok(format!("{} {will}", path.display()));
    }
    let store = Store::new(config)?;
    let begun = async { store.inner.put_multipart(&store.key(".walhouse")).await?.abort().await };
    begun.await.map_err(|error| StoreError(store.describe(&error)))?;
    Ok(format!("{} can be written", store.base.trim_end_matches('/')))
}

fn local(path: &Path) -> Result<LocalFileSystem, String> {
    fs::create_dir_all(path).map_err(|error| no_directory(path, &error))?;
    let inner = LocalFileSystem::new_with_prefix(path).map_err(|error| error.to_string())?;
    Ok(inner.with_fsync(true))
}

fn no_directory(path: &Path, error: &io::Error) -> String {
    format!(
        "{} can not be written ({error}): give walhouse's user the right to, or set objects.url to another directory",
        path.display()
    )
}

/// Whether there is a directory in which files can be made.
fn writable(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let probe = directory.join(format!(".walhouse-{}", std::process::id()));
    fs::File::create(&probe)?;
    fs::remove_file(&probe)
}

/// Removes what a process that died has left of an object: files beside it with a number behind a hash sign. Whoever writes the
/// object now is the only one who should; another one that still does would find that its file is gone, and fail.
fn remove_parts(object: &Path) -> io::Result<()> {
    let (Some(directory), Some(name)) = (object.parent(), object.file_name().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let number = file.to_str().and_then(|file| file.strip_prefix(name)).and_then(|rest| rest.strip_prefix('#'));
        if number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Credentials are those of AWS's environment variables, of the task's or the machine's role, or of a web identity.
fn s3(config: &ObjectsConfig, bucket: &str) -> Result<object_store::aws::AmazonS3, Error> {
    // reqwest asks the process for its TLS; ours is the same everywhere. Somebody else may have said so before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: PATIENCE, ..RetryConfig::default() };
    let options = ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(PATIENCE);
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    let Some(url) = &config.endpoint_url else { return builder.with_client_options(options).build() };
    if std::env::var_os("AWS_ACCESS_KEY_ID").is_none() {
        // An emulator wants any at all.
        builder = builder.with_access_key_id("walhouse").with_secret_access_key("walhouse");
    }
    let options = options.with_allow_http(url.starts_with("http://"));
    builder.with_endpoint(url).with_virtual_hosted_style_request(false).with_client_options(options).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new() -> Self {
            Self(std::env::temp_dir().join(format!(
                "walhouse-store-{}-{:x}",
                std::process::id(),
                rand::random::<u64>()
            )))
        }

        fn store(&self) -> Store {
            let url = format!("file://{}", self.0.display());
            Store::new(&ObjectsConfig { url, ..ObjectsConfig::default() }).unwrap()
        }

        /// Every file in it, by its path inside.
        fn files(&self) -> Vec<String> {
            let mut found = Vec::new();
            let mut folders = vec![self.0.clone()];
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(folder).unwrap().flatten() {
                    match entry.path() {
                        path if path.is_dir() => folders.push(path),
                        path => found.push(path.strip_prefix(&self.0).unwrap().display().to_string()),
                    }
                }
            }
            found.sort();
            found
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn an_object_is_there_once_it_is_finished_and_takes_the_place_of_another() {
        let directory = Directory::new();
        let store = directory.store();
        assert_eq!(store.ready().await, Ok(()));
        for size in [10, 3 * PART] {
            let mut writer = store.write("m/a.csv", "text/csv").await.unwrap();
            writer.put(Bytes::from(vec![b'x'; size])).await.unwrap();
            writer.put(Bytes::from_static(b"end")).await.unwrap();
            assert!(!directory.files().contains(&"m/a.csv".to_owned()) || size > 10);
            writer.finish().await.unwrap();
            assert_eq!(directory.files(), ["m/a.csv"]);
            assert_eq!(fs::metadata(directory.0.join("m/a.csv")).unwrap().len(), size as u64 + 3);
        }
        assert_eq!(store.location("m/a.csv"), format!("file://{}/m/a.csv", directory.0.display()));
    }

    #[tokio::test]
    async fn what_is_not_finished_never_appears_and_what_a_crash_left_goes_with_the_next_attempt() {
        let directory = Directory::new();
        let store = directory.store();
        let mut writer = store.write("m/a.csv", "text/csv").await.unwrap();
        writer.put(Bytes::from(vec![b'x'; 2 * PART])).await.unwrap();
        assert_eq!(directory.files(), ["m/a.csv#1"]);
        // As a process that was killed: nobody takes anything back.
        std::mem::forget(writer);
        fs::write(directory.0.join("m/other.csv#1"), "of somebody else").unwrap();
        let mut writer = store.write("m/a.csv", "text/csv").await.unwrap();
        assert_eq!(directory.files(), ["m/other.csv#1"]);
        writer.put(Bytes::from(vec![b'x'; 2 * PART])).await.unwrap();
        drop(writer);
        tokio::time::timeout(Duration::from_secs(5), async {
            while directory.files() != ["m/other.csv#1"] {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("what was dropped is taken back");
    }

    #[tokio::test]
    async fn a_bucket_that_does_not_answer_is_named_and_is_asked_over_tls() {
        let url = "s3://some-bucket/a/b".to_owned();
        // Nobody listens on the port of the discard protocol.
        let endpoint_url = Some("https://127.0.0.1:9".to_owned());
        let store = Store::new(&ObjectsConfig { url, endpoint_url, region: Some("eu-central-1".to_owned()) }).unwrap();
        assert_eq!(store.location("m/a.csv"), "s3://some-bucket/a/b/m/a.csv");
        assert_eq!(store.key("m/a.csv").to_string(), "a/b/m/a.csv");
        let away = store.ready().await.unwrap_err();
        assert!(away.starts_with("s3://some-bucket/a/b can not be used: "), "{away}");
        let mut writer = store.write("m/a.csv", "text/csv").await.unwrap();
        writer.put(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(writer.finish().await.unwrap_err().to_string(), away);
    }

    #[tokio::test]
    async fn a_directory_that_can_not_be_made_is_named_with_what_to_do() {
        let directory = Directory::new();
        fs::create_dir_all(&directory.0).unwrap();
        fs::write(directory.0.join("file"), "").unwrap();
        let url = format!("file://{}/file/objects", directory.0.display());
        let refused = Store::new(&ObjectsConfig { url, ..ObjectsConfig::default() }).err().unwrap().to_string();
        assert!(
            refused.starts_with("objects.url: ") && refused.contains("set objects.url to another directory"),
            "{refused}"
        );
    }
}
