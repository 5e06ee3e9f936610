//! What finding and putting a channel really costs: the instructions in the image.
//!
//! The images with the in-kernel suites have functions that do this and nothing else
//! (`longshore_probe_…`, kernel/src/ktest/channels.rs).

#![forbid(unsafe_code)]

use std::path::Path;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter, Instruction, Mnemonic, NasmFormatter, Register,
};
use object::{Object, ObjectSection, ObjectSymbol};

const COUNTED: &str = "longshore-test";
const UNCOUNTED: &str = "longshore-nohotplug";

/// The instructions of a function of an image, from its symbol to its end.
fn function(image: &str, name: &str) -> Vec<Instruction> {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build");
    let image = build.join(format!("{image}.elf"));
    let bytes = std::fs::read(&image).unwrap_or_else(|error| panic!("{image:?}: {error}"));
    let file = object::File::parse(&*bytes).unwrap();
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
    let symbol = symbol.unwrap_or_else(|| panic!("no {name} in {image:?}"));
    let section = file
        .section_by_index(symbol.section_index().unwrap())
        .unwrap();
    let code = section
        .data_range(symbol.address(), symbol.size())
        .unwrap()
        .unwrap();
    Decoder::with_ip(64, code, symbol.address(), DecoderOptions::NONE)
        .into_iter()
        .collect()
}

fn text(code: &[Instruction]) -> String {
    let mut formatter = NasmFormatter::new();
    let line = |instruction| {
        let mut line = String::new();
        formatter.format(instruction, &mut line);
        line
    };
    code.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Adds one to, or takes one from, a counter of the running CPU's.
fn counts(instruction: &Instruction, mnemonic: Mnemonic) -> bool {
    instruction.mnemonic() == mnemonic && instruction.memory_segment() == Register::GS
}

/// Every way through the function that counts once up and once down: the number of instructions up
/// to and with the last count, without those that set up the frame.
fn paths(code: &[Instruction]) -> Vec<usize> {
    let at = |ip: u64| code.iter().position(|instruction| instruction.ip() == ip);
    let mut found = Vec::new();
    // Index, instructions so far, counts up and down, instructions up to the last count.
    let mut open = vec![(0, 0, 0, 0, 0)];
    while let Some((index, steps, up, down, last)) = open.pop() {
        let Some(instruction) = code.get(index) else {
            continue;
        };
        let frame = matches!(instruction.mnemonic(), Mnemonic::Push | Mnemonic::Pop)
            || (instruction.mnemonic() == Mnemonic::Mov
                && instruction.op0_register() == Register::RBP);
        let steps = steps + usize::from(!frame);
        let up = up + usize::from(counts(instruction, Mnemonic::Inc));
        let counted_down = counts(instruction, Mnemonic::Dec);
        let (down, last) = (
            down + usize::from(counted_down),
            if counted_down { steps } else { last },
        );
        if up > 1 || down > 1 || steps > 60 {
            continue;
        }
        let target = at(instruction.near_branch_target());
        match instruction.flow_control() {
            FlowControl::Return if (up, down) == (1, 1) => found.push(last),
            FlowControl::Return => {}
            FlowControl::UnconditionalBranch => {
                open.extend(target.map(|next| (next, steps, up, down, last)));
            }
            FlowControl::ConditionalBranch => {
                open.extend(target.map(|next| (next, steps, up, down, last)));
                open.push((index + 1, steps, up, down, last));
            }
            _ => open.push((index + 1, steps, up, down, last)),
        }
    }
    found
}

/// Rows S1.2 and S1.3: a count up, a second look, a count down; no lock, no call.
#[test]
fn s1_3_find_and_put_take_twelve_instructions_without_a_lock() {
    let code = function(COUNTED, "longshore_probe_find_put");
    let listing = text(&code);
    for instruction in &code {
        assert!(!instruction.has_lock_prefix(), "a lock prefix:\n{listing}");
        assert_ne!(
            instruction.mnemonic(),
            Mnemonic::Xchg,
            "an implied lock:\n{listing}"
        );
        let calls = matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall | FlowControl::IndirectBranch
        );
        assert!(!calls, "a call:\n{listing}");
    }
    let fast = paths(&code).into_iter().min();
    let fast = fast.unwrap_or_else(|| panic!("no way that counts up and down:\n{listing}"));
    println!("find and put: {fast} instructions");
    assert!(fast <= 12, "{fast} instructions:\n{listing}");
}

/// Row S1.1: without hot removal nothing counts, and finding is a load from the table.
#[test]
fn s1_1_without_hot_removal_no_reference_code_is_left() {
    for probe in ["longshore_probe_find_put", "longshore_probe_dup_put"] {
        let [with, without] = [COUNTED, UNCOUNTED].map(|image| function(image, probe));
        let counting = |code: &[Instruction]| {
            let kinds = [Mnemonic::Inc, Mnemonic::Dec];
            let count = |one: &&Instruction| kinds.iter().any(|&kind| counts(one, kind));
            code.iter().filter(count).count()
        };
        let listing = text(&without);
        println!("{probe}: {} instructions of {}", without.len(), with.len());
        assert!(counting(&with) >= 2, "{}", text(&with));
        assert_eq!(counting(&without), 0, "{listing}");
        assert!(without.len() < with.len(), "{listing}");
        assert!(
            !without.iter().any(Instruction::has_lock_prefix),
            "{listing}"
        );
    }
    // The CPU's number, the tables' address, the entry, what the caller is told, and the frame.
    let find = function(UNCOUNTED, "longshore_probe_find_put");
    assert!(find.len() <= 12, "{}", text(&find));
}
