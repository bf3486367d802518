//! Konnectivity's two ends: agents connect to a server and wait, and a connection to the server's
//! front end goes back through one of theirs.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use crate::packet::CLIENT_HELLO;

use super::{Outcome, READY, Report, TunnelAgent, TunnelServer, print_line};

/// What the server sends to an agent when it uses the agent's connection.
const GO: u8 = b'!';
/// How many connections an agent keeps waiting.
const WAITING: usize = 4;
/// How long a client of the front end waits for an agent.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) fn server(what: &TunnelServer) -> Report {
    let listen = |addresses: &[SocketAddr]| -> io::Result<Vec<TcpListener>> {
        addresses.iter().map(TcpListener::bind).collect()
    };
    let listeners = listen(&what.frontend)
        .and_then(|frontend| Ok((frontend, listen(&what.agents)?, listen(&what.health)?)));
    let (frontend, agents, health) = match listeners {
        Ok(listeners) => listeners,
        Err(error) => return Report::of_error(&error, "bind"),
    };
    print_line(READY);
    let (arrived, waiting) = mpsc::channel::<TcpStream>();
    let waiting = Mutex::new(waiting);
    thread::scope(|scope| {
        for listener in &agents {
            let arrived = arrived.clone();
            scope.spawn(move || {
                for agent in listener.incoming().flatten() {
                    let arrived = arrived.clone();
                    scope.spawn(move || {
                        if greeted(&agent) {
                            // The other end lives as long as this scope.
                            let _ = arrived.send(agent);
                        }
                    });
                }
            });
        }
        for listener in &frontend {
            let waiting = &waiting;
            scope.spawn(move || {
                for client in listener.incoming().flatten() {
                    scope.spawn(move || pair(client, waiting));
                }
            });
        }
        for listener in &health {
            scope.spawn(move || listener.incoming().flatten().for_each(drop));
        }
    });
    Report::new(Outcome::Closed, "tunnel-server")
}

/// Whether an agent begins like konnectivity's, which use TLS: nothing else passes on its path.
fn greeted(mut agent: &TcpStream) -> bool {
    let mut hello = [0; CLIENT_HELLO.len()];
    agent.read_exact(&mut hello).is_ok() && hello == CLIENT_HELLO
}

/// Joins a client with the next agent that is still connected.
fn pair(client: TcpStream, waiting: &Mutex<mpsc::Receiver<TcpStream>>) {
    loop {
        let next = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv_timeout(PATIENCE);
        let Ok(mut agent) = next else { return };
        if is_there(&agent) && agent.write_all(&[GO]).is_ok() {
            return join(client, agent);
        }
    }
}

/// An agent that has gone has closed its connection; one that waits sends nothing.
fn is_there(agent: &TcpStream) -> bool {
    let mut word = [0];
    let peeked = agent
        .set_nonblocking(true)
        .and_then(|()| agent.peek(&mut word));
    let waits = peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    waits && agent.set_nonblocking(false).is_ok()
}

pub(super) fn agent(what: &TunnelAgent) -> Report {
    print_line(READY);
    thread::scope(|scope| {
        for _ in 0..WAITING {
            scope.spawn(|| {
                loop {
                    if wait_once(what).is_err() {
                        thread::sleep(Duration::from_millis(50));
                    }
                }
            });
        }
    });
    Report::new(Outcome::Closed, "tunnel-agent")
}

fn wait_once(what: &TunnelAgent) -> io::Result<()> {
    let mut server = TcpStream::connect_timeout(&what.server, PATIENCE)?;
    server.write_all(&CLIENT_HELLO)?;
    let mut word = [0];
    server.read_exact(&mut word)?;
    let target = TcpStream::connect_timeout(&what.target, PATIENCE)?;
    join(server, target);
    Ok(())
}

/// Copies in both directions until both sides have finished.
fn join(one: TcpStream, other: TcpStream) {
    thread::scope(|scope| {
        scope.spawn(|| copy(&one, &other));
        copy(&other, &one);
    });
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    // If one side closes, the other is closed as well.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
