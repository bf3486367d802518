//! The listener for Prometheus: HTTP/1, one request for each connection.
//!
//! Whoever can reach it can not keep the agent from anything else, nor others from asking: connections are few, with file
//! descriptors of their own ([`Room`]), one more displaces the oldest, each has some seconds, a request has to be short,
//! and the agent is asked one question at a time.

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
    metrics::{Snapshot, TextFormat},
    room::{Room, SCRAPES},
};

/// How long a connection may take to ask.
const ASKS_WITHIN: Duration = Duration::from_secs(3);
/// How long it may take as a whole: as long as Prometheus waits, unless that is told otherwise.
const LASTS: Duration = Duration::from_secs(10);
/// Connections that the kernel may hold until they are accepted, without a descriptor: one that finds no place tries
/// again after a second.
const BACKLOG: u32 = 128;
/// Bytes of a request's head, the least that the library takes.
const MAX_HEAD: usize = 8192;
const MAX_HEADERS: usize = 64;
/// A snapshot is good for as long: whoever asks without end gets the same one again.
const FRESH: Duration = Duration::from_millis(100);

/// Listens as long as it is there.
pub(super) struct Endpoint(AbortHandle);

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Endpoint {
    /// Listens, and asks the agent by `commands`.
    ///
    /// # Errors
    ///
    /// The address is not one of this machine, or the port is taken.
    pub fn open(at: SocketAddr, room: Room, commands: mpsc::Sender<Command>) -> io::Result<Self> {
        let listener = room.within(|| {
            let socket = match at {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            // Connections of an agent before this one may still be in their last minute.
            socket.set_reuseaddr(true)?;
            socket.bind(at)?;
            socket.listen(BACKLOG)
        })?;
        let scrapers = Arc::new(Scrapers {
            commands,
            last: Mutex::new(None),
        });
        let task = tokio::spawn(accept(listener, room, scrapers));
        Ok(Self(task.abort_handle()))
    }
}

async fn accept(listener: TcpListener, room: Room, scrapers: Arc<Scrapers>) {
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let accepted = poll_fn(|context| room.within(|| listener.poll_accept(context))).await;
        let Ok((stream, _)) = accepted else {
            // The client has gone, or the agent is out of file descriptors: others end, and then it goes on.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        // Who asks is served in milliseconds: the oldest is most likely one that does not.
        if open.len() >= SCRAPES
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
            // Its descriptor is closed then.
            let _ = oldest.await;
        }
        let scrapers = Arc::clone(&scrapers);
        open.push_back(tokio::spawn(async move {
            // What became of it is of interest to the client only.
            let _ = timeout(LASTS, answer(stream, scrapers)).await;
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
        .header_read_timeout(ASKS_WITHIN)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = pin!(connection).await;
}

/// Who answers all of them.
struct Scrapers {
    commands: mpsc::Sender<Command>,
    last: Mutex<Option<(Instant, Snapshot)>>,
}

impl Scrapers {
    /// Asks the agent, or whoever has just asked it.
    async fn snapshot(&self) -> Result<Snapshot, String> {
        // Held while the agent is asked: so it has one question at a time.
        let mut last = self.last.lock().await;
        if let Some((at, snapshot)) = &*last
            && at.elapsed() < FRESH
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
        Err(_) => unavailable("the metrics can not be written"),
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
