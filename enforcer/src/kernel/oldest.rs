//! What the oldest supported kernel demands of programs and newer ones do not: Linux 6.1 counts
//! more of the stack for each call, and accepts fewer loops.

use std::collections::{BTreeMap, HashSet};

use aya_obj::{Object, generated::bpf_insn};

use super::programs::OBJECT;

// include/linux/filter.h; include/uapi/linux/bpf.h and bpf_common.h.
const MAX_BPF_STACK: u32 = 512;
const MAX_CALL_FRAMES: usize = 8;
const FRAME_POINTER: u8 = 10;
const CALL: u8 = 0x85;
const PSEUDO_CALL: u8 = 1;
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;
const CLASS: u8 = 0x07;
const LOAD: u8 = 0x01;
const STORE_IMMEDIATE: u8 = 0x02;
const STORE: u8 = 0x03;
const JUMP: u8 = 0x05;
const JUMP_BY_HALVES: u8 = 0x06;
const EXIT: u8 = 0x95;
const ALWAYS: u8 = 0x05;
const LOAD_WIDE: u8 = 0x18;

/// A function of a program.
#[derive(Default)]
struct Function {
    /// Bytes below the frame pointer.
    frame: u32,
    /// Where the functions that it calls begin.
    calls: Vec<usize>,
}

/// The functions of a linked program, by where they begin.
fn functions(program: &[bpf_insn]) -> BTreeMap<usize, Function> {
    let target = |at: usize, insn: &bpf_insn| {
        (insn.code == CALL && insn.src_reg() == PSEUDO_CALL)
            .then(|| at.strict_add_signed(insn.imm as isize + 1))
    };
    let mut functions: BTreeMap<usize, Function> = program
        .iter()
        .enumerate()
        .filter_map(|(at, insn)| target(at, insn))
        .chain([0])
        .map(|start| (start, Function::default()))
        .collect();
    let mut pointer = None;
    for (at, insn) in program.iter().enumerate() {
        let (_, function) = functions.range_mut(..=at).next_back().expect("one at 0");
        function.calls.extend(target(at, insn));
        let of_frame = match insn.code & CLASS {
            LOAD => insn.src_reg() == FRAME_POINTER,
            STORE | STORE_IMMEDIATE => insn.dst_reg() == FRAME_POINTER,
            _ => false,
        };
        let below = if of_frame {
            -i32::from(insn.off)
        } else if insn.code == ADD && pointer == Some(insn.dst_reg()) {
            -insn.imm
        } else {
            0
        };
        function.frame = function.frame.max(below.max(0) as u32);
        pointer = (insn.code == MOVE && insn.src_reg() == FRAME_POINTER).then(|| insn.dst_reg());
    }
    functions
}

/// The maximum stack use of a function with everything that it calls, and the number of frames:
/// `check_max_stack_depth` in kernel/bpf/verifier.c. Frames are rounded up to 32 bytes, where newer
/// kernels round up to 16.
fn depth(functions: &BTreeMap<usize, Function>, start: usize) -> (u32, usize) {
    let Function { frame, calls } = &functions[&start];
    let below = calls.iter().map(|call| depth(functions, *call));
    let (most, frames) = below.fold((0, 0), |(bytes, frames), (more, deeper)| {
        (bytes.max(more), frames.max(deeper))
    });
    ((*frame).max(1).next_multiple_of(32) + most, frames + 1)
}

/// Where control may go from an instruction within its function, and whether by a jump:
/// `visit_insn` in kernel/bpf/verifier.c.
fn successors(at: usize, insn: &bpf_insn) -> Vec<(usize, bool)> {
    let next = at + if insn.code == LOAD_WIDE { 2 } else { 1 };
    let target = || (at + 1).strict_add_signed(isize::from(insn.off));
    match insn.code {
        EXIT => vec![],
        CALL => vec![(next, false)],
        ALWAYS => vec![(target(), true)],
        code if matches!(code & CLASS, JUMP | JUMP_BY_HALVES) => {
            vec![(next, true), (target(), true)]
        }
        _ => vec![(next, false)],
    }
}

/// An instruction that leads back into a loop without being a jump, in the function that begins
/// there. Linux 6.1 refuses programs with one (6.12 does not), and where a compiler puts a loop's
/// last block is up to the compiler.
fn falls_back(program: &[bpf_insn], start: usize) -> Option<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Not,
        OnTheWay,
        Whole,
    }
    let mut seen = vec![Seen::Not; program.len()];
    let mut way = vec![(start, successors(start, &program[start]))];
    seen[start] = Seen::OnTheWay;
    while let Some((at, left)) = way.last_mut() {
        let at = *at;
        if left.is_empty() {
            seen[at] = Seen::Whole;
            way.pop();
            continue;
        }
        let (next, jumps) = left.remove(0);
        match seen[next] {
            Seen::Not => {
                seen[next] = Seen::OnTheWay;
                way.push((next, successors(next, &program[next])));
            }
            Seen::OnTheWay if !jumps => return Some(at),
            Seen::OnTheWay | Seen::Whole => {}
        }
    }
    None
}

/// All programs, linked with what they call, by name.
fn linked() -> BTreeMap<String, Vec<bpf_insn>> {
    let mut object = Object::parse(OBJECT).unwrap();
    let sections: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    object.relocate_calls(&sections).unwrap();
    let programs = object.programs.iter();
    programs
        .map(|(name, program)| {
            let function = &object.functions[&program.function_key()];
            (name.clone(), function.instructions.clone())
        })
        .collect()
}

/// The kernel on which a change is tested may round frames up less than the oldest supported one.
#[test]
fn chains_of_calls_fit_on_the_stack_of_every_kernel() {
    let programs = linked();
    assert!(!programs.is_empty());
    for (name, program) in &programs {
        let (bytes, frames) = depth(&functions(program), 0);
        println!("{name}: {bytes} bytes in {frames} frames");
        assert!(bytes <= MAX_BPF_STACK, "{name} needs {bytes} bytes");
        assert!(frames <= MAX_CALL_FRAMES, "{name} has {frames} frames");
        assert!(bytes > 32, "{name}: nothing was counted");
    }
}

#[test]
fn loops_end_in_a_jump() {
    for (name, program) in &linked() {
        for start in functions(program).into_keys() {
            let at = falls_back(program, start);
            assert_eq!(
                at, None,
                "{name}, the function at {start}: what is to be done where code \
                 loops is up to its order; a function of its own has another one"
            );
        }
    }
}

#[test]
fn a_loop_that_falls_back_is_found() {
    let insn = |code, off| {
        let (registers, imm) = (bpf_insn::new_bitfield_1(0, 0), 0);
        bpf_insn {
            code,
            _bitfield_align_1: [],
            _bitfield_1: registers,
            off,
            imm,
        }
    };
    // Forward over the last block to the loop's head; from there back to the last block, or to the
    // end.
    let falls = [
        insn(ALWAYS, 1),
        insn(MOVE, 0),
        insn(JUMP | 0x10, -2),
        insn(EXIT, 0),
    ];
    assert_eq!(falls_back(&falls, 0), Some(1));
    let jumps = [insn(MOVE, 0), insn(JUMP | 0x10, -2), insn(EXIT, 0)];
    assert_eq!(falls_back(&jumps, 0), None);
}
