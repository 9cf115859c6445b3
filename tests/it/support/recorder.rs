//! What is asked of AWS, in the words of its policies: a front before the emulator, which passes everything on.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp::OwnedWriteHalf};

/// An action, such as `sqs:SendMessage`, and what it was done to: `live`, `dead`, `bucket` or `object`.
pub(crate) type Deed = (String, &'static str);

/// A port that notes what goes through it.
pub(crate) struct Recorder {
    port: u16,
    seen: Arc<Mutex<BTreeSet<Deed>>>,
}

impl Recorder {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let seen = Arc::<Mutex<_>>::default();
        let noted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, Arc::clone(&noted)));
            }
        });
        Self { port, seen }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// All that was done so far.
    pub(crate) fn seen(&self) -> BTreeSet<Deed> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn pass(client: TcpStream, server: u16, seen: Arc<Mutex<BTreeSet<Deed>>>) -> io::Result<()> {
    let (mut from_server, to_server) = TcpStream::connect(("127.0.0.1", server)).await?.into_split();
    let (mut from_client, mut to_client) = client.into_split();
    let answers = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let outcome = requests(&mut from_client, to_server, &seen).await;
    // Whoever has said all may still be answered.
    let _ = answers.await;
    outcome
}

async fn requests(
    client: &mut tokio::net::tcp::OwnedReadHalf,
    mut server: OwnedWriteHalf,
    seen: &Mutex<BTreeSet<Deed>>,
) -> io::Result<()> {
    let mut read = Vec::new();
    while client.read_buf(&mut read).await? > 0 {
        while let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).into_owned();
            let of = |name: &str| {
                head.lines().find_map(|line| {
                    let (own, value) = line.split_once(':')?;
                    own.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
                })
            };
            assert!(of("transfer-encoding").is_none(), "a length is needed: {head}");
            let whole = end + 4 + of("content-length").map_or(0, |length| length.parse().expect("a number"));
            if read.len() < whole {
                break;
            }
            let deed = match of("x-amz-target") {
                Some(target) => sqs(&target, &read[end + 4..whole]),
                None => s3(head.lines().next().unwrap_or_default()),
            };
            seen.lock().unwrap_or_else(PoisonError::into_inner).insert(deed);
            server.write_all(&read[..whole]).await?;
            read.drain(..whole);
        }
    }
    Ok(())
}

/// A batch is allowed by the name of the single action.
fn sqs(target: &str, body: &[u8]) -> Deed {
    let action = target.trim_start_matches("AmazonSQS.").trim_end_matches("Batch");
    let body: Value = serde_json::from_slice(body).expect("JSON");
    let queue = body["QueueUrl"].as_str().or(body["QueueName"].as_str()).unwrap_or_default();
    (format!("sqs:{action}"), if queue.contains("-dlq") { "dead" } else { "live" })
}

/// S3's requests have their meaning in the method and in the path: `PUT /bucket/key?partNumber=1`.
fn s3(line: &str) -> Deed {
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let is_object = path.trim_matches('/').contains('/');
    let action = match (method, is_object) {
        ("PUT" | "POST", true) => "PutObject",
        ("GET" | "HEAD", true) => "GetObject",
        ("DELETE", true) if query.contains("uploadId") => "AbortMultipartUpload",
        ("DELETE", true) => "DeleteObject",
        ("GET", false) => "ListBucket",
        _ => panic!("{line}: not known to be allowed by any action"),
    };
    (format!("s3:{action}"), if is_object { "object" } else { "bucket" })
}
