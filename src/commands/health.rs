//! `walhouse health`: asks the process that runs with this configuration how it is.
//!
//! For whoever supervises a container that has no shell and no `curl` in it. It asks the address of `http.listen`, on this
//! machine, as anybody could; so what it says is what a scraper would see.

use crate::config::Config;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Supervisors give it five seconds or so, and then say less than this does.
const PATIENCE: Duration = Duration::from_secs(4);
/// What it answers is a line or a few of them.
const LONGEST_ANSWER: u64 = 64 * 1024;

/// Why nothing was answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is there.
    #[error("http://{0} does not answer ({1}): is walhouse run going, with this http.listen?")]
    Away(SocketAddr, io::Error),
    /// It takes too long.
    #[error("http://{0} has not answered within {PATIENCE:?}")]
    Late(SocketAddr),
    /// It is somebody else.
    #[error("http://{0} does not answer as walhouse does: what else listens there?")]
    Foreign(SocketAddr),
}

/// What the process says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether all is well.
    pub fine: bool,
    /// Its own words.
    pub text: String,
}

/// Asks whether the process serves, or with `ready` whether it has caught up.
///
/// # Errors
/// If nobody has answered.
pub async fn run(config: &Config, ready: bool) -> Result<Answer, Error> {
    let address = reachable(config.http.listen);
    let path = if ready { "/readyz" } else { "/healthz" };
    let answer = timeout(PATIENCE, ask(address, path)).await.map_err(|_| Error::Late(address))?;
    let answer = answer.map_err(|error| Error::Away(address, error))?;
    parse(&answer).ok_or(Error::Foreign(address))
}

/// Who listens everywhere is found here.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let here = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(here, listen.port())
}

async fn ask(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

impl Answer {
    /// For machines: `{"healthy": …, "answer": …}`.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "healthy": self.fine, "answer": self.text })
    }
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, text) = answer.split_once("\r\n\r\n")?;
    let fine = match head.strip_prefix("HTTP/1.")?.get(2..5)? {
        "200" => true,
        "503" => false,
        _ => return None,
    };
    Some(Answer { fine, text: text.trim_end().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_asked_on_loopback() {
        let asked = |listen: &str| reachable(listen.parse().unwrap()).to_string();
        assert_eq!(asked("0.0.0.0:9464"), "127.0.0.1:9464");
        assert_eq!(asked("[::]:9464"), "[::1]:9464");
        assert_eq!(asked("10.1.2.3:80"), "10.1.2.3:80");
    }

    #[test]
    fn an_answer_is_taken_apart_and_anybody_elses_is_not() {
        let answer = |text: &str| parse(text).map(|answer| (answer.fine, answer.text));
        assert_eq!(answer("HTTP/1.0 200 OK\r\na: b\r\n\r\nok\n"), Some((true, "ok".to_owned())));
        assert_eq!(answer("HTTP/1.1 503 No\r\n\r\nnot streaming\n"), Some((false, "not streaming".to_owned())));
        for other in ["HTTP/1.1 404 No\r\n\r\nx", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 20", ""] {
            assert_eq!(answer(other), None, "{other}");
        }
    }
}
