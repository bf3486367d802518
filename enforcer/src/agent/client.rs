//! Asks a running agent.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    ops::ControlFlow,
    os::unix::net::UnixStream,
    path::Path,
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    AgentError, Event, Sources, Status,
    control::{Request, socket_path},
};

/// What is in force, and what came of it.
///
/// # Errors
///
/// No agent runs there, or it can not tell.
pub fn status(run_dir: &Path) -> Result<Status, AgentError> {
    one(run_dir, &Request::Status {})
}

/// The policy in force, as it was read.
///
/// # Errors
///
/// No agent runs there.
pub fn sources(run_dir: &Path) -> Result<Sources, AgentError> {
    one(run_dir, &Request::Sources {})
}

/// Ends the agent. Returns when everything is detached. If none runs, but one was killed and left
/// filters, those go.
///
/// # Errors
///
/// No agent runs there.
pub fn detach(run_dir: &Path) -> Result<(), AgentError> {
    match one::<Value>(run_dir, &Request::Detach {}) {
        Err(AgentError::NoAgent { socket }) => match super::remove_leftovers(run_dir)? {
            0 => Err(AgentError::NoAgent { socket }),
            _ => Ok(()),
        },
        result => result.map(drop),
    }
}

/// Hands over all denials there are, and with `follow` new ones until the agent ends or `each` breaks
/// off. One that was handed over comes again, with its new count, if the agent had to start over.
///
/// # Errors
///
/// No agent runs there, or it can not tell.
pub fn events(
    run_dir: &Path,
    follow: bool,
    mut each: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<(), AgentError> {
    let answers = ask(
        run_dir,
        &Request::Events {
            follow,
            denied: false,
        },
    )?;
    for line in answers.lines() {
        let line = line.map_err(AgentError::system("read the agent's answer"))?;
        if each(understood(&line)?).is_break() {
            break;
        }
    }
    Ok(())
}

fn one<T: DeserializeOwned>(run_dir: &Path, request: &Request) -> Result<T, AgentError> {
    let mut line = String::new();
    ask(run_dir, request)?
        .read_line(&mut line)
        .map_err(AgentError::system("read the agent's answer"))?;
    if line.is_empty() {
        return Err(AgentError::Refused(
            "nothing: it ended before it answered".to_owned(),
        ));
    }
    understood(&line)
}

fn understood<T: DeserializeOwned>(line: &str) -> Result<T, AgentError> {
    let answer: Value = serde_json::from_str(line)?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => Err(AgentError::Refused(error.to_owned())),
        None => Ok(serde_json::from_value(answer)?),
    }
}

fn ask(run_dir: &Path, request: &Request) -> Result<BufReader<UnixStream>, AgentError> {
    let socket = socket_path(run_dir);
    let mut stream = match UnixStream::connect(&socket) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Err(AgentError::NoAgent { socket });
        }
        result => result.map_err(AgentError::system(format!(
            "connect to {}",
            socket.display()
        )))?,
    };
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream
        .write_all(&line)
        .map_err(AgentError::system("ask the agent"))?;
    Ok(BufReader::new(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_agent_it_says_how_to_start_one() {
        let dir = tempfile::tempdir().unwrap();
        let error = status(dir.path()).unwrap_err().to_string();
        assert!(
            error.starts_with("no agent runs here") && error.contains("enforcer run"),
            "{error}"
        );
    }
}
