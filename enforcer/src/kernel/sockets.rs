//! The sockets of a network namespace that have a port or are connected, and whose they are.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use enforcer_common::packet::PortKind;
use enforcer_policy::text;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

use super::KernelError;

/// A socket that listens (TCP), or is bound and not connected (UDP).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// TCP or UDP.
    pub port_kind: PortKind,
    /// Its address; unspecified for every address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its inode, by which a process's descriptors refer to it.
    pub inode: u32,
    /// The cgroup of the process that created it, if the kernel reports it (Linux 5.9).
    pub cgroup: Option<u64>,
}

/// A process that holds a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its pid.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Its cgroup, as a path below the hierarchy's root; empty if unknown.
    pub cgroup: String,
}

/// One of an answer's attributes (`INET_DIAG_CGROUP_ID`, include/uapi/linux/inet_diag.h).
const CGROUP_ID: u16 = 21;

/// A TCP connection that is open, or a UDP socket that is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// TCP or UDP.
    pub port_kind: PortKind,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Its inode: how processes name it.
    pub inode: u32,
    /// The cgroup of the process that made it, where the kernel tells (Linux 5.9).
    pub cgroup: Option<u64>,
    /// How long ago data came over it; TCP only.
    pub received_ago: Option<Duration>,
}

/// The sockets of the calling thread's network namespace that have a port: TCP sockets that listen, UDP sockets that are not
/// connected.
///
/// # Errors
///
/// The kernel provides no socket for the query, or does not answer it.
pub fn bound() -> Result<Vec<Bound>, KernelError> {
    let mut found = Vec::new();
    for (protocol, port_kind, states) in [
        (IPPROTO_TCP, PortKind::Tcp, StateFlags::LISTEN),
        // The state of an unconnected UDP socket; a connected one has a peer, and takes no port
        // from others.
        (IPPROTO_UDP, PortKind::Udp, StateFlags::CLOSE),
    ] {
        let answers = dump(protocol, &states)?;
        found.extend(
            answers
                .into_iter()
                .map(|answer| bound_of(port_kind, answer)),
        );
    }
    // An unbound UDP socket has no port.
    found.retain(|socket| socket.port != 0);
    Ok(found)
}

/// The connections of the calling thread's network namespace over which either end can still send. Those that a closed socket
/// leaves behind (`TIME_WAIT`, `LAST_ACK`) belong to no process.
///
/// # Errors
///
/// As for [`bound`].
pub fn connected() -> Result<Vec<Connected>, KernelError> {
    let open = StateFlags::ESTABLISHED
        | StateFlags::CLOSE_WAIT
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2;
    let mut found = Vec::new();
    for (protocol, port_kind, states) in [
        (IPPROTO_TCP, PortKind::Tcp, open),
        (IPPROTO_UDP, PortKind::Udp, StateFlags::ESTABLISHED),
    ] {
        let answers = dump(protocol, &states)?;
        found.extend(
            answers
                .into_iter()
                // Closed by its process: the kernel answers for it.
                .filter(|answer| answer.header.inode != 0)
                .map(|answer| connected_of(port_kind, &answer)),
        );
    }
    Ok(found)
}

fn connected_of(port_kind: PortKind, answer: &InetResponse) -> Connected {
    let id = &answer.header.socket_id;
    // A socket of both families has IPv4 addresses in their mapped form.
    let end = |address: IpAddr, port| SocketAddr::new(address.to_canonical(), port);
    Connected {
        port_kind,
        local: end(id.source_address, id.source_port),
        remote: end(id.destination_address, id.destination_port),
        inode: answer.header.inode,
        cgroup: cgroup_of(answer),
        received_ago: answer.nlas.iter().find_map(|attribute| match attribute {
            Nla::TcpInfo(info) => Some(Duration::from_millis(info.last_data_recv.into())),
            _ => None,
        }),
    }
}

fn bound_of(port_kind: PortKind, answer: InetResponse) -> Bound {
    Bound {
        port_kind,
        cgroup: cgroup_of(&answer),
        address: answer.header.socket_id.source_address,
        port: answer.header.socket_id.source_port,
        inode: answer.header.inode,
    }
}

fn cgroup_of(answer: &InetResponse) -> Option<u64> {
    let cgroup = answer.nlas.iter().find_map(|attribute| match attribute {
        Nla::Other(other) if netlink_packet_core::Nla::kind(other) == CGROUP_ID => {
            let mut value = [0; 8];
            let length = netlink_packet_core::Nla::value_len(other);
            (length == value.len()).then(|| {
                netlink_packet_core::Nla::emit_value(other, &mut value);
                u64::from_ne_bytes(value)
            })
        }
        _ => None,
    });
    // 0 where the kernel has no cgroups for sockets.
    cgroup.filter(|id| *id != 0)
}

/// All sockets of a protocol that are in one of these states, of both families.
fn dump(protocol: u8, states: &StateFlags) -> Result<Vec<InetResponse>, KernelError> {
    let system = |source| KernelError::System {
        action: "list the sockets of a network namespace",
        source,
    };
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(system)?;
    socket.bind_auto().map_err(system)?;
    socket.connect(&NetlinkAddr::new(0, 0)).map_err(system)?;
    let mut answers = Vec::new();
    for (family, socket_id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        let request = InetRequest {
            family,
            protocol,
            extensions: ExtensionFlags::INFO,
            states: states.clone(),
            socket_id,
        };
        ask(&socket, request, &mut answers).map_err(system)?;
    }
    Ok(answers)
}

fn ask(socket: &Socket, request: InetRequest, answers: &mut Vec<InetResponse>) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (packet, _) = socket.recv_from_full()?;
        let mut rest = packet.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let length = message.header.length as usize;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(answer)) => {
                    answers.push(*answer);
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            // Each message begins at a multiple of four bytes.
            rest = rest.get(length.max(4).next_multiple_of(4)..).unwrap_or(&[]);
        }
    }
}

/// The processes that hold sockets, by the sockets' inodes; of several that share one, the first.
/// Processes that have ended or may not be inspected are left out.
pub fn holders(inodes: &[u32]) -> HashMap<u32, Holder> {
    let inodes: HashSet<u32> = inodes.iter().copied().collect();
    let mut found = HashMap::new();
    for process in directories(Path::new("/proc")) {
        if found.len() == inodes.len() {
            break;
        }
        let Some(pid) = process
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
        else {
            continue;
        };
        let open = fs::read_dir(process.join("fd")).into_iter().flatten();
        for inode in open.flatten().filter_map(|file| inode(&file.path())) {
            if inodes.contains(&inode) && !found.contains_key(&inode) {
                found.insert(inode, holder(pid, &process));
            }
        }
    }
    found
}

/// The inodes of a process's sockets; none where it has ended or may not be looked at.
pub fn of_process(pid: u32) -> Vec<u32> {
    let open = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    open.flatten()
        .filter_map(|file| inode(&file.path()))
        .collect()
}

fn directories(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// The inode, if an open file is a socket.
fn inode(file: &Path) -> Option<u32> {
    let target = fs::read_link(file).ok()?;
    let inode = target.to_str()?.strip_prefix("socket:[")?;
    inode.strip_suffix(']')?.parse().ok()
}

fn holder(pid: u32, process: &Path) -> Holder {
    let read = |name| fs::read(process.join(name)).unwrap_or_default();
    let (comm, cgroups) = (read("comm"), read("cgroup"));
    // One line for each hierarchy; that of version 2 has the number 0 and no controllers.
    let cgroup = cgroups
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"));
    Holder {
        pid,
        comm: text::of_bytes(comm.strip_suffix(b"\n").unwrap_or(&comm)),
        cgroup: cgroup.map(text::of_bytes).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn sockets_of_this_process_are_found_with_their_holder() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::]:0")
            .or_else(|_| UdpSocket::bind("0.0.0.0:0"))
            .unwrap();
        let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
        connected
            .connect(udp.local_addr().unwrap().port().to_string().as_str())
            .unwrap_err();
        connected.connect(("127.0.0.1", 9)).unwrap();
        let all = bound().unwrap();
        let find = |port_kind, at: std::net::SocketAddr| {
            all.iter()
                .find(|s| (s.port_kind, s.address, s.port) == (port_kind, at.ip(), at.port()))
        };
        let listening = find(PortKind::Tcp, tcp.local_addr().unwrap()).unwrap();
        assert!(find(PortKind::Udp, udp.local_addr().unwrap()).is_some());
        assert!(find(PortKind::Udp, connected.local_addr().unwrap()).is_none());
        let connections = super::connected().unwrap();
        let own = connections
            .iter()
            .find(|c| c.local == connected.local_addr().unwrap())
            .unwrap();
        assert_eq!(own.remote, "127.0.0.1:9".parse().unwrap());
        assert!(of_process(std::process::id()).contains(&own.inode));
        let holder = &holders(&[listening.inode])[&listening.inode];
        assert_eq!(holder.pid, std::process::id());
        if let Some(id) = listening.cgroup {
            let cgroup = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let mount = cgroup
                .lines()
                .find(|line| line.contains(" - cgroup2 "))
                .unwrap();
            let mount = mount.split(' ').nth(4).unwrap();
            let path = format!("{mount}{}", holder.cgroup);
            if let Ok(metadata) = fs::metadata(path) {
                assert_eq!(metadata.ino(), id);
            }
        }
    }
}
