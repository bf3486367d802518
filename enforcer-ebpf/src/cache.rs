//! The verdict cache ([`enforcer_common::cache`]), one for each CPU.

use core::arch::asm;

use aya_ebpf::helpers::generated::bpf_jiffies64;
use enforcer_common::{
    cache::{CacheEntry, CacheKey, Stamp},
    judge::Judgement,
    mark::PacketMark,
    packet::Packet,
    vantage::{Kind, Vantage},
    verdict::Verdict,
};

use crate::{
    maps::{Active, Generation, VERDICTS},
    report,
};

/// A judgement and whether it comes from the cache, packed into a word: functions that are not inlined can return that, and
/// their variables take no space on the caller's stack.
#[derive(Clone, Copy)]
pub struct CachedVerdict(u64);

impl CachedVerdict {
    const NOT_TO_KEEP: u64 = 1 << 63;
    const RECALLED: u64 = 1 << 62;
    /// The word of the verdict without a policy.
    pub const UNSET: u64 = Verdict::UNSET.word() as u64;

    /// A verdict that a generation has just made. One that the next packet may change is marked as not cacheable.
    #[inline(always)]
    pub fn new(generation: &Generation, judged: Judgement) -> Self {
        let Judgement { verdict, mark } = judged;
        let mut word = u64::from(verdict.word()) | u64::from(mark.word()) << 32;
        if verdict.is_denied() && generation.used_memory() {
            word |= Self::NOT_TO_KEEP;
        }
        Self(word)
    }

    /// From its word.
    #[inline(always)]
    pub const fn of(word: u64) -> Self {
        Self(word)
    }

    /// The word, for global functions, which return numbers.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Whether it comes from the cache.
    #[inline(always)]
    pub fn is_recalled(self) -> bool {
        self.0 & Self::RECALLED != 0
    }

    /// The verdict.
    #[inline(always)]
    pub fn verdict(self) -> Verdict {
        zerocopy::transmute!(self.0 as u32)
    }

    /// The judgement.
    #[inline(always)]
    pub fn judgement(self) -> Judgement {
        Judgement {
            verdict: self.verdict(),
            mark: PacketMark::from_word((self.0 >> 32) as u16),
        }
    }
}

/// The judgement on a packet, from the cache or made by `judge`. With `HERE`, the cache is looked up without a call, which
/// saves 5 % of a denied packet (docs/bench/notes.md) and takes 80 bytes of the caller's stack frame.
#[inline(always)]
pub fn verdict<const HERE: bool>(
    vantage: Vantage,
    active: Active,
    packet: &Packet,
    judge: impl FnOnce() -> CachedVerdict,
) -> CachedVerdict {
    if !CacheKey::has_key(packet) {
        return judge();
    }
    // What is decided from now on is valid for this tick only.
    let tick = tick();
    let recalled = if HERE {
        recall(tick, vantage, active, packet)
    } else {
        CachedVerdict::of(enforcer_recall(tick, vantage.word(), active.word(), packet))
    };
    if recalled.is_recalled() {
        return recalled;
    }
    let found = judge();
    if found.0 & CachedVerdict::NOT_TO_KEEP == 0 {
        let both = u64::from(tick) << 32 | u64::from(active.word());
        enforcer_keep(both, vantage.word(), packet, found.word());
    }
    found
}

/// The key of a packet at a vantage.
#[inline(always)]
fn key<'a>(tick: u32, vantage: Vantage, active: Active, packet: &'a Packet) -> CacheKey<'a> {
    let stamp = Stamp {
        epoch: active.epoch(),
        tick,
    };
    CacheKey::new(vantage, stamp, packet, |port_kind, number| {
        active.class(port_kind, number)
    })
}

/// The kernel's clock.
#[inline(always)]
fn tick() -> u32 {
    // SAFETY: the helper takes nothing and reads a counter.
    unsafe { bpf_jiffies64() as u32 }
}

/// The verdict in the packet's entry, if the entry has the packet's key; otherwise a word that is not recalled. A denial at
/// an interface is counted in the entry.
#[inline(always)]
fn recall(tick: u32, vantage: Vantage, active: Active, packet: &Packet) -> CachedVerdict {
    const NOTHING: CachedVerdict = CachedVerdict::of(0);
    let key = key(tick, vantage, active, packet);
    let Some(entry) = VERDICTS.get_ptr_mut(key.index()) else {
        return NOTHING;
    };
    let before = version(entry);
    // SAFETY: this CPU's own entry. A program that interrupts this one may write it; then the version has changed, and what
    // was read is discarded.
    let found = unsafe {
        if CacheEntry::is_written(before) || !(*entry).matches(&key) {
            return NOTHING;
        }
        u64::from((*entry).verdict.word()) | u64::from((*entry).mark) << 32
    };
    if version(entry) != before {
        return NOTHING;
    }
    let found = CachedVerdict(found | CachedVerdict::RECALLED);
    if key.is_at(Kind::Arrived) && found.verdict().is_recorded() {
        // SAFETY: the receive path is not interrupted by itself, and nothing else counts here.
        unsafe { (*entry).pending += 1 };
    }
    found
}

/// The version of an entry. The compiler moves no other read across this one.
#[inline(always)]
fn version(entry: *mut CacheEntry) -> u32 {
    fence();
    // SAFETY: an entry of the map.
    let version = unsafe { (&raw const (*entry).version).read_volatile() };
    fence();
    version
}

/// A fence for the compiler only, as an entry belongs to one CPU.
#[inline(always)]
fn fence() {
    // SAFETY: no instruction.
    unsafe { asm!("", options(nostack)) }
}

/// Locks an entry for writing, unless it is being written. Returns the version to [set](release) afterwards.
#[inline(always)]
fn acquire(entry: *mut CacheEntry) -> Option<u32> {
    let before = version(entry);
    if CacheEntry::is_written(before) {
        return None;
    }
    // Together with the tick behind it, as the compiler has this instruction for words of 64 bits only.
    // SAFETY: an entry of the map, whose first two fields are version and tick.
    let tick = unsafe { (*entry).tick };
    let pair = |version: u32| -> u64 { zerocopy::transmute!([version, tick]) };
    let found: u64;
    // SAFETY: one instruction on these two fields (Linux 5.12). `core` has no atomics for BPF.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({entry} + 0, r0, {written})",
            entry = in(reg) entry,
            written = in(reg) pair(before.wrapping_add(1)),
            inlateout("r0") pair(before) => found,
            options(nostack),
        );
    }
    (found == pair(before)).then(|| before.wrapping_add(2))
}

/// Unlocks an entry after writing.
#[inline(always)]
fn release(entry: *mut CacheEntry, version: u32) {
    fence();
    // SAFETY: an entry of the map.
    unsafe { (&raw mut (*entry).version).write_volatile(version) };
}

/// [`recall`] as a global function, which the verifier checks once and separately.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_recall(
    tick: u32,
    vantage: u64,
    active: u32,
    packet: *const Packet,
) -> u64 {
    // SAFETY: null or a whole packet, as the verifier has made sure of every caller.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return 0;
    };
    let vantage = Vantage::from_any_word(vantage);
    recall(tick, vantage, Active::of(active), packet).word()
}

/// Writes a judgement ([`CachedVerdict`]) into the packet's entry. Always returns 0. `stamp` has the tick in its upper half
/// and the word of [`Active`] in its lower half. Global, too.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_keep(
    stamp: u64,
    vantage: u64,
    packet: *const Packet,
    found: u64,
) -> u32 {
    // SAFETY: as above.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return 0;
    };
    let (begun, active) = ((stamp >> 32) as u32, Active::of(stamp as u32));
    let tick = tick();
    if tick != begun {
        return 0;
    }
    let key = key(tick, Vantage::from_any_word(vantage), active, packet);
    let Some(entry) = VERDICTS.get_ptr_mut(key.index()) else {
        return 0;
    };
    let Some(version) = acquire(entry) else {
        return 0;
    };
    // SAFETY: this CPU's own entry, which is ours alone to write until it is released.
    unsafe {
        if (*entry).pending != 0 {
            report::settle(&mut *entry);
        }
        let Judgement { verdict, mark } = CachedVerdict::of(found).judgement();
        (*entry).store(&key, verdict, mark);
    }
    release(entry, version);
    0
}
