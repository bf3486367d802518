//! The two ends of a connection, in processes of their own: what is measured are sockets in cgroups. Both are on one core, so
//! that what is measured is work. Where each end has a core of its own, it is mostly how long an idle one takes to wake up.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::measure::stay_on_one_core;

/// Bytes of a request and of an answer.
const MESSAGE: usize = 64;
/// Bytes that a stream writes at once.
const PIECE: usize = 128 * 1024;

/// What a client does for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Work {
    /// Connects, sends one request, waits until the server closes.
    Connections,
    /// Asks again and again over one connection.
    Requests,
    /// Sends as much as it can over one connection.
    Stream,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Connections, requests or bytes, for each second.
    pub rate: f64,
    /// In the middle, in microseconds; none for a stream.
    pub median_us: f64,
    /// 99 of 100 are faster, in microseconds.
    pub p99_us: f64,
}

/// Answers one client after the other, for ever.
pub fn serve(at: SocketAddr) -> Result<()> {
    stay_on_one_core()?;
    let listener = TcpListener::bind(at).with_context(|| format!("failed to listen at {at}"))?;
    println!("ready");
    let mut buffer = vec![0; PIECE];
    for stream in listener.incoming() {
        let mut stream = stream.context("no connection")?;
        stream.set_nodelay(true)?;
        // A client that goes away is no error of ours.
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            match buffer[0] {
                b's' => {}
                kind => {
                    if length < MESSAGE
                        || stream.write_all(&buffer[..MESSAGE]).is_err()
                        || kind == b'c'
                    {
                        break;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Does it for so long.
pub fn ask(to: SocketAddr, work: Work, time: Duration) -> Result<Outcome> {
    stay_on_one_core()?;
    let connect = || -> Result<TcpStream> {
        let stream =
            TcpStream::connect(to).with_context(|| format!("failed to connect to {to}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let mut latencies = Vec::new();
    let mut buffer = [0; MESSAGE];
    let began = Instant::now();
    let amount = match work {
        Work::Connections => {
            while began.elapsed() < time {
                let once = Instant::now();
                let mut stream = connect()?;
                stream.write_all(&[b'c'; MESSAGE])?;
                stream.read_exact(&mut buffer)?;
                // The server closes first, so that it keeps what is kept of closed connections.
                stream.read_to_end(&mut Vec::new())?;
                latencies.push(once.elapsed());
            }
            latencies.len() as f64
        }
        Work::Requests => {
            let mut stream = connect()?;
            while began.elapsed() < time {
                let once = Instant::now();
                stream.write_all(&[b'r'; MESSAGE])?;
                stream.read_exact(&mut buffer)?;
                latencies.push(once.elapsed());
            }
            latencies.len() as f64
        }
        Work::Stream => {
            let mut stream = connect()?;
            let piece = vec![b's'; PIECE];
            let mut bytes = 0.0;
            while began.elapsed() < time {
                stream.write_all(&piece)?;
                bytes += piece.len() as f64;
            }
            bytes
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |part: f64| {
        let index = (latencies.len() as f64 * part) as usize;
        latencies
            .get(index)
            .map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    };
    Ok(Outcome {
        rate: amount / seconds,
        median_us: at(0.5),
        p99_us: at(0.99),
    })
}
