//! What is left of a verdict: a counter, and for a denial a record.

use core::arch::asm;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_boot_ns},
};
use enforcer_common::{
    addr::Ip,
    packet::{Packet, Ports, Shape, Space},
    record::{Hook, NO_SPACE, RecordKey, RecordValue, SocketState, subject},
    tables::Tables as _,
    verdict::{Denial, Direction, Outcome, Verdict, counter},
};

use crate::maps::{COUNTERS, Generation, RECORDS, RECORDS_FULL, WAKES};

/// Who is told to have sent it.
#[derive(Clone, Copy)]
pub enum Subject {
    /// A process of this node, by the id of its cgroup.
    Cgroup(u64),
    /// Whoever is behind an interface.
    Interface(u32),
}

/// Where a verdict was made, and about whom.
pub struct Report {
    /// The hook.
    pub hook: Hook,
    /// The sender.
    pub subject: Subject,
    /// The interface, 0 for none.
    pub ifindex: u32,
    /// What is kept on the sender's socket; null where that is not known.
    pub state: *mut SocketState,
}

impl Report {
    /// Counts a verdict on a packet, and keeps a record if it is a denial. In dry-run a denied reply
    /// is counted only: its connection was told when it opened.
    #[inline(never)]
    pub fn packet(&self, generation: &Generation, verdict: Verdict, packet: Option<&Packet>) {
        count(counter::of(verdict));
        let Outcome::Denied(denial) = verdict.outcome() else {
            return;
        };
        let reply = matches!(denial.direction, Direction::Reply);
        if reply && denial.dry_run {
            return;
        }
        let Some(packet) = packet else {
            return self.keep(
                generation,
                &self.key(denial, Ip::UNSPECIFIED, Ip::UNSPECIFIED),
                0,
            );
        };
        let is_answer = reply && matches!(packet.shape, Shape::Flow);
        // Who opened is told first.
        let mut key = if is_answer {
            self.key(denial, packet.dst, packet.src)
        } else {
            self.key(denial, packet.src, packet.dst)
        };
        let mut source_port = 0;
        let Ports {
            space,
            source,
            destination,
            ..
        } = packet.ports;
        match packet.shape {
            Shape::Flow if is_answer => {
                (key.space, key.port) = (space as u8, source);
                source_port = destination;
            }
            Shape::Flow => {
                (key.space, key.port) = (space as u8, destination);
                source_port = source;
            }
            Shape::IcmpError | Shape::IcmpErrorLaterFragment => {
                let space = if packet.dst.is_v4() {
                    Space::Icmp
                } else {
                    Space::Icmp6
                };
                (key.space, key.port) = (space as u8, u16::from(packet.icmp_error));
            }
            Shape::LaterFragment => {}
        }
        self.keep(generation, &key, source_port);
    }

    /// Counts a denied call, and keeps a record.
    pub fn call(
        &self,
        generation: &Generation,
        verdict: Verdict,
        dst: Ip,
        (space, port): (Space, u16),
    ) {
        count(counter::of(verdict));
        let Outcome::Denied(denial) = verdict.outcome() else {
            return;
        };
        let key = RecordKey {
            port,
            space: space as u8,
            ..self.key(denial, Ip::UNSPECIFIED, dst)
        };
        self.keep(generation, &key, 0);
    }

    fn key(&self, denial: Denial, src: Ip, dst: Ip) -> RecordKey {
        let (subject_kind, subject) = match self.subject {
            Subject::Cgroup(id) => (subject::CGROUP, id),
            Subject::Interface(index) => (subject::INTERFACE, u64::from(index)),
        };
        RecordKey {
            subject,
            src,
            dst,
            port: 0,
            space: NO_SPACE,
            hook: self.hook as u8,
            reason: denial.reason.code(),
            subject_kind,
            dry_run: u8::from(denial.dry_run),
            reply: u8::from(matches!(denial.direction, Direction::Reply)),
        }
    }

    fn keep(&self, generation: &Generation, key: &RecordKey, source_port: u16) {
        // SAFETY: the helper takes nothing and reads a counter.
        let tick = unsafe { bpf_jiffies64() };
        if !is_counted(key, tick) {
            if is_full(tick) {
                return count(counter::RECORDS_LOST);
            }
            let generation = generation
                .settings()
                .map_or(0, |settings| settings.generation);
            self.begin(key, tick, generation, source_port);
        }
    }

    /// Makes a record. Two CPUs may come at once: the second then counts.
    #[inline(never)]
    fn begin(&self, key: &RecordKey, tick: u64, generation: u32, source_port: u16) {
        let now = now();
        let mut value = RecordValue {
            count: 1,
            first_ns: now,
            last_ns: now,
            tick,
            pid: 0,
            ifindex: self.ifindex,
            comm: [0; 16],
            generation,
            source_port,
            padding: 0,
        };
        if !self.state.is_null() {
            // SAFETY: what is kept on a socket lives as long as that.
            unsafe { (value.pid, value.comm) = ((*self.state).pid, (*self.state).comm) };
        }
        if RECORDS.insert(key, value, BPF_NOEXIST.into()).is_ok() {
            if WAKES.output_untyped::<RecordKey>(key, 0).is_err() {
                count(counter::WAKES_LOST);
            }
        } else if !is_counted(key, tick) {
            count(counter::RECORDS_LOST);
            if let Some(full) = RECORDS_FULL.get_ptr_mut(0) {
                // SAFETY: this CPU's own word.
                unsafe { *full = tick };
            }
        }
    }
}

/// Whether a record found no room on this CPU since the kernel's clock ticked. Under a flood from
/// everywhere, looking for room each time would cost more than all the rest.
#[inline(always)]
fn is_full(tick: u64) -> bool {
    let Some(full) = RECORDS_FULL.get_ptr(0) else {
        return false;
    };
    // SAFETY: this CPU's own word.
    let full = unsafe { *full };
    full == tick
}

fn now() -> u64 {
    // SAFETY: the helper takes nothing and reads a clock.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Counts one more of a key that has a record.
#[inline(always)]
fn is_counted(key: &RecordKey, tick: u64) -> bool {
    let Some(value) = RECORDS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: a value of the map, which stays in place while the program runs. Should userspace
    // delete it meanwhile, one count goes with it. Two CPUs may write the time of the last: either
    // will do.
    unsafe {
        add_one(&raw mut (*value).count);
        if (*value).tick != tick {
            (*value).tick = tick;
            (*value).last_ns = now();
        }
    }
    true
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: an element of this CPU's own array.
        unsafe { add_one(counter) };
    }
}

/// Adds one, atomically: a hook in interrupt context may come between, on the same CPU too.
///
/// # Safety
///
/// `counter` points to a word of a map's value.
unsafe fn add_one(counter: *mut u64) {
    // SAFETY: one instruction on the caller's word. `core` has no `fetch_add` for BPF, because the
    // base instruction set has no compare and exchange; it does have this.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) 1u64) };
}
