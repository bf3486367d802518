//! Talks to a running agent, and waits no longer than an answer can take.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    ops::ControlFlow,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use enforcer_policy::{model::Mode, text};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
};
use serde::de::DeserializeOwned;

use super::{
    AgentError, Event, Sources, Status,
    control::{KEEP_ALIVE, ToApply, socket_path},
    fallback,
    ledger::rfc3339,
};
use crate::{
    api::{self, Applied, ConfirmBy, DetachResult, Document, Kind, ReadError, Request, Unattended},
    kernel::{KeptPolicy, Pins, apply::now, filters},
};

/// How long an answer may take on a busy machine.
const ANSWER: Duration = Duration::from_secs(15);
/// How long it may take to read and compile a large policy.
const APPLY: Duration = Duration::from_secs(60);
/// How long it may take to detach from thousands of interfaces.
const DETACH: Duration = Duration::from_secs(120);

/// What is in force, and its effect so far.
///
/// # Errors
///
/// No agent runs there, it cannot tell, or it does not answer. If none runs but a previous agent's
/// policy is still in force, the error names that policy.
pub fn status(run_dir: &Path, pin_dir: &Path) -> Result<Document<Status>, AgentError> {
    match one(run_dir, &Request::Status {}, ANSWER) {
        Err(error @ AgentError::NoAgent { .. }) => {
            let there = left_in_force(pin_dir).or_else(leftovers);
            let there = there.or_else(|| fallback::is_there().then_some(AgentError::FallbackOnly));
            Err(there.unwrap_or(error))
        }
        result => result,
    }
}

/// The policy in force, as it was read.
///
/// # Errors
///
/// No agent runs there, or it does not answer.
pub fn sources(run_dir: &Path) -> Result<Sources, AgentError> {
    one(run_dir, &Request::Sources {}, ANSWER).map(|document| document.body)
}

/// Stops the agent and enforcement. Returns once everything is detached. If no agent runs, detaches
/// what a previous one left in force.
///
/// # Errors
///
/// No agent runs there, or it does not answer.
pub fn detach(run_dir: &Path, pin_dir: &Path) -> Result<(), AgentError> {
    match one::<DetachResult>(run_dir, &Request::Detach {}, DETACH) {
        Err(AgentError::NoAgent { socket }) => match super::remove_leftovers(run_dir, pin_dir)? {
            0 => Err(AgentError::NoAgent { socket }),
            _ => Ok(()),
        },
        // It has detached, whatever else differs.
        Err(AgentError::Answer(ReadError::Version(difference))) if difference.is_detached() => {
            Ok(())
        }
        result => result.map(drop),
    }
}

/// More connections than that are hardly one person's.
const MAX_SESSION: usize = 16;

/// Puts in force what the policy's files hold now, for good or to be confirmed within a time.
///
/// # Errors
///
/// No agent runs there, it does not answer, or the policy can not be put in force.
pub fn apply(run_dir: &Path, to_apply: ToApply) -> Result<Document<Applied>, AgentError> {
    let ToApply {
        within,
        by_probes,
        conditions,
    } = to_apply;
    let within = within.map(|within| u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
    let mut session = conditions.session;
    // A request has a line of limited length.
    session.truncate(MAX_SESSION);
    let request = Request::Apply {
        confirm_within_ms: within,
        confirm_by: by_probes.then_some(ConfirmBy::Probes),
        require_clean: conditions.requires_clean,
        allow_session_cut: conditions.allows_session_cut,
        session,
    };
    // Policies with thousands of nodes take a while to compile.
    one(run_dir, &request, APPLY)
}

/// Keeps the policy that is waiting to be confirmed.
///
/// # Errors
///
/// No agent runs there, it does not answer, there is nothing to confirm, or it is too late.
pub fn confirm(run_dir: &Path) -> Result<Document<Applied>, AgentError> {
    one(run_dir, &Request::Confirm {}, APPLY)
}

/// Goes back to the previous policy.
///
/// # Errors
///
/// No agent runs there, it does not answer, or there is no previous policy.
pub fn roll_back(run_dir: &Path) -> Result<Document<Applied>, AgentError> {
    one(run_dir, &Request::Rollback {}, APPLY)
}

/// Passes every recorded denial to `each`, and with `follow` new ones as well, until the agent ends
/// or `each` breaks. A denial may be passed again, with its new count, if the agent had to start
/// over.
///
/// # Errors
///
/// No agent runs there, it cannot tell, or it does not answer.
pub fn events(
    run_dir: &Path,
    follow: bool,
    mut each: impl FnMut(Document<Event>) -> ControlFlow<()>,
) -> Result<(), AgentError> {
    let request = Request::Events {
        follow,
        denied: false,
    };
    // A follower hears something every few seconds.
    let mut answers = ask(run_dir, &request, ANSWER.max(3 * KEEP_ALIVE))?;
    while let Some(line) = answers.line()? {
        if !line.trim().is_empty() && each(api::read(&line)?).is_break() {
            break;
        }
    }
    Ok(())
}

/// What is in force without an agent, if that can be seen.
fn left_in_force(pin_dir: &Path) -> Option<AgentError> {
    let kept = Pins::new(pin_dir).kept()?;
    // If nobody confirmed the last policy in time, the programs apply the one before.
    let KeptPolicy {
        policy,
        generation,
        node,
        dry_run,
        since,
        ..
    } = match kept.before {
        Some(before) if now() >= kept.deadline => before,
        _ => kept.in_force,
    };
    let mode = match dry_run {
        true => Mode::DryRun,
        false => Mode::Enforce,
    };
    let since = rfc3339(UNIX_EPOCH + Duration::from_millis(since));
    Some(AgentError::Unattended(Box::new(Unattended {
        policy,
        generation,
        mode: mode.into(),
        node,
        since,
        agent_version: kept.version,
        pin_dir: pin_dir.display().to_string(),
    })))
}

/// Leftover filters, if there are any and they can be seen.
fn leftovers() -> Option<AgentError> {
    let found = super::runtime().ok()?.block_on(filters::leftovers()).ok()?;
    (!found.is_empty()).then_some(AgentError::Leftovers { filters: found })
}

fn one<T: Kind + DeserializeOwned>(
    run_dir: &Path,
    request: &Request,
    limit: Duration,
) -> Result<Document<T>, AgentError> {
    match ask(run_dir, request, limit)?.line()? {
        Some(line) => Ok(api::read(&line)?),
        None => Err(AgentError::Ended),
    }
}

/// An agent's answers, line by line, each within a time limit.
struct Answers<'a> {
    run_dir: &'a Path,
    limit: Duration,
    from: BufReader<UnixStream>,
}

impl Answers<'_> {
    fn line(&mut self) -> Result<Option<String>, AgentError> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(line)),
            Err(error) if is_timeout(&error) => Err(silent(self.run_dir, self.limit)),
            Err(error) => Err(AgentError::system("read the agent's answer")(error)),
        }
    }
}

fn ask<'a>(
    run_dir: &'a Path,
    request: &Request,
    limit: Duration,
) -> Result<Answers<'a>, AgentError> {
    let stream = connected(run_dir, limit)?;
    let asking = || AgentError::system("ask the agent");
    stream.set_read_timeout(Some(limit)).map_err(asking())?;
    stream.set_write_timeout(Some(limit)).map_err(asking())?;
    let line = serde_json::to_string(&Document::new(request));
    let line = line.map_err(|error| asking()(error.into()))? + "\n";
    match (&stream).write_all(line.as_bytes()) {
        Err(error) if is_timeout(&error) => return Err(silent(run_dir, limit)),
        result => result.map_err(asking())?,
    }
    Ok(Answers {
        run_dir,
        limit,
        from: BufReader::new(stream),
    })
}

/// Connects. If the agent accepts no connections, the kernel's backlog fills up, and a blocking
/// connect would then wait forever.
fn connected(run_dir: &Path, limit: Duration) -> Result<UnixStream, AgentError> {
    let path = socket_path(run_dir);
    let failed = |errno: Errno| {
        AgentError::system(format!("connect to {}", text::path(&path)))(errno.into())
    };
    let address = UnixAddr::new(&path).map_err(failed)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd =
        socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
    let deadline = Instant::now() + limit;
    loop {
        match connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address) {
            Ok(()) => break,
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => {
                return Err(AgentError::NoAgent { socket: path });
            }
            Err(Errno::EAGAIN) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            Err(Errno::EAGAIN) => return Err(silent(run_dir, limit)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    let stream = UnixStream::from(socket);
    stream
        .set_nonblocking(false)
        .map_err(AgentError::system("ask the agent"))?;
    Ok(stream)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// The agent does not answer: reports what can be found out about its process.
fn silent(run_dir: &Path, limit: Duration) -> AgentError {
    let pid = fs::read_to_string(run_dir.join("lock")).ok();
    let pid: Option<u32> = pid.and_then(|pid| pid.trim().parse().ok());
    let stat = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    // After the name, which is in parentheses and may contain anything.
    let state = stat
        .as_deref()
        .and_then(|stat| stat.rsplit_once(") "))
        .and_then(|(_, rest)| rest.chars().next());
    let state = match state {
        Some('T' | 't') => {
            "its process is stopped; resume it (kill -CONT), or end it (kill -KILL) and run `enforcer detach`"
        }
        Some('D') => "its process waits for a device or a file system",
        Some(_) => "it is busy, or its machine is; what is attached stays in force meanwhile",
        None => "its process cannot be seen from here",
    };
    AgentError::Silent { pid, limit, state }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::{Backlog, bind, listen};
    use serde::Serialize;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::{Error, ErrorCode, tests};

    #[test]
    fn without_an_agent_it_says_how_to_start_one() {
        let dir = tempfile::tempdir().unwrap();
        let error = sources(dir.path()).unwrap_err().to_string();
        assert!(
            error.starts_with("no agent runs here") && error.contains("enforcer run"),
            "{error}"
        );
    }

    /// An agent that answers one connection with these lines. The thread returns the request that
    /// it received.
    fn agent(run_dir: &Path, answers: &[String]) -> thread::JoinHandle<String> {
        let listener = UnixListener::bind(socket_path(run_dir)).unwrap();
        let answers = answers.join("\n") + "\n";
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            BufReader::new(&stream).read_line(&mut asked).unwrap();
            stream.write_all(answers.as_bytes()).unwrap();
            asked
        })
    }

    /// A document as another release writes it.
    fn document(version: &str, release: &str, body: impl Serialize) -> String {
        let mut document = serde_json::to_value(body).unwrap();
        document["apiVersion"] = version.into();
        document["enforcerVersion"] = release.into();
        document.to_string()
    }

    const OWN: &str = "api.enforcer.dev/v1";
    const NEXT: &str = "api.enforcer.dev/v2";

    #[test]
    fn an_agent_of_another_release_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let mut newer = serde_json::to_value(Document::new(tests::status())).unwrap();
        newer["uptime"] = 7.into();
        newer["mode"] = "Shadow".into();
        let agent = agent(dir.path(), &[document(OWN, "1.99.0", newer)]);
        let status = status(dir.path(), dir.path()).unwrap();
        assert_eq!(status.head.enforcer_version, "1.99.0");
        assert_eq!(status.body.mode.as_str(), "Shadow");
        let asked: Value = serde_json::from_str(&agent.join().unwrap()).unwrap();
        let expected = json!({
            "apiVersion": OWN,
            "kind": "Request",
            "enforcerVersion": env!("CARGO_PKG_VERSION"),
            "request": "status",
        });
        assert_eq!(asked, expected);
    }

    #[test]
    fn events_of_another_release_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let mut newer = serde_json::to_value(Document::new(tests::event())).unwrap();
        newer["verdict"] = "delayed".into();
        let lines = [
            document(OWN, "1.99.0", newer),
            String::new(),
            document(OWN, "1.99.0", Document::new(tests::event())),
        ];
        let agent = agent(dir.path(), &lines);
        let mut found = Vec::new();
        events(dir.path(), true, |event| {
            found.push(event.body.to_string());
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(found.len(), 2);
        assert!(
            found[0].starts_with("delayed curl (in /kubepods"),
            "{found:?}"
        );
        agent.join().unwrap();
    }

    #[test]
    fn an_agent_that_is_not_understood_is_named_with_its_release() {
        let refusal = |version, code, message: &str| {
            let error = Error::new(code, message);
            document(version, "0.9.0", Document::new(error))
        };
        let next = refusal(NEXT, ErrorCode::VersionMismatch, "no");
        let lacking = "this agent (enforcer 0.9.0) does not know the request `sources`";
        let lacking = refusal(OWN, ErrorCode::UnknownRequest, lacking);
        // As agents answered before there were versions.
        let first = json!({ "error": "not a request: unknown field `apiVersion`" }).to_string();
        let other = document(OWN, "0.9.0", Document::new(tests::status()));
        for (answer, code, parts) in [
            (
                next,
                ErrorCode::VersionMismatch,
                [
                    "the agent is enforcer 0.9.0 (api.enforcer.dev/v2)",
                    "this one is older",
                ],
            ),
            (
                lacking,
                ErrorCode::UnknownRequest,
                ["the agent says: this agent (enforcer 0.9.0)", "`sources`"],
            ),
            (
                first,
                ErrorCode::VersionMismatch,
                ["an enforcer that names no version", "the agent is older"],
            ),
            (
                other,
                ErrorCode::VersionMismatch,
                ["of kind `Status`, and not `Sources`", "enforcer 0.9.0"],
            ),
            (
                "HTTP/1.1 400".to_owned(),
                ErrorCode::VersionMismatch,
                ["is no JSON object", "does something else listen there?"],
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let agent = agent(dir.path(), &[answer]);
            let error = sources(dir.path()).unwrap_err();
            assert_eq!(error.code(), code);
            let message = text::chain(&error);
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
            agent.join().unwrap();
        }
    }

    #[test]
    fn an_agent_of_any_version_can_be_ended() {
        let dir = tempfile::tempdir().unwrap();
        let gone = json!({ "kind": "Farewell", "detached": true });
        let agent = agent(dir.path(), &[document(NEXT, "2.0.0", gone)]);
        detach(dir.path(), dir.path()).unwrap();
        agent.join().unwrap();
    }

    #[test]
    fn an_unresponsive_agent_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let listener = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::empty(),
            None,
        )
        .unwrap();
        let address = UnixAddr::new(&socket_path(dir.path())).unwrap();
        bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &address).unwrap();
        listen(&listener, Backlog::new(2).unwrap()).unwrap();
        fs::write(dir.path().join("lock"), format!("{}\n", std::process::id())).unwrap();
        let limit = Duration::from_millis(200);
        let ask = || one::<Status>(dir.path(), &Request::Status {}, limit);
        let error = ask().unwrap_err().to_string();
        let expected = format!(
            "the agent here (pid {}) does not answer",
            std::process::id()
        );
        assert!(error.starts_with(&expected), "{error}");
        // Nobody accepts; connect until the backlog is full.
        let waiting: Vec<_> = (0..)
            .map(|_| connected(dir.path(), Duration::ZERO))
            .take_while(Result::is_ok)
            .collect();
        assert!(waiting.len() > 1);
        assert!(matches!(ask(), Err(AgentError::Silent { .. })));
    }
}
