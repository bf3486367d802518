//! What was decided a moment ago ([`enforcer_common::memo`]), in a cache of each CPU's own.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use enforcer_common::{
    memo::{Asker, Line, Moment, Question},
    packet::Packet,
    record::Hook,
    verdict::Verdict,
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
    let manner = (hook as u32) << 8 | u32::from(manner);
    let recalled = if HERE {
        recall(manner, who, active, packet)
    } else {
        Found::of(enforcer_recall(manner, who, active.word(), packet))
    };
    if recalled.is_recalled() {
        return recalled;
    }
    let found = judge();
    if found.0 & Found::NOT_TO_KEEP == 0 {
        enforcer_keep(manner, who, active.word(), packet, found.word());
    }
    found
}

/// The question of a packet at a hook.
#[inline(always)]
fn question<'a>(manner: u32, who: u32, active: Active, packet: &'a Packet) -> Question<'a> {
    let asker = Asker {
        // Only those ask whose numbers these are.
        hook: match manner >> 8 {
            1 => Hook::TcIngress,
            2 => Hook::TcEgress,
            3 => Hook::CgroupEgress,
            _ => Hook::CgroupIngress,
        },
        manner: manner as u8,
        who,
    };
    // SAFETY: the helper takes nothing and reads a counter.
    let tick = unsafe { bpf_jiffies64() } as u32;
    let epoch = active.epoch();
    Question::new(asker, Moment { epoch, tick }, packet, |space, number| {
        active.class(space, number)
    })
}

/// What stands in the packet's line, if it is about such a packet; else nothing that is recalled. A denial at an interface is
/// counted there.
#[inline(always)]
fn recall(manner: u32, who: u32, active: Active, packet: &Packet) -> Found {
    const NOTHING: Found = Found::of(0);
    let question = question(manner, who, active, packet);
    let Some(line) = VERDICTS.get_ptr_mut(question.line()) else {
        return NOTHING;
    };
    // SAFETY: this CPU's own line. On the send path another program may come between and write it: then
    // its seal is broken, and it answers nothing.
    let line = unsafe { &mut *line };
    if !line.answers(&question) {
        return NOTHING;
    }
    if question.is_of(Hook::TcIngress) && line.verdict.is_recorded() {
        line.pending += 1;
    }
    let word = u64::from(line.verdict.word()) | u64::from(line.note) << 32;
    Found(word | Found::RECALLED)
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
    recall(manner, who, Active::of(active), packet).word()
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
    let question = question(manner, who, Active::of(active), packet);
    let Some(line) = VERDICTS.get_ptr_mut(question.line()) else {
        return 0;
    };
    // SAFETY: as above.
    let line: &mut Line = unsafe { &mut *line };
    if line.pending != 0 {
        report::settle(line);
    }
    let found = Found::of(found);
    line.hold(&question, found.verdict(), found.note());
    0
}
