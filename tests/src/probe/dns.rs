//! Questions to a DNS server, over UDP or TCP.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::time::Instant;

use nix::errno::Errno;

use super::{Dns, Outcome, Report, milliseconds};

/// Types of records.
const A: u16 = 1;
const TXT: u16 = 16;
/// The answer did not fit (RFC 1035, section 4.1.1).
const TRUNCATED: u8 = 0x02;

pub(super) fn ask(what: &Dns) -> Report {
    let started = Instant::now();
    let question = question(&what.name, if what.text { TXT } else { A });
    let answer = if what.tcp {
        over_tcp(what, &question)
    } else {
        over_udp(what, &question)
    };
    let mut report = match answer {
        Ok(answer) => read(&answer),
        Err(error) => Report::of_error(&error, "ask"),
    };
    report.took_ms = started.elapsed().as_millis() as u64;
    report
}

/// A header with recursion desired, and one question.
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(1u16.to_be_bytes());
    bytes
}

fn over_udp(what: &Dns, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = match what.server.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(milliseconds(what.timeout_ms)))?;
    socket.connect(what.server)?;
    socket.send(question)?;
    let mut answer = vec![0; 65536];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn over_tcp(what: &Dns, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let limit = milliseconds(what.timeout_ms);
    let mut stream = TcpStream::connect_timeout(&what.server, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(&(question.len() as u16).to_be_bytes())?;
    stream.write_all(question)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn read(answer: &[u8]) -> Report {
    let &[_, _, flags, code, _, _, high, low, ..] = answer else {
        return Report::of_errno(Errno::EBADMSG, "read");
    };
    let records = u16::from_be_bytes([high, low]);
    let outcome = match (code & 0x0f, flags & TRUNCATED != 0) {
        (0, true) => Outcome::Truncated,
        (0, false) if records > 0 => Outcome::Answered,
        _ => Outcome::Other,
    };
    let mut report = Report::new(outcome, "answer");
    report.count = records.into();
    report
}
