//! What answers, and is not PostgreSQL, or no honest one.

use super::{connect, refused};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A server that says `answer` to the first bytes it gets, whatever they are, and `then` to the next.
async fn stranger(answer: &'static [u8], then: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let port = listener.local_addr().expect("a listener has an address").port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                for answer in [answer, then] {
                    if client.read(&mut bytes).await.unwrap_or(0) == 0 || client.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

async fn at(port: u16, mode: &str) -> Result<bool, ([String; 2], bool)> {
    connect(&format!("postgres://w:secret@127.0.0.1:{port}/shop?sslmode={mode}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_postgres_is_named_as_such() {
    for mode in ["prefer", "require", "verify-full"] {
        let http = stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n", b"").await;
        assert!(!refused(
            at(http, mode).await,
            &["does not answer as PostgreSQL does", "correct the port in source.url"]
        ));
        let nonsense = stranger(b"S", b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        refused(at(nonsense, mode).await, &["does not answer as TLS does", "correct the port in source.url"]);
        let silent = stranger(b"S", b"").await;
        refused(at(silent, mode).await, &["has ended the connection within TLS's handshake"]);
        let busy = stranger(b"E\0\0\0\x20SFATAL\0Mtoo many connections\0\0", b"").await;
        assert!(refused(at(busy, mode).await, &["can not begin a session", "see its log"]));
        let ends = stranger(b"NE\0\0\0\x20SFATAL\0Mpostmaster exit\0\0", b"").await;
        assert!(refused(at(ends, mode).await, &["can not begin a session", "see its log"]), "time mends that");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_before_the_handshake_is_never_taken_for_the_servers_word() {
    // An answer that could pass for the end of authentication, from somebody who can only write into the clear part.
    const READY: &[u8] = b"SR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
    const PLAIN: &[u8] = b"NR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
    for mode in ["prefer", "require", "verify-full"] {
        for answer in [READY, PLAIN] {
            let port = stranger(answer, b"").await;
            assert!(!refused(at(port, mode).await, &["sends data before TLS has begun"]), "{mode}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_strikes_tls_out_and_asks_for_the_password_does_not_get_it() {
    // No TLS, then: a notice, and a request for the password in the clear.
    let port = stranger(b"N", b"N\0\0\0\x0aSINFO\0R\0\0\0\x08\0\0\0\x03").await;
    refused(at(port, "prefer").await, &["asks for the password in the clear", "it was not sent"]);
    refused(at(port, "require").await, &["has no TLS, and sslmode=require asks for it"]);
}
