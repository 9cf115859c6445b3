//! The socket, which the runtime can be told not to watch for a while.
//!
//! A walsender hands each row to its socket by itself. As long as the runtime watches ours, every one of them wakes a
//! thread, though nobody waits for it: that costs both sides more than the row. While it is not watched, rows only gather.

use std::{
    io, mem, net, os,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// A connected socket. Whatever is done with it has it watched again.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    RestingTcp(net::TcpStream),
    RestingUnix(os::unix::net::UnixStream),
    /// Neither could it be watched again.
    Lost,
}

impl Socket {
    /// Is watched no more, until it is read from or written to.
    pub(super) fn rest(&mut self) -> io::Result<()> {
        *self = match mem::replace(self, Self::Lost) {
            Self::Tcp(stream) => Self::RestingTcp(stream.into_std()?),
            Self::Unix(stream) => Self::RestingUnix(stream.into_std()?),
            resting => resting,
        };
        Ok(())
    }

    fn watched(&mut self) -> io::Result<&mut dyn Stream> {
        *self = match mem::replace(self, Self::Lost) {
            Self::RestingTcp(stream) => Self::Tcp(TcpStream::from_std(stream)?),
            Self::RestingUnix(stream) => Self::Unix(UnixStream::from_std(stream)?),
            watched => watched,
        };
        match self {
            Self::Tcp(stream) => Ok(stream),
            Self::Unix(stream) => Ok(stream),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn poll<T>(&mut self, poll: impl FnOnce(Pin<&mut dyn Stream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match self.watched() {
            Ok(stream) => poll(Pin::new(stream)),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(|stream| stream.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn rests(mut socket: Socket, mut far: impl AsyncRead + AsyncWrite + Unpin) {
        for round in 0..3u8 {
            socket.rest().unwrap();
            assert!(matches!(socket, Socket::RestingTcp(_) | Socket::RestingUnix(_)));
            far.write_all(&[round, round]).await.unwrap();
            let mut read = [0; 2];
            socket.read_exact(&mut read).await.unwrap();
            assert_eq!(read, [round, round]);
            socket.rest().unwrap();
            socket.write_all(b"x").await.unwrap();
            assert_eq!(far.read_u8().await.unwrap(), b'x');
        }
        socket.rest().unwrap();
        drop(far);
        assert_eq!(socket.read(&mut [0; 2]).await.unwrap(), 0, "the end is seen too");
    }

    #[tokio::test]
    async fn what_came_during_a_rest_is_read_after_it() {
        let (near, far) = UnixStream::pair().unwrap();
        rests(Socket::Unix(near), far).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        rests(Socket::Tcp(near), listener.accept().await.unwrap().0).await;
    }
}
