//! The control socket: a request in a line, an answer in a line, or a line per event.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{broadcast, mpsc, oneshot},
};

use super::{AgentError, Event, Sources, Status};

/// What can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// [`Status`].
    Status {},
    /// [`Event`]s, one in a line.
    Events {
        /// Not only those there are: new ones, too.
        #[serde(default)]
        follow: bool,
        /// Only what was dropped.
        #[serde(default)]
        denied: bool,
    },
    /// [`Sources`].
    Sources {},
    /// An end of it all.
    Detach {},
}

/// A request on its way to the agent, with the way back.
pub enum Ask {
    /// See [`Request::Status`].
    Status(oneshot::Sender<Result<Status, String>>),
    /// See [`Request::Events`]: those there are, and the source of new ones.
    Events(oneshot::Sender<Result<Told, String>>),
    /// See [`Request::Sources`].
    Sources(oneshot::Sender<Sources>),
    /// See [`Request::Detach`].
    Detach(Farewell),
}

/// The denials there are, and the source of new ones.
pub type Told = (Vec<Event>, broadcast::Receiver<Event>);

/// The last exchange: the agent says that it is done, and waits until that is written.
pub struct Farewell {
    /// All is detached.
    pub done: oneshot::Sender<()>,
    /// Ends when the answer is written.
    pub written: oneshot::Receiver<()>,
}

/// The socket, as long as the agent runs.
pub struct Control {
    path: PathBuf,
}

/// Where the socket of a run directory is.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

impl Control {
    /// Listens. What is asked for comes out of the receiver.
    pub fn open(run_dir: &Path) -> Result<(Self, mpsc::Receiver<Ask>), AgentError> {
        let path = socket_path(run_dir);
        // The lock is held, so whoever left a socket here is gone.
        let _ = fs::remove_file(&path);
        let action = format!("listen at {}", path.display());
        let listener = UnixListener::bind(&path).map_err(AgentError::system(&action))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(AgentError::system(&action))?;
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(accept(listener, sender));
        Ok((Self { path }, receiver))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A request is short; more than this is none.
const MAX_REQUEST: u64 = 4096;

async fn accept(listener: UnixListener, asks: mpsc::Sender<Ask>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(answer(stream, asks.clone()));
            }
            // Out of file descriptors, say: others end, and then it goes on.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

async fn answer(stream: UnixStream, asks: mpsc::Sender<Ask>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        match (&mut read).take(MAX_REQUEST).read_line(&mut line).await {
            Ok(1..) => {}
            // It has hung up, or does not speak text.
            Ok(0) | Err(_) => return,
        }
        let result = match serde_json::from_str(&line) {
            Ok(request) => serve(request, &asks, &mut write).await,
            Err(error) => refuse(&mut write, &format!("not a request: {error}")).await,
        };
        if result.is_none() {
            return;
        }
    }
}

/// Nothing if the other side, or the agent, is gone.
async fn serve(request: Request, asks: &mpsc::Sender<Ask>, to: &mut OwnedWriteHalf) -> Option<()> {
    match request {
        Request::Status {} => {
            let (reply, answer) = oneshot::channel();
            asks.send(Ask::Status(reply)).await.ok()?;
            match answer.await.ok()? {
                Ok(status) => write(to, &status).await,
                Err(error) => refuse(to, &error).await,
            }
        }
        Request::Sources {} => {
            let (reply, answer) = oneshot::channel();
            asks.send(Ask::Sources(reply)).await.ok()?;
            write(to, &answer.await.ok()?).await
        }
        Request::Events { follow, denied } => {
            events(asks, to, follow, denied).await?;
            // The end of the list is the end of the connection.
            None
        }
        Request::Detach {} => {
            let (done, answer) = oneshot::channel();
            let (_written, wait) = oneshot::channel();
            asks.send(Ask::Detach(Farewell {
                done,
                written: wait,
            }))
            .await
            .ok()?;
            answer.await.ok()?;
            write(to, &serde_json::json!({ "detached": true })).await
        }
    }
}

async fn events(
    asks: &mpsc::Sender<Ask>,
    to: &mut OwnedWriteHalf,
    follow: bool,
    denied: bool,
) -> Option<()> {
    loop {
        let (reply, answer) = oneshot::channel();
        asks.send(Ask::Events(reply)).await.ok()?;
        let (known, mut new) = match answer.await.ok()? {
            Ok(events) => events,
            Err(error) => return refuse(to, &error).await,
        };
        for event in known.iter().filter(|event| !denied || event.is_dropped()) {
            write(to, event).await?;
        }
        if !follow {
            return Some(());
        }
        loop {
            match new.recv().await {
                Ok(event) if !denied || event.is_dropped() => write(to, &event).await?,
                Ok(_) => {}
                // The reader is slow. Everything is in the records still: tell it anew.
                Err(broadcast::error::RecvError::Lagged(_)) => break,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

async fn refuse(to: &mut OwnedWriteHalf, error: &str) -> Option<()> {
    write(to, &serde_json::json!({ "error": error })).await
}

async fn write(to: &mut OwnedWriteHalf, answer: &impl Serialize) -> Option<()> {
    let mut line = serde_json::to_vec(answer).ok()?;
    line.push(b'\n');
    to.write_all(&line).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_strictly() {
        let read = |text| serde_json::from_str::<Request>(text);
        assert_eq!(read(r#"{"request":"status"}"#).unwrap(), Request::Status {});
        let events = Request::Events {
            follow: true,
            denied: false,
        };
        assert_eq!(
            read(r#"{"request":"events","follow":true}"#).unwrap(),
            events
        );
        assert!(read(r#"{"request":"reboot"}"#).is_err());
        assert!(read(r#"{"request":"detach","now":true}"#).is_err());
    }
}
