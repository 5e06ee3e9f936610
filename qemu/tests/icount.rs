//! What finding and putting a channel costs, and rebuilding the tables, counted by QEMU: under
//! `-icount` its clock counts the instructions that the machine executes. The kernel measures
//! itself (kernel/src/ktest/costs.rs).

#![forbid(unsafe_code)]

use longshore_qemu::scenario::{Bench, number};

/// The kernel's line of figures on a machine of that shape.
fn cost(cpus: &str, engines: &str, channels: &str) -> String {
    let variables = [
        ("KERNEL", "build/longshore-test.elf"),
        ("ICOUNT", "1"),
        ("CPUS", cpus),
        ("IOAT", engines),
        ("CHANNELS", channels),
    ];
    let ended = Bench::new(env!("CARGO_BIN_EXE_longshore-qemu")).run("test costs", &variables);
    ended.expect_success();
    let lines = ended.lines_starting("  # cost: ");
    let [line] = lines[..] else {
        panic!("no figures\n{}", ended.all())
    };
    println!("{line}");
    line.to_string()
}

/// Rows S1.2, S1.3 and S1.13.
#[test]
fn s1_3_a_pair_costs_the_same_on_every_machine_and_a_rebuild_stays_in_bounds() {
    let one = cost("1", "1", "4");
    let four = cost("4", "1", "4");
    let sixteen = cost("16", "8", "8");
    let pairs = [&one, &four, &sixteen].map(|line| number(line, "find_put"));
    assert_eq!(pairs, [pairs[0]; 3], "instructions per pair");
    assert!((8..=20).contains(&pairs[0]), "{pairs:?}");
    assert_eq!(number(&sixteen, "cpus"), 16);
    assert_eq!(number(&sixteen, "channels"), 64);
    let rebuild = number(&sixteen, "rebuild");
    assert!(rebuild <= 200_000, "{rebuild} instructions to rebuild");
    assert!(rebuild > number(&one, "rebuild"), "nothing was rebuilt");
}
