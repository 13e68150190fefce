//! Connections: how many there may be, how slow their other ends may be, and how they end.

use super::routes::router;
use super::state::Server;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutWriter;

/// Bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;
/// A listener that fails, as when too many files are open, is asked again after this.
const PAUSE: Duration = Duration::from_millis(100);

/// What makes connections.
struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
    service: TowerToHyperService<axum::Router>,
    builder: http1::Builder,
    client_timeout: Duration,
}

type Connection = http1::Connection<TokioIo<Io>, TowerToHyperService<axum::Router>>;
/// Reading waits as long as there is something to be told; each stretch of it has a limit of its own.
type Io = std::pin::Pin<Box<TimeoutWriter<TcpStream>>>;

impl Door {
    fn new(listener: TcpListener, server: &Arc<Server>) -> Self {
        let limits = server.limits;
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_header_size(HEAD_BYTES);
        Self {
            listener,
            places: Arc::new(Semaphore::new(limits.connections)),
            service: TowerToHyperService::new(router(Arc::clone(server))),
            builder,
            client_timeout: limits.client_timeout,
        }
    }

    /// The next connection, once there is place for it; its place is free again when the permit is dropped.
    async fn next(&self) -> (Connection, Option<OwnedSemaphorePermit>) {
        // Never closed: there is always a permit at last.
        let permit = Arc::clone(&self.places).acquire_owned().await.ok();
        let stream = loop {
            match self.listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        // Tokens are sent as they come.
        let _ = stream.set_nodelay(true);
        let mut io = TimeoutWriter::new(stream);
        io.set_timeout(Some(self.client_timeout));
        (self.builder.serve_connection(TokioIo::new(Box::pin(io)), self.service.clone()), permit)
    }
}

/// Answers until it is asked to end; then those who are connected get their answers, as long as `drain` and nobody asks
/// again, and those who come are told that the server is ending.
pub(crate) async fn serve(listener: TcpListener, server: Arc<Server>, drain: Duration, asked_to_end: impl AsyncFn()) {
    let door = Door::new(listener, &server);
    let graceful = GracefulShutdown::new();
    let mut asked = Box::pin(asked_to_end());
    loop {
        tokio::select! {
            (connection, permit) = door.next() => {
                let connection = graceful.watch(connection);
                // How a connection ends is the client's affair.
                tokio::spawn(async move {
                    let _ = connection.await;
                    drop(permit);
                });
            }
            () = &mut asked => break,
        }
    }
    server.drain();
    let refuse = async {
        loop {
            let (connection, permit) = door.next().await;
            tokio::spawn(async move {
                let _ = connection.await;
                drop(permit);
            });
        }
    };
    tokio::select! {
        () = graceful.shutdown() => {}
        () = refuse => {}
        () = tokio::time::sleep(drain) => {}
        () = asked_to_end() => {}
    }
}
