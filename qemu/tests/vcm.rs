//! Contiguous addresses: their owners at the console, and engines that copy what is scattered.

#![forbid(unsafe_code)]

use longshore_qemu::scenario::{Bench, Machine, PATIENCE, field, number};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

/// The one line that a command of `vcm` printed.
#[track_caller]
fn line(machine: &mut Machine, command: &str) -> String {
    let lines = machine.ok(command);
    let mut told = lines.into_iter().filter(|line| line.starts_with("vcm: "));
    told.next()
        .unwrap_or_else(|| panic!("{command} printed nothing"))
}

/// How a command failed.
#[track_caller]
fn refused(machine: &mut Machine, command: &str) -> String {
    let lines = machine.command(command, PATIENCE);
    let error = lines.iter().find_map(|line| line.strip_prefix("error: "));
    error
        .unwrap_or_else(|| panic!("{command}: {lines:#?}"))
        .into()
}

#[test]
fn s2_10_owners_come_and_unreserve_at_the_console() {
    let mut machine = bench().start(&[("IOAT", "0"), ("CPUS", "2")]);
    machine.await_prompt();
    let help = machine.ok("help vcm").concat();
    assert!(
        help.contains("unreserve") && !help.contains("release"),
        "{help}"
    );
    // S2.1, S2.4, S2.7: one owner, two, one.
    let mut refs = Vec::new();
    for command in ["vcm new 64K", "vcm ref 1", "vcm unreserve 1"] {
        refs.push(number(&line(&mut machine, command), "refs"));
    }
    assert_eq!(refs, [1, 2, 1]);
    let bound = line(&mut machine, "vcm bind 1 4K");
    assert_eq!(
        (number(&bound, "bound"), number(&bound, "pieces")),
        (65536, 16)
    );
    assert!(refused(&mut machine, "vcm bind 1").contains("bound already"));
    let all = machine.ok("vcm").join("\n");
    assert!(all.contains("size=65536 bound=65536 refs=1"), "{all}");
    // S2.3: the last owner leaves it bound.
    let lines = machine.ok("vcm unreserve 1");
    assert!(
        lines.iter().any(|line| line.contains("WARN bound")),
        "{lines:#?}"
    );
    assert_eq!(lines.iter().find_map(|line| field(line, "refs")), Some("0"));
    let all = machine.ok("vcm").join("\n");
    assert!(
        all.contains("reservations=0 taken=0 bound=0 maps=1 unmaps=1"),
        "{all}"
    );
    // S2.2: nobody brings it back.
    for command in ["vcm ref 1", "vcm unreserve 1", "vcm bind 1", "vcm unbind 1"] {
        let error = refused(&mut machine, command);
        assert_eq!(error, "not reserved any more (-22)", "{command}");
    }
    for absurd in [
        "vcm new 0",
        "vcm new 2048G",
        "vcm new x",
        "vcm new 99999999999G",
        "vcm ref 7",
    ] {
        refused(&mut machine, absurd);
    }
    assert_eq!(number(&line(&mut machine, "vcm new 1"), "size"), 4096);
    machine.type_text("poweroff\r");
    machine.finish(PATIENCE);
}

const SMALL: &str = "vcm copy 64M 4K";
const LARGE: &str = "vcm copy 64M 2M";

/// Without a unit, a piece is a descriptor, and a ring takes only so many.
#[test]
fn scattered_frames_are_as_many_pieces_without_a_unit() {
    for (command, pieces, operations) in [(SMALL, 16384, 32), (LARGE, 32, 1)] {
        let ended = bench().run(command, &[("IOAT", "1"), ("MEM", "1G")]);
        ended.expect_success();
        let line = ended.lines_starting("vcm: copy ").concat();
        println!("{line}");
        assert_eq!(
            (number(&line, "pieces"), number(&line, "maps")),
            (pieces, 0)
        );
        assert_eq!(number(&line, "operations"), operations);
        let descriptors = ended.stats(0).get("descriptors");
        assert!((pieces..pieces + 8).contains(&descriptors), "{descriptors}");
    }
}

/// Behind a unit they are one range, and take as many descriptors as its length alone does.
#[test]
fn scattered_frames_are_one_range_behind_a_unit() {
    for (command, small, medium) in [(SMALL, 32768, 0), (LARGE, 0, 64)] {
        let ended = bench().run(
            &format!("{command}; audit"),
            &[("IOAT", "1"), ("MEM", "1G"), ("IOMMU", "on")],
        );
        ended.expect_success();
        let line = ended.lines_starting("vcm: copy ").concat();
        println!("{line}");
        assert_eq!((number(&line, "operations"), number(&line, "maps")), (1, 2));
        let pages = (number(&line, "4k"), number(&line, "2m"));
        assert_eq!(pages, (small, medium));
        let stats = ended.stats(0);
        let descriptors = stats.get("descriptors");
        println!("descriptors={descriptors}");
        assert!((32..40).contains(&descriptors), "{descriptors}");
        assert_eq!(stats.get("faults"), 0);
        let audit = ended.lines_starting("audit: ").concat();
        assert_eq!((number(&audit, "iova"), number(&audit, "leaked")), (0, 0));
    }
}
