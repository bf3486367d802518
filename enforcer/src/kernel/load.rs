//! The object into the kernel.

use std::{io, os::fd::AsRawFd as _, path::Path};

use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapData},
    programs::{
        CgroupSkb, CgroupSock, CgroupSockAddr, CgroupSockopt, Lsm, Program, ProgramError,
        SchedClassifier,
    },
};
use enforcer_policy::text;

use super::{
    KernelError,
    apply::Slots,
    attach::Attached,
    btf::{SkbFields, SocketFields, TypeInfo},
    mapped::Mapped,
    read::Readers,
};

/// The programs and maps in the kernel. Dropping it detaches everything.
pub struct Kernel {
    pub(super) bpf: Ebpf,
    pub(super) slots: Slots,
    pub(super) readers: Readers,
    pub(super) attached: Attached,
    /// Whether `cgroup_skb` programs can ask for a packet's network namespace.
    netns_of_packets: bool,
    /// Whether every call of `setsockopt` is seen, see [`Self::attach_lsm`].
    lsm: Result<(), String>,
    /// Whether the program for it could be loaded.
    lsm_loaded: Result<(), String>,
}

/// The programs that are attached to interfaces: for what comes in, for what goes out, and for what comes in by lo.
pub(super) const TC: [&str; 3] = ["enforcer_tc_in", "enforcer_tc_out", "enforcer_lo_in"];
/// The one of them below for `setsockopt`.
pub(super) const SETSOCKOPT: &str = "enforcer_setopt";
/// The programs that are attached to the cgroup root, in the order of their attachment: sockets are
/// stamped before anything judges by the stamp.
pub(super) const CGROUP: [&str; 12] = [
    "enforcer_sock",
    "enforcer_conn4",
    "enforcer_conn6",
    "enforcer_send4",
    "enforcer_send6",
    "enforcer_bind4",
    "enforcer_bind6",
    "enforcer_bound4",
    "enforcer_bound6",
    SETSOCKOPT,
    "enforcer_skb_out",
    "enforcer_skb_in",
];

/// The program for security modules, which not every kernel loads.
const LSM: &str = "enforcer_lsm_opt";

pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer"));

impl Kernel {
    /// Loads all programs. Nothing is attached yet, and no policy is in the maps. `log` lets the
    /// programs log what they return, see [`Self::log`].
    ///
    /// # Errors
    ///
    /// Missing rights, a kernel without what is needed, or a verifier that refuses a program.
    pub fn load(log: bool) -> Result<Self, KernelError> {
        if !Path::new("/sys/kernel/btf/vmlinux").exists() && Btf::from_sys_fs().is_err() {
            return Err(KernelError::NoBtf);
        }
        let fields = Fields::of_kernel().ok_or(KernelError::UnknownLayout)?;
        let cookie = netns_cookie()?;
        // The verifier refuses the whole program where the helper may not be called, so the newer
        // kernels' way is tried, once, before the older ones'.
        let (mut bpf, netns_of_packets) = match load_object(&fields, cookie, 1, log) {
            Err(KernelError::Refused { program, .. }) if is_refused_for_netns(program) => {
                (load_object(&fields, cookie, 0, log)?, false)
            }
            loaded => (loaded?, true),
        };
        // While all maps are there: what is taken out may be closed, and a program is loaded with their descriptors.
        let lsm_loaded = load_lsm(&mut bpf);
        let slots = Slots::take(&mut bpf)?;
        let readers = Readers::take(&mut bpf)?;
        Ok(Self {
            bpf,
            slots,
            readers,
            attached: Attached::default(),
            netns_of_packets,
            lsm: Err("nothing is attached yet".to_owned()),
            lsm_loaded,
        })
    }

    /// What this kernel offers and is made use of.
    pub fn features(&self) -> Vec<String> {
        let mut features = Vec::new();
        if self.netns_of_packets {
            features.push("network namespace of packets at sockets".to_owned());
        } else {
            features.push(
                "network namespace of sockets by stamp: this kernel does not tell it for packets"
                    .to_owned(),
            );
        }
        features.push(match &self.lsm {
            Ok(()) => "every setsockopt call is seen (BPF LSM)".to_owned(),
            Err(why) => {
                format!("setsockopt calls are seen by the cgroup hook, which 32-bit ones pass: no BPF LSM ({why})")
            }
        });
        features
    }

    /// Attaches the program for `setsockopt` to the kernel's security modules, where BPF is one of them. It sees calls that
    /// the cgroup hook does not. Whether it does, by trying.
    pub(super) fn attach_lsm(&mut self) -> bool {
        self.lsm = self.try_lsm();
        self.lsm.is_ok()
    }

    fn try_lsm(&mut self) -> Result<(), String> {
        self.lsm_loaded.clone()?;
        let program = lsm_program(&mut self.bpf)?;
        let link = program
            .attach()
            .map_err(|error| gist(&text::chain(&error)))?;
        // It may be attached, and never asked.
        if lsm_is_asked() {
            return Ok(());
        }
        let _ = program.detach(link);
        Err("`bpf` is not in the kernel's list of security modules (lsm=)".to_owned())
    }

    /// Whether every call of `setsockopt` is seen.
    pub fn sees_all_options(&self) -> bool {
        self.lsm.is_ok()
    }

    /// How many instructions the verifier went through for each program: an account of how near it is
    /// to the kernel's limit of a million. Empty where the kernel does not tell (before 5.16).
    pub fn verified_instructions(&self) -> Vec<(String, u32)> {
        let count = |program: &Program| {
            program
                .info()
                .ok()
                .and_then(|info| info.verified_instruction_count())
        };
        let mut counts: Vec<(String, u32)> = self
            .bpf
            .programs()
            .filter_map(|(name, program)| Some((name.to_owned(), count(program)?)))
            .collect();
        counts.sort();
        counts
    }

    /// The names of all programs. The kernel keeps the first 15 bytes of each (`BPF_OBJ_NAME_LEN`).
    pub fn program_names() -> impl Iterator<Item = &'static str> {
        TC.into_iter().chain(CGROUP)
    }

    /// How many instructions each program has, as the verifier left them. Empty where the kernel does not
    /// tell.
    pub fn instructions(&self) -> Vec<(String, u32)> {
        // An instruction has eight bytes (include/uapi/linux/bpf.h).
        let length = |program: &Program| Some(program.info().ok()?.size_translated()? / 8);
        let mut lengths: Vec<(String, u32)> = self
            .bpf
            .programs()
            .filter_map(|(name, program)| Some((name.to_owned(), length(program)?)))
            .collect();
        lengths.sort();
        lengths
    }

    /// Prepares printing of the programs' own log, see [`KernelLog`].
    ///
    /// # Errors
    ///
    /// The programs hold no log statements.
    pub fn log(&mut self) -> Result<KernelLog, String> {
        aya_log::EbpfLogger::init(&mut self.bpf)
            .map(KernelLog)
            .map_err(|error| error.to_string())
    }
}

/// The programs' own log, for debugging.
pub struct KernelLog(aya_log::EbpfLogger<&'static dyn log::Log>);

impl KernelLog {
    /// Hands what there is to the logger.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

/// Whether a program is one that asks for the network namespace of packets, where the kernel lets it.
fn is_refused_for_netns(program: &str) -> bool {
    program.starts_with("enforcer_skb") || program == TC[1]
}

/// Where the running kernel has what the programs ask for beside their contexts.
struct Fields {
    skb: SkbFields,
    socket: SocketFields,
}

impl Fields {
    fn of_kernel() -> Option<Self> {
        let info = TypeInfo::of_kernel().ok()?;
        Some(Self {
            skb: SkbFields::of(&info)?,
            socket: SocketFields::of(&info)?,
        })
    }
}

fn load_object(
    fields: &Fields,
    cookie: u64,
    skb_netns: u32,
    log: bool,
) -> Result<Ebpf, KernelError> {
    let SkbFields {
        summed,
        summed_shift,
        csum_start,
        head,
    } = &fields.skb;
    let SocketFields {
        sk,
        net,
        cookie: at,
    } = &fields.socket;
    let mut bpf = EbpfLoader::new()
        .verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS)
        .override_global("HOST_NETNS", &cookie, true)
        .override_global("SKB_NETNS", &skb_netns, true)
        .override_global("SKB_SUMMED", summed, true)
        .override_global("SKB_SUMMED_SHIFT", summed_shift, true)
        .override_global("SKB_CSUM_START", csum_start, true)
        .override_global("SKB_HEAD", head, true)
        .override_global("SOCKET_SK", sk, true)
        .override_global("SOCK_NET", net, true)
        .override_global("NET_COOKIE", at, true)
        .override_global("LOG", &u32::from(log), true)
        .load(OBJECT)
        .map_err(KernelError::load)?;
    for name in Kernel::program_names() {
        let program = bpf.program_mut(name).ok_or(KernelError::Missing(name))?;
        load_program(program).map_err(|error| KernelError::program(name, error))?;
    }
    Ok(bpf)
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => SchedClassifier::load(program),
        Program::CgroupSkb(program) => CgroupSkb::load(program),
        Program::CgroupSock(program) => CgroupSock::load(program),
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        Program::CgroupSockopt(program) => CgroupSockopt::load(program),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Takes a map out of the object, so that it can be used while the programs are borrowed.
pub(super) fn take<T>(bpf: &mut Ebpf, name: &'static str) -> Result<T, KernelError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = bpf.take_map(name).ok_or(KernelError::Missing(name))?;
    T::try_from(map).map_err(KernelError::map("open a map of the kernel programs"))
}

/// Takes an array out of the object, into memory.
pub(super) fn mapped(bpf: &mut Ebpf, name: &'static str) -> Result<Mapped, KernelError> {
    let Some(Map::Array(array)) = bpf.take_map(name) else {
        return Err(KernelError::Missing(name));
    };
    Mapped::new(&array).map_err(|source| KernelError::System {
        action: "share a map with the kernel programs",
        source,
    })
}

/// Loads the program for security modules, which many kernels refuse.
fn load_lsm(bpf: &mut Ebpf) -> Result<(), String> {
    let btf = Btf::from_sys_fs().map_err(|error| text::chain(&error))?;
    lsm_program(bpf)?
        .load("socket_setsockopt", &btf)
        .map_err(|error| gist(&text::chain(&error)))
}

fn lsm_program(bpf: &mut Ebpf) -> Result<&mut Lsm, String> {
    match bpf.program_mut(LSM) {
        Some(Program::Lsm(program)) => Ok(program),
        _ => Err(KernelError::Missing(LSM).to_string()),
    }
}

/// What an error comes down to: of the verifier's log, the last line before its account.
fn gist(text: &str) -> String {
    let is_account = |line: &&str| {
        [
            "verification time",
            "stack depth",
            "processed",
            ":",
            "mark_",
        ]
        .iter()
        .any(|start| line.starts_with(start))
    };
    let mut lines = text.lines().filter(|line| !is_account(line));
    let first = lines.next().unwrap_or_default();
    match lines.next_back() {
        Some(last) => format!("{first} … {last}"),
        None => first.to_owned(),
    }
}

/// Whether the program for security modules is asked: it answers `EPERM` to an option that there is not.
fn lsm_is_asked() -> bool {
    const PROBE: libc::c_int = 0x656e_6672;
    let Ok(socket) = std::net::UdpSocket::bind("127.0.0.1:0") else {
        return false;
    };
    let value: libc::c_int = 0;
    // SAFETY: the pointer is to a value of that length, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PROBE,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    result != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// Unchanging name of the network namespace that this process is in.
fn netns_cookie() -> Result<u64, KernelError> {
    let system = |source| KernelError::System {
        action: "ask for the cookie of the network namespace (Linux 5.14)",
        source,
    };
    let socket = std::net::UdpSocket::bind("[::]:0")
        .or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))
        .map_err(system)?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to a value of `length` bytes and to that length, and outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(system(io::Error::last_os_error()))
    }
}

/// The data of a map that is owned.
pub(super) type Owned = MapData;
