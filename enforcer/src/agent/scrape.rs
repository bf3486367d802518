//! The listener for Prometheus: HTTP/1, one request per connection.
//!
//! Clients can neither keep the agent from its work nor keep each other from asking: the number of
//! connections is limited, with reserved file descriptors ([`DescriptorReserve`]); a new connection
//! displaces the oldest; each has a few seconds; a request must be short; and the agent handles one
//! query at a time.

use std::{
    collections::VecDeque, convert::Infallible, future::poll_fn, io, net::SocketAddr, pin::pin,
    sync::Arc, time::Duration,
};

use enforcer_policy::text;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes},
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Mutex, mpsc, oneshot},
    task::{AbortHandle, JoinHandle},
    time::{Instant, sleep, timeout},
};

use super::{
    control::Command,
    descriptors::{DescriptorReserve, SCRAPES},
    metrics::{Snapshot, TextFormat},
};

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection may last: Prometheus' default scrape timeout.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How many connections the kernel may queue, without a descriptor, until they are accepted. One
/// that does not fit retries after a second.
const BACKLOG: u32 = 128;
/// The maximum size of a request's head in bytes; the smallest limit that the library allows.
const MAX_HEAD: usize = 8192;
const MAX_HEADERS: usize = 64;
/// How long a snapshot is reused: frequent requests get the same one again.
const SNAPSHOT_LIFETIME: Duration = Duration::from_millis(100);

/// Listens until it is dropped.
pub(super) struct Endpoint(AbortHandle);

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Endpoint {
    /// Listens, and queries the agent through `commands`.
    ///
    /// # Errors
    ///
    /// The address is not local, or the port is taken.
    pub fn open(
        at: SocketAddr,
        reserve: DescriptorReserve,
        commands: mpsc::Sender<Command>,
    ) -> io::Result<Self> {
        let listener = reserve.within(|| {
            let socket = match at {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            // Connections of a previous agent may still be in TIME_WAIT.
            socket.set_reuseaddr(true)?;
            socket.bind(at)?;
            socket.listen(BACKLOG)
        })?;
        let scrapers = Arc::new(Scrapers {
            commands,
            last: Mutex::new(None),
        });
        let task = tokio::spawn(accept(listener, reserve, scrapers));
        Ok(Self(task.abort_handle()))
    }
}

async fn accept(listener: TcpListener, reserve: DescriptorReserve, scrapers: Arc<Scrapers>) {
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let accepted = poll_fn(|context| reserve.within(|| listener.poll_accept(context))).await;
        let Ok((stream, _)) = accepted else {
            // The client is gone, or the agent is out of file descriptors: wait for other
            // connections to end.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        // A request is served in milliseconds, so the oldest connection is most likely an idle one.
        if open.len() >= SCRAPES
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
            // Closes its descriptor.
            let _ = oldest.await;
        }
        let scrapers = Arc::clone(&scrapers);
        open.push_back(tokio::spawn(async move {
            // Only the client cares about the result.
            let _ = timeout(CONNECTION_TIMEOUT, answer(stream, scrapers)).await;
        }));
    }
}

async fn answer(stream: TcpStream, scrapers: Arc<Scrapers>) {
    let service = service_fn(move |request: Request<_>| {
        let scrapers = Arc::clone(&scrapers);
        async move { Ok::<_, Infallible>(respond(&request, &scrapers).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = pin!(connection).await;
}

/// What all connections share.
struct Scrapers {
    commands: mpsc::Sender<Command>,
    last: Mutex<Option<(Instant, Snapshot)>>,
}

impl Scrapers {
    /// Queries the agent, or returns a recent snapshot.
    async fn snapshot(&self) -> Result<Snapshot, String> {
        // Held during the query, so that there is one at a time.
        let mut last = self.last.lock().await;
        if let Some((at, snapshot)) = &*last
            && at.elapsed() < SNAPSHOT_LIFETIME
        {
            return Ok(snapshot.clone());
        }
        let ends = || "the agent ends".to_owned();
        let (reply, answer) = oneshot::channel();
        let asked = self.commands.send(Command::Metrics(reply)).await;
        asked.map_err(|_| ends())?;
        let snapshot = answer.await.map_err(|_| ends())??;
        *last = Some((Instant::now(), snapshot.clone()));
        Ok(snapshot)
    }
}

async fn respond<B: Body>(request: &Request<B>, scrapers: &Scrapers) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        let headers = response.headers_mut();
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let accepts = request.headers().get_all(ACCEPT).iter();
    let accepts = accepts.filter_map(|value| value.to_str().ok());
    let format = TextFormat::of(&accepts.collect::<Vec<_>>().join(","));
    let unavailable = |why: &str| {
        let why = format!("{}\n", text::shown(why));
        plain(StatusCode::SERVICE_UNAVAILABLE, &why)
    };
    let snapshot = match scrapers.snapshot().await {
        Ok(snapshot) => snapshot,
        Err(why) => return unavailable(&why),
    };
    match format.encode(snapshot) {
        Ok(body) => with_type(StatusCode::OK, format.content_type(), body),
        Err(_) => unavailable("the metrics cannot be written"),
    }
}

fn plain(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", body.to_owned())
}

fn with_type(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
