//! What each program needs of the stack, counted as Linux 6.1 does.

use std::collections::{BTreeMap, HashSet};

use aya_obj::{Object, generated::bpf_insn};

use super::load::OBJECT;

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

/// The most that a function needs with all that it calls, and how many frames that is: `check_max_stack_depth` in
/// kernel/bpf/verifier.c. Frames in steps of 32 bytes, where newer kernels count in steps of 16.
fn depth(functions: &BTreeMap<usize, Function>, start: usize) -> (u32, usize) {
    let Function { frame, calls } = &functions[&start];
    let below = calls.iter().map(|call| depth(functions, *call));
    let (most, frames) = below.fold((0, 0), |(bytes, frames), (more, deeper)| {
        (bytes.max(more), frames.max(deeper))
    });
    ((*frame).max(1).next_multiple_of(32) + most, frames + 1)
}

/// The kernel that a change is tried on may count in smaller steps than the oldest that we claim.
#[test]
fn chains_of_calls_fit_on_the_stack_of_every_kernel() {
    let mut object = Object::parse(OBJECT).unwrap();
    let sections: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    object.relocate_calls(&sections).unwrap();
    assert!(!object.programs.is_empty());
    for (name, program) in &object.programs {
        let linked = &object.functions[&program.function_key()].instructions;
        let (bytes, frames) = depth(&functions(linked), 0);
        println!("{name}: {bytes} bytes in {frames} frames");
        assert!(bytes <= MAX_BPF_STACK, "{name} needs {bytes} bytes");
        assert!(frames <= MAX_CALL_FRAMES, "{name} has {frames} frames");
        assert!(bytes > 32, "{name}: nothing was counted");
    }
}
