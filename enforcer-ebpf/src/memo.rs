//! What was decided a moment ago ([`enforcer_common::memo`]), in a cache of each CPU's own.

use core::arch::asm;

use aya_ebpf::helpers::generated::bpf_jiffies64;
use enforcer_common::{
    memo::{Asker, Line, Moment, Question},
    packet::Packet,
    record::Hook,
    verdict::{Verdict, counter},
};

use crate::{
    maps::{Active, Generation, VERDICTS},
    report,
};

/// A verdict and a note about it, in a word: functions of their own can return that, whose variables need no
/// place on the stack of the caller.
#[derive(Clone, Copy)]
pub struct Found(u64);

impl Found {
    const NOT_TO_KEEP: u64 = 1 << 63;
    const RECALLED: u64 = 1 << 62;
    const TAKEN: u64 = 1 << 61;
    /// The word of a verdict by no policy.
    pub const HOLE: u64 = Verdict::HOLE.word() as u64;

    /// A verdict that a generation has just made. One that another packet may change at once is not to be
    /// kept.
    #[inline(always)]
    pub fn new(generation: &Generation, verdict: Verdict, note: u16) -> Self {
        let mut word = u64::from(verdict.word()) | u64::from(note) << 32;
        if verdict.is_denied() && generation.memory_was_asked() {
            word |= Self::NOT_TO_KEEP;
        }
        Self(word)
    }

    /// The same again, from its word.
    #[inline(always)]
    pub const fn of(word: u64) -> Self {
        Self(word)
    }

    /// The word, for global functions, which return numbers.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Whether it was made earlier in this moment.
    #[inline(always)]
    pub fn is_recalled(self) -> bool {
        self.0 & Self::RECALLED != 0
    }

    /// The verdict.
    #[inline(always)]
    pub fn verdict(self) -> Verdict {
        zerocopy::transmute!(self.0 as u32)
    }

    /// The note.
    #[inline(always)]
    pub fn note(self) -> u16 {
        (self.0 >> 32) as u16
    }
}

/// The verdict on a packet that poses a question, recalled or made by `judge`. `HERE`: recalled without a call, which
/// saves some nanoseconds and takes 80 bytes of the caller's stack frame.
#[inline(always)]
pub fn verdict<const HERE: bool>(
    asker: Asker,
    active: Active,
    packet: &Packet,
    judge: impl FnOnce() -> Found,
) -> Found {
    if !Question::is_posed_by(packet) {
        return judge();
    }
    let Asker { hook, manner, who } = asker;
    // What is decided from now on is good in this tick and no other.
    let tick = tick();
    let manner = tick << 16 | (hook as u32) << 8 | u32::from(manner);
    let recalled = if HERE {
        recall(tick, manner, who, active, packet)
    } else {
        Found::of(enforcer_recall(manner, who, active.word(), packet))
    };
    if recalled.is_recalled() {
        return recalled;
    }
    let found = judge();
    let is_kept = found.0 & Found::NOT_TO_KEEP == 0
        && (recalled.0 & Found::TAKEN == 0 || is_turn_of_a_rival(found.verdict()));
    if is_kept {
        enforcer_keep(manner, who, active.word(), packet, found.word());
    }
    found
}

/// Whether a verdict may take a line that has been taken in this tick already: one in so many packets' may. What comes
/// often gets it soon; a flood of questions that nobody asks twice neither drives out the others nor pays for lines.
#[inline(always)]
fn is_turn_of_a_rival(verdict: Verdict) -> bool {
    const RIVALS: u64 = 8;
    report::counted(counter::of(verdict)).is_multiple_of(RIVALS)
}

/// The question of a packet at a hook.
#[inline(always)]
fn question<'a>(
    tick: u32,
    manner: u32,
    who: u32,
    active: Active,
    packet: &'a Packet,
) -> Question<'a> {
    let asker = Asker {
        // Only those ask whose numbers these are.
        hook: match manner >> 8 & 0xff {
            1 => Hook::TcIngress,
            2 => Hook::TcEgress,
            3 => Hook::CgroupEgress,
            _ => Hook::CgroupIngress,
        },
        manner: manner as u8,
        who,
    };
    let moment = Moment {
        epoch: active.epoch(),
        tick,
    };
    Question::new(asker, moment, packet, |space, number| {
        active.class(space, number)
    })
}

/// The kernel's clock.
#[inline(always)]
fn tick() -> u32 {
    // SAFETY: the helper takes nothing and reads a counter.
    unsafe { bpf_jiffies64() as u32 }
}

/// What stands in the packet's line, if it is about such a packet; else nothing that is recalled. A denial at an interface is
/// counted there.
#[inline(always)]
fn recall(tick: u32, manner: u32, who: u32, active: Active, packet: &Packet) -> Found {
    const NOTHING: Found = Found::of(0);
    const TAKEN: Found = Found::of(Found::TAKEN);
    let question = question(tick, manner, who, active, packet);
    let Some(line) = VERDICTS.get_ptr_mut(question.line()) else {
        return NOTHING;
    };
    let before = version(line);
    // SAFETY: this CPU's own line, which a program that comes between may write: then its version tells, and what was
    // read is not believed.
    let found = unsafe {
        if Line::is_written(before) || !(*line).answers(&question) {
            let is_taken = (*line).is_of(&question);
            return if is_taken { TAKEN } else { NOTHING };
        }
        u64::from((*line).verdict.word()) | u64::from((*line).note) << 32
    };
    if version(line) != before {
        return NOTHING;
    }
    let found = Found(found | Found::RECALLED);
    if question.is_of(Hook::TcIngress) && found.verdict().is_recorded() {
        // SAFETY: the receive path is not interrupted by itself, and nobody else counts.
        unsafe { (*line).pending += 1 };
    }
    found
}

/// The version of a line. Nothing is read before that stands behind it in the code, nor after what stands before.
#[inline(always)]
fn version(line: *mut Line) -> u32 {
    fence();
    // SAFETY: a line of the map.
    let version = unsafe { (&raw const (*line).version).read_volatile() };
    fence();
    version
}

/// For the compiler alone, as a line belongs to one CPU.
#[inline(always)]
fn fence() {
    // SAFETY: no instruction.
    unsafe { asm!("", options(nostack)) }
}

/// Takes a line to write it, unless somebody else has it. The version to [set](release) then.
#[inline(always)]
fn acquire(line: *mut Line) -> Option<u32> {
    let before = version(line);
    if Line::is_written(before) {
        return None;
    }
    // With the tick behind it, as the compiler has this instruction for words of 64 bits only.
    // SAFETY: a line of the map, whose first two fields are these.
    let tick = unsafe { (*line).tick };
    let pair = |version: u32| -> u64 { zerocopy::transmute!([version, tick]) };
    let found: u64;
    // SAFETY: one instruction on these (Linux 5.12). `core` has none of them for BPF.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({line} + 0, r0, {written})",
            line = in(reg) line,
            written = in(reg) pair(before.wrapping_add(1)),
            inlateout("r0") pair(before) => found,
            options(nostack),
        );
    }
    (found == pair(before)).then(|| before.wrapping_add(2))
}

/// Ends writing.
#[inline(always)]
fn release(line: *mut Line, version: u32) {
    fence();
    // SAFETY: a line of the map.
    unsafe { (&raw mut (*line).version).write_volatile(version) };
}

/// The word of what is recalled. A global function, which the verifier goes through once and by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_recall(
    manner: u32,
    who: u32,
    active: u32,
    packet: *const Packet,
) -> u64 {
    // SAFETY: null or a whole packet, as the verifier has made sure of every caller.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return 0;
    };
    recall(tick(), manner, who, Active::of(active), packet).word()
}

/// Writes a verdict ([`Found`]) into the packet's line. Answers nothing, which is 0. Global, too.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_keep(
    manner: u32,
    who: u32,
    active: u32,
    packet: *const Packet,
    found: u64,
) -> u32 {
    // SAFETY: as above.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return 0;
    };
    let tick = tick();
    if tick as u16 != (manner >> 16) as u16 {
        return 0;
    }
    let question = question(tick, manner, who, Active::of(active), packet);
    let Some(line) = VERDICTS.get_ptr_mut(question.line()) else {
        return 0;
    };
    let Some(version) = acquire(line) else {
        return 0;
    };
    // SAFETY: this CPU's own line, which is ours alone to write until it is released.
    unsafe {
        if (*line).pending != 0 {
            report::settle(&mut *line);
        }
        let found = Found::of(found);
        (*line).hold(&question, found.verdict(), found.note());
    }
    release(line, version);
    0
}
