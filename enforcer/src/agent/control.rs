//! The control socket: one request per line, answered by one line, or by one line per event.
//! Followers of events also get an empty line from time to time, which shows that the agent is
//! alive.
//!
//! No client can keep the agent from answering others: connections have reserved file descriptors
//! ([`DescriptorReserve`]), and both their number and their duration are limited.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use enforcer_policy::text;
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, unix::AsyncFd},
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::{Semaphore, broadcast, mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    AgentError, Event, Sources, Status,
    descriptors::{CONNECTIONS, DescriptorReserve},
    metrics::Snapshot,
};
use crate::api::{
    Applied, DetachResult, Document, Ends, Error, ErrorCode, Kind, Request, read_request,
};

/// A request on its way to the agent, with the channel for its answer.
pub enum Command {
    /// See [`Request::Status`].
    Status(oneshot::Sender<Result<Status, String>>),
    /// See [`Request::Events`]: the recorded events, and the source of new ones.
    Events(oneshot::Sender<Result<EventFeed, String>>),
    /// See [`Request::Sources`].
    Sources(oneshot::Sender<Sources>),
    /// From [`super::scrape`]; not a request of the socket.
    Metrics(oneshot::Sender<Result<Snapshot, String>>),
    /// See [`Request::Apply`].
    Apply(ToApply, Answer<Applied>),
    /// See [`Request::Confirm`].
    Confirm(Answer<Applied>),
    /// See [`Request::Rollback`].
    Rollback(Answer<Applied>),
    /// See [`Request::Detach`].
    Detach(ShutdownAck),
}

/// How what the policy's files hold is to be put in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToApply {
    /// How long it may wait to be confirmed; nothing if it need not be.
    pub within: Option<Duration>,
    /// Whether it is confirmed once what was alive before is alive again.
    pub by_probes: bool,
    /// What it must not cut.
    pub conditions: Conditions,
}

/// Under which conditions a policy is put in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// It may cut nothing that is open.
    pub requires_clean: bool,
    /// It may cut the session.
    pub allows_session_cut: bool,
    /// The connections of the person who wants it.
    pub session: Vec<Ends>,
}

/// The way back for an answer, or for why there is none.
pub type Answer<T> = oneshot::Sender<Result<T, Box<Error>>>;

/// The recorded denials, and the source of new ones.
pub type EventFeed = (Vec<Event>, broadcast::Receiver<Event>);

/// The last exchange: the agent says that it is done, and waits until that is written.
pub struct ShutdownAck {
    /// Everything is detached.
    pub done: oneshot::Sender<()>,
    /// Completes when the answer has been written.
    pub written: oneshot::Receiver<()>,
}

/// The socket; exists as long as the agent runs.
pub struct Control {
    path: PathBuf,
    commands: mpsc::Sender<Command>,
}

/// Where the socket of a run directory is.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

impl Control {
    /// Listens. Requests arrive at the receiver.
    pub fn open(
        run_dir: &Path,
        reserve: DescriptorReserve,
    ) -> Result<(Self, mpsc::Receiver<Command>), AgentError> {
        let path = socket_path(run_dir);
        // The lock is held, so whoever left a socket here no longer runs.
        let _ = fs::remove_file(&path);
        let action = format!("listen at {}", text::path(&path));
        let system = || AgentError::system(&action);
        let listener = UnixListener::bind(&path).map_err(system())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(system())?;
        listener.set_nonblocking(true).map_err(system())?;
        // SAFETY: the descriptor belongs to the listener, which never changes it and lives as long
        // as the registration.
        let listener = unsafe { AsyncFd::register(listener) };
        let listener = listener.map_err(io::Error::from).map_err(system())?;
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(accept(listener, reserve, sender.clone()));
        let control = Self {
            path,
            commands: sender,
        };
        Ok((control, receiver))
    }

    /// Another sender to the receiver.
    pub fn commands(&self) -> mpsc::Sender<Command> {
        self.commands.clone()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Longer lines are not requests.
const MAX_REQUEST: u64 = 4096;

/// How many of the connections may follow events, for as long as they like.
const FOLLOWERS: usize = CONNECTIONS / 2;
/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take to read the answer. A follower of events may be at a pager's prompt.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const FOLLOWER_TIMEOUT: Duration = Duration::from_secs(600);
/// How often followers of events get a sign of life.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(5);

async fn accept(
    listener: AsyncFd<UnixListener>,
    reserve: DescriptorReserve,
    commands: mpsc::Sender<Command>,
) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let followers = Arc::new(Semaphore::new(FOLLOWERS));
    loop {
        // One connection over the limit waits until another ends, which never takes long.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let accepted = loop {
            let Ok(mut ready) = listener.readable().await else {
                return;
            };
            let accept =
                |inner: &AsyncFd<UnixListener>| reserve.within(|| inner.get_ref().accept());
            match ready.try_io(accept) {
                Ok(accepted) => break accepted,
                Err(_nobody_there) => {}
            }
        };
        let stream = accepted.and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        });
        let Ok(stream) = stream else {
            // Out of file descriptors despite the reserve: wait for other connections to end.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (commands, followers) = (commands.clone(), Arc::clone(&followers));
        tokio::spawn(async move {
            answer(stream, &commands, &followers).await;
            drop(permit);
        });
    }
}

async fn answer(stream: UnixStream, commands: &mpsc::Sender<Command>, followers: &Semaphore) {
    let (from, to) = stream.into_split();
    let mut read = BufReader::new(from);
    let mut to = Client {
        write: to,
        read_timeout: ANSWER_TIMEOUT,
    };
    loop {
        let mut line = String::new();
        let mut limited = (&mut read).take(MAX_REQUEST);
        match timeout(REQUEST_TIMEOUT, limited.read_line(&mut line)).await {
            Ok(Ok(1..)) => {}
            // The client has hung up, sends no valid UTF-8, or sends nothing.
            Ok(Ok(0) | Err(_)) | Err(_) => return,
        }
        let result = match read_request(&line) {
            Ok(request) => serve(request, commands, followers, &mut to).await,
            Err(error) => write(&mut to, *error).await,
        };
        if result.is_none() {
            return;
        }
    }
}

/// A client.
struct Client {
    write: OwnedWriteHalf,
    read_timeout: Duration,
}

/// Returns early if the client or the agent is gone.
async fn serve(
    request: Request,
    commands: &mpsc::Sender<Command>,
    followers: &Semaphore,
    to: &mut Client,
) -> Option<()> {
    match request {
        Request::Status {} => {
            let (reply, answer) = oneshot::channel();
            commands.send(Command::Status(reply)).await.ok()?;
            match answer.await.ok()? {
                Ok(status) => write(to, status).await,
                Err(error) => write(to, Error::new(ErrorCode::Failed, error)).await,
            }
        }
        Request::Sources {} => {
            let (reply, answer) = oneshot::channel();
            commands.send(Command::Sources(reply)).await.ok()?;
            write(to, answer.await.ok()?).await
        }
        Request::Apply {
            confirm_within_ms,
            confirm_by,
            require_clean,
            allow_session_cut,
            session,
        } => {
            let to_apply = ToApply {
                within: confirm_within_ms.map(Duration::from_millis),
                by_probes: confirm_by.is_some(),
                conditions: Conditions {
                    requires_clean: require_clean,
                    allows_session_cut: allow_session_cut,
                    session,
                },
            };
            answered(commands, to, |reply| Command::Apply(to_apply, reply)).await
        }
        Request::Confirm {} => answered(commands, to, Command::Confirm).await,
        Request::Rollback {} => answered(commands, to, Command::Rollback).await,
        Request::Events { follow, denied } => {
            let _permit = match (follow, followers.try_acquire()) {
                (false, _) => None,
                (true, Ok(permit)) => {
                    to.read_timeout = FOLLOWER_TIMEOUT;
                    Some(permit)
                }
                (true, Err(_)) => {
                    let full = format!("{FOLLOWERS} follow its events already, and no more may");
                    return write(to, Error::new(ErrorCode::TooManyFollowers, full)).await;
                }
            };
            events(commands, to, follow, denied).await?;
            // The end of the list is the end of the connection.
            None
        }
        Request::Detach {} => {
            let (done, answer) = oneshot::channel();
            let (_written, wait) = oneshot::channel();
            commands
                .send(Command::Detach(ShutdownAck {
                    done,
                    written: wait,
                }))
                .await
                .ok()?;
            answer.await.ok()?;
            write(to, DetachResult { detached: true }).await
        }
    }
}

/// Passes a command to the agent, and returns its answer.
async fn answered(
    commands: &mpsc::Sender<Command>,
    to: &mut Client,
    command: impl FnOnce(Answer<Applied>) -> Command,
) -> Option<()> {
    let (reply, answer) = oneshot::channel();
    commands.send(command(reply)).await.ok()?;
    match answer.await.ok()? {
        Ok(applied) => write(to, applied).await,
        Err(error) => write(to, *error).await,
    }
}

async fn events(
    commands: &mpsc::Sender<Command>,
    to: &mut Client,
    follow: bool,
    denied: bool,
) -> Option<()> {
    loop {
        let (reply, answer) = oneshot::channel();
        commands.send(Command::Events(reply)).await.ok()?;
        let (known, mut new) = match answer.await.ok()? {
            Ok(events) => events,
            Err(error) => return write(to, Error::new(ErrorCode::Failed, error)).await,
        };
        for event in known.iter().filter(|event| !denied || event.is_denied()) {
            write(to, event).await?;
        }
        if !follow {
            return Some(());
        }
        loop {
            match timeout(KEEP_ALIVE, new.recv()).await {
                Ok(Ok(event)) if !denied || event.is_denied() => write(to, event).await?,
                Ok(Ok(_)) => {}
                // The reader is slow. The records still hold everything, so start over.
                Ok(Err(broadcast::error::RecvError::Lagged(_))) => break,
                Ok(Err(broadcast::error::RecvError::Closed)) => return None,
                Err(_nothing_new) => send(to, b"\n").await?,
            }
        }
    }
}

async fn write(to: &mut Client, answer: impl Kind + Serialize) -> Option<()> {
    let mut line = serde_json::to_vec(&Document::new(answer)).ok()?;
    line.push(b'\n');
    send(to, &line).await
}

async fn send(to: &mut Client, bytes: &[u8]) -> Option<()> {
    timeout(to.read_timeout, to.write.write_all(bytes))
        .await
        .ok()?
        .ok()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::api::tests::{event, status};

    /// An agent's answers to lines that a client sends one after another on one connection.
    fn answers(lines: &[&str]) -> Vec<Value> {
        let runtime = super::super::runtime().unwrap();
        runtime.block_on(async {
            let (client, agent) = UnixStream::pair().unwrap();
            let (commands, mut asked) = mpsc::channel(1);
            let followers = Semaphore::new(1);
            tokio::spawn(async move { answer(agent, &commands, &followers).await });
            tokio::spawn(async move {
                let (news, _) = broadcast::channel(1);
                while let Some(command) = asked.recv().await {
                    match command {
                        Command::Status(reply) => drop(reply.send(Ok(status()))),
                        Command::Events(reply) => {
                            drop(reply.send(Ok((vec![event()], news.subscribe()))));
                        }
                        Command::Apply(_, reply)
                        | Command::Confirm(reply)
                        | Command::Rollback(reply) => drop(reply),
                        Command::Sources(reply) => drop(reply),
                        Command::Metrics(reply) => drop(reply),
                        Command::Detach(ack) => drop(ack.done.send(())),
                    }
                }
            });
            let (from, mut to) = client.into_split();
            let mut from = BufReader::new(from).lines();
            let mut answers = Vec::new();
            for line in lines {
                to.write_all(format!("{line}\n").as_bytes()).await.unwrap();
                let answer = from.next_line().await.unwrap().unwrap_or_default();
                answers.push(serde_json::from_str(&answer).unwrap());
            }
            answers
        })
    }

    #[test]
    fn clients_of_other_releases_are_answered() {
        let answers = answers(&[
            r#"{"request":"status"}"#,
            r#"{"apiVersion":"api.enforcer.dev/v1","enforcerVersion":"1.99.0","request":"status","verbose":true}"#,
            r#"{"apiVersion":"api.enforcer.dev/v1","request":"snapshot"}"#,
            r#"{"apiVersion":"api.enforcer.dev/v2","enforcerVersion":"2.0.0","request":"status"}"#,
            "status",
            r#"{"request":"events","denied":true,"severity":"high"}"#,
        ]);
        let kinds: Vec<_> = answers.iter().map(|answer| &answer["kind"]).collect();
        assert_eq!(
            kinds,
            ["Status", "Status", "Error", "Error", "Error", "Event"]
        );
        let codes: Vec<_> = answers.iter().filter_map(|a| a["code"].as_str()).collect();
        assert_eq!(codes, ["UnknownRequest", "VersionMismatch", "BadRequest"]);
        for answer in &answers {
            assert_eq!(answer["apiVersion"], "api.enforcer.dev/v1");
            assert_eq!(answer["enforcerVersion"], env!("CARGO_PKG_VERSION"));
        }
    }

    #[test]
    fn a_client_of_any_version_ends_the_agent() {
        let detach = r#"{"apiVersion":"api.enforcer.dev/v2","request":"detach","within":"5s"}"#;
        let [answer] = &answers(&[detach])[..] else {
            panic!("more than one answer");
        };
        assert_eq!(answer["kind"], "DetachResult");
        assert_eq!(answer["detached"], true);
    }
}
