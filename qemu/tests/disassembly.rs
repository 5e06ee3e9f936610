//! What finding and putting a channel really costs: the instructions in the image.
//!
//! The image with the in-kernel suites has a function that does both and nothing else
//! (`longshore_probe_find_put`, kernel/src/ktest/channels.rs).

#![forbid(unsafe_code)]

use std::path::Path;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter, Instruction, Mnemonic, NasmFormatter, Register,
};
use object::{Object, ObjectSection, ObjectSymbol};

/// The instructions of a function, from its symbol to its end.
fn function(name: &str) -> Vec<Instruction> {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/longshore-test.elf");
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

/// Adds to or takes from a counter of the running CPU's.
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
    let code = function("longshore_probe_find_put");
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
