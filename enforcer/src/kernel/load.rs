//! Loads the object into the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{
        CgroupSkb, CgroupSock, CgroupSockAddr, CgroupSockopt, Program, ProgramError,
        SchedClassifier,
    },
};

use super::{
    Kept, KernelError, PinnedState,
    adopt::Target,
    btf::{SkbFields, SocketFields, TypeInfo},
    layout, lsm,
    netns::netns_cookie,
    pins::Instance,
    programs::{CGROUP, OBJECT, TC},
    roles::Roles,
    state::{Attached, Kernel, Pinned, Readers, Slots},
};

impl Kernel {
    /// Loads all programs. Nothing is attached yet, and the maps contain no policy, unless a
    /// previous agent left maps that this one adopts. Without `found`, nothing is pinned, and
    /// everything ends with this process. With `log`, the programs log what they return, see
    /// [`Self::log`].
    ///
    /// # Errors
    ///
    /// Missing privileges, a kernel without a needed feature, or a verifier that refuses a program.
    pub fn load(found: Option<PinnedState>, log: bool) -> Result<Self, KernelError> {
        let Some(found) = found else {
            let kept = Kept {
                netns: netns_cookie()?,
                ..Kept::default()
            };
            return Self::load_into(None, kept, log);
        };
        let (target, kept) = found.target()?;
        let new = target.store.is_none().then(|| target.instance.clone());
        let loaded = Self::load_into(Some(target), kept, log);
        if loaded.is_err()
            && let Some(new) = new
        {
            // Nothing is attached to it.
            let _ = new.remove();
        }
        loaded
    }

    fn load_into(target: Option<Target>, kept: Kept, log: bool) -> Result<Self, KernelError> {
        if !Path::new("/sys/kernel/btf/vmlinux").exists() && Btf::from_sys_fs().is_err() {
            return Err(KernelError::NoBtf);
        }
        let fields = Fields::of_kernel().ok_or(KernelError::UnknownLayout)?;
        let load = |skb_netns| {
            let instance = target.as_ref().map(|target| &target.instance);
            load_object(&fields, kept.netns, skb_netns, instance, log)
        };
        // The verifier refuses the whole program if it may not call the helper, so the variant for
        // newer kernels is tried first, and once.
        let (mut bpf, netns_of_packets) = match load(1) {
            Err(KernelError::Refused { program, .. }) if is_refused_for_netns(program) => {
                (load(0)?, false)
            }
            loaded => (loaded?, true),
        };
        // While the object still has all maps: a map that was taken out may be closed, and loading
        // a program takes the maps' descriptors.
        let lsm_loaded = lsm::load(&mut bpf);
        let mut slots = Slots::take(&mut bpf)?;
        let readers = Readers::take(&mut bpf)?;
        let pinned = target.map(Pinned::new).transpose()?;
        let before = pinned.as_ref().filter(|pinned| pinned.adopted);
        let adopted = before.is_some();
        if let Some(pinned) = before {
            slots.read_back(&pinned.instance)?;
        } else {
            // Generations continue, so that records and events of different ones can be told apart.
            slots.current.number = kept.in_force.generation;
        }
        let attached = Attached {
            roles: Roles::take(&mut bpf, adopted)?,
            interfaces: BTreeMap::new(),
            cgroups: Vec::new(),
            filters: BTreeSet::new(),
            lsm: None,
            fallback_roles: BTreeMap::new(),
        };
        Ok(Self {
            bpf,
            pinned,
            kept,
            slots,
            readers,
            attached,
            netns_of_packets,
            lsm: Err("nothing is attached yet".to_owned()),
            lsm_loaded,
        })
    }

    /// Loads all programs a second time, on the existing maps: as different programs, they can be
    /// attached alongside the first ones.
    ///
    /// # Errors
    ///
    /// As [`Self::load`].
    pub(super) fn load_again(&mut self) -> Result<(), KernelError> {
        let fields = Fields::of_kernel().ok_or(KernelError::UnknownLayout)?;
        let instance = self.pinned.as_ref().map(|pinned| &pinned.instance);
        let skb_netns = u32::from(self.netns_of_packets);
        let mut bpf = load_object(&fields, self.kept.netns, skb_netns, instance, false)?;
        self.lsm_loaded = lsm::load(&mut bpf);
        self.bpf = bpf;
        Ok(())
    }

    /// The kernel features that are available and used.
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
                format!("setsockopt calls are seen by the cgroup hook, which 32-bit ones bypass: no BPF LSM ({why})")
            }
        });
        features
    }

    /// How many instructions the verifier processed for each program, which shows how close it is
    /// to the kernel's limit of a million. Empty if the kernel does not report it (before 5.16).
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

    /// How many instructions each program has after verification. Empty if the kernel does not
    /// report it.
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

impl Drop for Kernel {
    /// What is not pinned ends with this process, including filters, which would otherwise stay.
    fn drop(&mut self) {
        if self.pinned.is_none() {
            let _ = self.detach();
        }
    }
}

/// The programs' own log, for debugging.
pub struct KernelLog(aya_log::EbpfLogger<&'static dyn log::Log>);

impl KernelLog {
    /// Passes pending messages to the logger.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

/// Whether a program queries the network namespace of packets, if the kernel allows it.
fn is_refused_for_netns(program: &str) -> bool {
    program.starts_with("enforcer_skb") || program == TC[1]
}

/// Where the running kernel has what the programs need beyond their contexts.
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
    instance: Option<&Instance>,
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
    let mut loader = EbpfLoader::new();
    if let Some(instance) = instance {
        for map in layout::maps() {
            loader.map_pin_path(map.name, instance.map(map.name));
        }
    }
    let mut bpf = loader
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
