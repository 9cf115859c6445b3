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
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(60), exchange)
        .await
        .map_err(|_elapsed| format!("port {port} did not answer within 60 s"))?
        .map_err(|error| format!("port {port}: {error}"))?;
    let answer = String::from_utf8(answer).map_err(|_invalid| format!("port {port}: the answer is not UTF-8"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("port {port}: no HTTP answer"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Response { status: status.ok_or_else(|| format!("port {port}: no HTTP status"))?, body: body.to_owned() })
}
