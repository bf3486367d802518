//! Reports verdicts: a counter for each, and a record for a denial.

use core::arch::asm;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_boot_ns},
};
use enforcer_common::{
    addr::Ip,
    cache::CacheEntry,
    decide, denial, limits,
    mark::PacketMark,
    packet::{Packet, PortKind, Shape},
    record::{Hook, PairKey, RecordCounter, RecordKey, RecordValue, SocketState, Whose, subject},
    tables::Tables as _,
    vantage::Vantage,
    verdict::{Direction, Outcome, Verdict, counter},
};

use crate::maps::{Active, COUNTERS, PAIRS, RECORD_COUNTS, RECORDS, ROOM, WAKES};

/// The sender that a record names. It is not an enum with fields, as those leave bytes unset.
#[derive(Clone, Copy)]
pub struct Subject {
    kind: u8,
    number: u64,
}

impl Subject {
    /// A process of this node, by the id of its cgroup.
    pub const fn cgroup(id: u64) -> Self {
        Self {
            kind: subject::CGROUP,
            number: id,
        }
    }

    /// Whatever sends from behind an interface.
    pub const fn interface(index: u32) -> Self {
        Self {
            kind: subject::INTERFACE,
            number: index as u64,
        }
    }
}

/// The context of a report: where a verdict was made, and about which sender.
pub struct Report {
    /// The policy that made it.
    pub active: Active,
    /// The hook.
    pub hook: Hook,
    /// The sender.
    pub subject: Subject,
    /// Where it was judged; a call counts as sent by its process.
    pub vantage: Vantage,
    /// The mark on the packet after it was judged at ingress; none elsewhere.
    pub mark: PacketMark,
    /// The state of the sender's socket; null if that is not known.
    pub state: *mut SocketState,
}

impl Report {
    /// Counts a verdict on a packet, and keeps a record if it is a denial that is recorded.
    ///
    /// Takes much of a stack frame: its caller should not need much more.
    #[inline(always)]
    pub fn packet(&self, verdict: Verdict, packet: Option<&Packet>) {
        count(counter::of(verdict));
        if !verdict.is_recorded() {
            return;
        }
        let Outcome::Denied(mut denial) = verdict.outcome() else {
            return;
        };
        let whose = self.whose();
        let guarded = denial.guarded;
        let Some(packet) = packet else {
            let nowhere = Ip::UNSPECIFIED;
            let key = RecordKey::between(whose, denial, nowhere, nowhere);
            return self.keep(&key, guarded, 0);
        };
        if matches!(packet.shape, Shape::Flow) {
            if decide::is_answer(denial, packet) {
                denial.direction = Direction::Reply;
                if denial.dry_run {
                    return;
                }
            }
            let flow = decide::flow(packet);
            let source_port = match denial.direction {
                Direction::Forward => flow.source,
                Direction::Reply => flow.destination,
            };
            let port_kind = packet.ports.kind;
            let key = RecordKey::of_flow(whose, denial, port_kind, &flow);
            return self.keep(&key, guarded, source_port);
        }
        let mut key = RecordKey::between(whose, denial, packet.src, packet.dst);
        if matches!(
            packet.shape,
            Shape::IcmpError | Shape::IcmpErrorLaterFragment | Shape::IcmpErrorAstray
        ) {
            let port_kind = if packet.dst.is_v4() {
                PortKind::Icmp
            } else {
                PortKind::Icmp6
            };
            (key.port_kind, key.port) = (port_kind as u8, u16::from(packet.icmp_error));
        }
        self.keep(&key, guarded, 0);
    }

    /// Counts a denied call, and keeps a record.
    pub fn call(&self, verdict: Verdict, dst: Ip, (port_kind, port): (PortKind, u16)) {
        count(counter::of(verdict));
        let Outcome::Denied(denial) = verdict.outcome() else {
            return;
        };
        let key = RecordKey {
            port,
            port_kind: port_kind as u8,
            ..RecordKey::between(self.whose(), denial, Ip::UNSPECIFIED, dst)
        };
        self.keep(&key, denial.guarded, 0);
    }

    fn whose(&self) -> Whose {
        let Subject { kind, number } = self.subject;
        Whose {
            hook: self.hook,
            kind,
            subject: number,
        }
    }

    #[inline(always)]
    fn keep(&self, key: &RecordKey, guarded: bool, source_port: u16) {
        // SAFETY: the helper takes nothing and reads a counter.
        let tick = unsafe { bpf_jiffies64() };
        if is_counted(key, tick) {
            return;
        }
        let has_room = takes_room(tick) || (guarded && is_first_of_pair(key));
        if !has_room {
            return count(counter::RECORDS_LOST);
        }
        let (vantage, mark) = (self.vantage.word(), self.mark.word());
        // Before the next call and not within it, so that their stack frames do not add up.
        let sender = enforcer_denied_sender(self.active.word(), vantage, mark.into(), key);
        let target = enforcer_denied_target(self.active.word(), vantage, key);
        self.begin(key, tick, source_port, sender | target << 16);
    }

    /// Creates a record. If two CPUs do so at once, the second one counts instead.
    #[inline(never)]
    fn begin(&self, key: &RecordKey, tick: u64, source_port: u16, sides: u32) {
        let now = now();
        let generation = self.active.generation();
        let generation = generation
            .settings()
            .map_or(0, |settings| settings.generation);
        // The name in words: the compiler would call a function to write that many bytes.
        let (pid, start, end) = if self.state.is_null() {
            (0, 0_u64, 0_u64)
        } else {
            // SAFETY: the state lives as long as its socket.
            let (pid, comm) = unsafe { ((*self.state).pid, (*self.state).comm) };
            let [start, end] = zerocopy::transmute!(comm);
            (pid, start, end)
        };
        let (sender, target) = (sides as u16, (sides >> 16) as u16);
        let value = RecordValue {
            count: 1,
            first_ns: now,
            last_ns: now,
            tick,
            pid,
            generation,
            comm: zerocopy::transmute!([start, end]),
            sender,
            target,
            source_port,
            padding: 0,
        };
        let counter = key.counter();
        let Some(counts) = RECORD_COUNTS.get_ptr_mut(counter.word()) else {
            return count(counter::RECORDS_LOST);
        };
        let Some(all) = RECORD_COUNTS.get_ptr_mut(RecordCounter::ALL) else {
            return count(counter::RECORDS_LOST);
        };
        // SAFETY: words of the map.
        unsafe {
            add_to(counts, counter.one());
            add_to(all, 1);
        }
        if RECORDS.insert(key, value, BPF_NOEXIST.into()).is_ok() {
            if WAKES.output_untyped::<RecordKey>(key, 0).is_err() {
                count(counter::WAKES_LOST);
            }
            return;
        }
        // SAFETY: as above.
        unsafe {
            add_to(counts, counter.one().wrapping_neg());
            add_to(all, 1_u64.wrapping_neg());
        }
        if !is_counted(key, tick) {
            count(counter::RECORDS_LOST);
            if let Some(room) = ROOM.get_ptr_mut(0) {
                // SAFETY: this CPU's own words.
                unsafe { (*room).left = 0 };
            }
        }
    }
}

/// The sender of a denial ([`denial::sender`]). A global function, which the verifier checks once and separately.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_denied_sender(
    active: u32,
    vantage: u64,
    mark: u32,
    key: *const RecordKey,
) -> u32 {
    // SAFETY: null or a whole key, as the verifier has made sure of every caller.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return 0;
    };
    let generation = Active::of(active).generation();
    let vantage = Vantage::from_any_word(vantage);
    let mark = PacketMark::from_word(mark as u16);
    denial::sender(&generation, vantage, mark, key).into()
}

/// The target of a denial ([`denial::target`]). Global, too.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_denied_target(active: u32, vantage: u64, key: *const RecordKey) -> u32 {
    // SAFETY: as above.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return 0;
    };
    let generation = Active::of(active).generation();
    denial::target(&generation, Vantage::from_any_word(vantage), key).into()
}

/// Adds what is pending in an entry to its record. If there is no record, because there was no room or it was removed, they
/// are counted as lost.
#[inline(never)]
pub fn settle(entry: &mut CacheEntry) {
    let pending = u64::from(entry.pending);
    entry.pending = 0;
    let Some(key) = entry.record() else {
        return;
    };
    match RECORDS.get_ptr_mut(key) {
        // The record's times are right: it was updated when the entry was written, in the same tick.
        // SAFETY: as in `is_counted`; if userspace deletes it meanwhile, these counts are lost with it.
        Some(value) => unsafe { add_to(&raw mut (*value).count, pending) },
        None => add(counter::RECORDS_LOST, pending),
    }
}

/// Takes from the allowance for new records, if this CPU has some left. A hook that interrupts this may allow one record
/// more or less.
#[inline(always)]
fn takes_room(tick: u64) -> bool {
    let Some(room) = ROOM.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: this CPU's own words.
    let room = unsafe { &mut *room };
    if room.tick != tick {
        let more = tick.wrapping_sub(room.tick) * limits::NEW_RECORDS_A_TICK;
        let left = room.left + more.min(limits::NEW_RECORDS_AT_ONCE);
        room.left = left.min(limits::NEW_RECORDS_AT_ONCE);
        room.tick = tick;
    }
    if room.left == 0 || records() >= limits::MAX_RECORDS.into() {
        return false;
    }
    room.left -= 1;
    true
}

/// Whether a sender is denied an endpoint for the first time. There is reserved room for such records
/// ([`limits::MAX_PAIRS`]).
#[inline(never)]
fn is_first_of_pair(key: &RecordKey) -> bool {
    let pair = PairKey::of(key);
    if PAIRS.get_ptr(pair).is_some() {
        return false;
    }
    PAIRS.insert(pair, 1_u32, 0).is_ok()
}

/// How many records there are.
#[inline(always)]
fn records() -> u64 {
    let Some(all) = RECORD_COUNTS.get_ptr(RecordCounter::ALL) else {
        return u64::MAX;
    };
    // SAFETY: a word of the map, which other CPUs may write meanwhile.
    unsafe { all.read_volatile() }
}

fn now() -> u64 {
    // SAFETY: the helper takes nothing and reads a clock.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The word that holds the count of a counter.
#[inline(always)]
pub fn counts(counter: RecordCounter) -> u64 {
    let Some(counts) = RECORD_COUNTS.get_ptr(counter.word()) else {
        return 0;
    };
    // SAFETY: a word of the map, which other CPUs may write meanwhile.
    unsafe { counts.read_volatile() }
}

/// Counts a denial in its record, if there is one.
#[inline(always)]
fn is_counted(key: &RecordKey, tick: u64) -> bool {
    let counter = key.counter();
    if counter.count(counts(counter)) == 0 {
        return false;
    }
    let Some(value) = RECORDS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: a value of the map, which stays valid while the program runs. If userspace deletes it meanwhile, one count is
    // lost with it. Two CPUs may write the time of the last denial at once; either value is fine.
    unsafe {
        add_to(&raw mut (*value).count, 1);
        if (*value).tick != tick {
            (*value).tick = tick;
            (*value).last_ns = now();
        }
    }
    true
}

/// Counts one more, on this CPU.
#[inline(always)]
pub fn count(index: u32) {
    add(index, 1);
}

/// Adds to a counter on this CPU.
#[inline(always)]
fn add(index: u32, more: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: an element of this CPU's own array.
        unsafe { add_to(counter, more) };
    }
}

/// Adds atomically, as programs on the same CPU may interrupt this, too.
///
/// # Safety
///
/// `counter` points to a word of a map's value.
unsafe fn add_to(counter: *mut u64, more: u64) {
    // SAFETY: one instruction on the caller's word. `core` has no `fetch_add` for BPF, because the
    // base instruction set has no compare and exchange; it does have this.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) more) };
}
