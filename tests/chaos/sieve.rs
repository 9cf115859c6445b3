//! In front of SQS: takes a message out of a batch before SQS sees it, and answers for it as SQS answers for a message that it
//! could not take. The others of its batch are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Error, ErrorKind, Result};
use tokio::net::{TcpListener, TcpStream};

/// Passes requests and answers, whole ones.
pub(crate) struct Sieve {
    port: u16,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// So many more batches lose a message.
    wanted: AtomicU32,
    refused: AtomicU32,
}

impl Sieve {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let counts = Arc::<Counts>::default();
        let shared = Arc::clone(&counts);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Either side hanging up is the end of it.
                tokio::spawn(pass(client, server, Arc::clone(&shared)));
            }
        });
        Self { port, counts }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The next batch of several messages loses one of them.
    pub(crate) fn refuse_one(&self) {
        self.counts.wanted.fetch_add(1, Ordering::Relaxed);
    }

    /// How many messages were refused.
    pub(crate) fn refused(&self) -> u32 {
        self.counts.refused.load(Ordering::Relaxed)
    }
}

async fn pass(client: TcpStream, server: u16, counts: Arc<Counts>) -> Result<()> {
    let mut client = BufReader::new(client);
    let mut server = BufReader::new(TcpStream::connect(("127.0.0.1", server)).await?);
    loop {
        let (head, mut body) = receive(&mut client).await?;
        let is_batch = head.contains("AmazonSQS.SendMessageBatch");
        let taken_out = if is_batch { take_out(&mut body, &counts) } else { None };
        send(&mut server, &head, &body).await?;
        let (head, mut body) = receive(&mut server).await?;
        if let Some(id) = taken_out {
            answer_for(&id, &mut body);
        }
        send(&mut client, &head, &body).await?;
    }
}

/// Takes a message out of a batch, if one is to be; its id in the batch.
fn take_out(body: &mut Vec<u8>, counts: &Counts) -> Option<Value> {
    let mut request: Value = serde_json::from_slice(body).ok()?;
    let entries = request["Entries"].as_array_mut().filter(|entries| entries.len() > 1)?;
    counts.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |wanted| wanted.checked_sub(1)).ok()?;
    let entry = entries.remove(rand::random_range(0..entries.len()));
    *body = request.to_string().into_bytes();
    counts.refused.fetch_add(1, Ordering::Relaxed);
    Some(entry["Id"].clone())
}

fn answer_for(id: &Value, body: &mut Vec<u8>) {
    let Ok(mut answer) = serde_json::from_slice::<Value>(body) else { return };
    let failed = json!({"Id": id, "SenderFault": false, "Code": "InternalFailure", "Message": "try again"});
    match answer["Failed"].as_array_mut() {
        Some(others) => others.push(failed),
        None => answer["Failed"] = json!([failed]),
    }
    *body = answer.to_string().into_bytes();
}

/// A head without its length, and a body.
async fn receive(from: &mut BufReader<TcpStream>) -> Result<(String, Vec<u8>)> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if line.trim_end().is_empty() {
            break;
        }
        match line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            Some((_, text)) => length = text.trim().parse().map_err(|_| Error::from(ErrorKind::InvalidData))?,
            None => head += &line,
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    Ok((head, body))
}

async fn send(to: &mut BufReader<TcpStream>, head: &str, body: &[u8]) -> Result<()> {
    to.write_all(format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes()).await?;
    to.write_all(body).await?;
    to.flush().await
}
