//! Just enough HTTP for the tests: one request, one connection.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A whole answer.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// GET from a port of this machine.
pub(crate) async fn get(port: u16, path: &str) -> Result<Response, String> {
    request(port, &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"), "").await
}

/// POST to a port of this machine; `headers` are whole lines.
pub(crate) async fn post(port: u16, path: &str, headers: &str, body: &str) -> Result<Response, String> {
    let head = format!("POST {path} HTTP/1.0\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    request(port, &head, body).await
}

/// PUT to a port of this machine.
pub(crate) async fn put(port: u16, path: &str, body: &str) -> Result<Response, String> {
    let head = format!("PUT {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    request(port, &head, body).await
}

/// HTTP/1.0, so that the answer is not chunked and ends with the connection.
async fn request(port: u16, head: &str, body: &str) -> Result<Response, String> {
    let (status, _, body) = exchange(port, head, body).await?;
    Ok(Response { status, body })
}

/// Sends a request as it is, up to its empty line and its body; gives the answer's status, head and body.
pub(crate) async fn exchange(port: u16, head: &str, body: &str) -> Result<(u16, String, String), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(head.as_bytes()).await?;
        // Who is refused before the body has gone may have closed; the answer is there.
        let _ = stream.write_all(body.as_bytes()).await;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer).await {
            Err(error) if answer.is_empty() => Err(error),
            _ => Ok(answer),
        }
    };
    let answer = tokio::time::timeout(Duration::from_secs(60), exchange)
        .await
        .map_err(|_elapsed| format!("port {port} did not answer within 60 s"))?
        .map_err(|error| format!("port {port}: {error}"))?;
    let answer = String::from_utf8(answer).map_err(|_invalid| format!("port {port}: the answer is not UTF-8"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("port {port}: no HTTP answer"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| format!("port {port}: no HTTP status"))?, head.to_owned(), body.to_owned()))
}
