//! `report`: complete on a machine where all is well, and at its end on one where nothing is.

#![forbid(unsafe_code)]

use longshore_qemu::scenario::{Bench, Ended, field, number};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

/// The lines between the markers, and how many sections failed.
#[track_caller]
fn report(ended: &Ended) -> (Vec<&str>, u64) {
    let mut lines = ended.output_of("report");
    assert_eq!(lines.pop(), Some("ok"), "{}", ended.all());
    let begin = format!(
        "=== longshore report begin {} ===",
        env!("CARGO_PKG_VERSION")
    );
    let is_begin = |line: &&str| *line == begin;
    let is_end = |line: &&str| line.starts_with("=== longshore report end ");
    let first = lines.iter().position(is_begin);
    let last = lines.iter().position(is_end);
    let (Some(first), Some(last)) = (first, last) else {
        panic!("no markers\n{}", ended.all())
    };
    let end = lines[last];
    let sections = lines.iter().filter(|line| line.starts_with("--- "));
    let sections = sections.filter(|line| !line.contains(" failed: "));
    assert_eq!(sections.count() as u64, number(end, "sections"), "{end}");
    (lines[first + 1..last].to_vec(), number(end, "failed"))
}

/// The lines of one section, the first of this name.
#[track_caller]
fn section<'a>(lines: &[&'a str], name: &str) -> Vec<&'a str> {
    let title = format!("--- {name}");
    let mut lines = lines.iter().skip_while(|line| **line != title);
    assert!(lines.next().is_some(), "no {title:?}");
    lines
        .take_while(|line| !line.starts_with("--- "))
        .copied()
        .collect()
}

fn clean(lines: &[&str]) -> bool {
    let mut audits = lines.iter().filter(|line| line.starts_with("audit: "));
    audits.all(|line| field(line, "leaked") == Some("0"))
}

#[test]
fn a_report_says_all_and_leaves_the_engines_working() {
    let dmatest = "dmatest iterations=5";
    let ended = bench().run(&format!("report; {dmatest}; audit"), &[("NUMA", "2")]);
    ended.expect_success();
    let (lines, failed) = report(&ended);
    assert_eq!(failed, 0, "{lines:#?}");
    for (name, words) in [
        (
            "version",
            &["longshore ", "clock: TSC", "command line: run="][..],
        ),
        (
            "cpus -v",
            &["cpu: QEMU", "cpu: cpuid 0x7 ", "cr4=0x", "node=1"],
        ),
        ("mem -v", &["map: 0x0-", " usable", "node=1", "mem: total="]),
        (
            "acpi -x",
            &[
                "acpi: APIC at ",
                "acpi: FACP ",
                "oem=BOCHS",
                "        000: 41 50 49 43",
            ],
        ),
        ("lspci -v", &["01:00.0 ", "BAR 0: 16 KiB", "capabilities "]),
        ("slots", &["slots: 3"]),
        ("iommu", &["iommu"]),
        ("regs", &["regs: 02:00.0 CHANCNT=0x4 ", " CHANERR_INT=0x0 "]),
        (
            "lspci -x 01:00.0",
            &["        000: 86 80 21 20", "        1f0: "],
        ),
        ("lspci -x 00:01.0", &["        000: 36 1b"]),
        ("dmesg", &["longshore::start", "XFERCAP="]),
    ] {
        let text = section(&lines, name).join("\n");
        for word in words {
            assert!(text.contains(word), "{name}: no {word:?} in\n{text}");
        }
    }
    let channel = section(&lines, "regs");
    let channel = channel.iter().find(|line| line.contains(" channel=3 "));
    for name in [
        "CHANCTRL",
        "DMA_COMP",
        "CHANCMD",
        "DMACOUNT",
        "CHANSTS",
        "CHAINADDR",
        "CHANCMP",
        "CDAR",
        "CHANERR",
        "CHANERRMSK",
        "DCACTRL",
    ] {
        assert!(
            channel.is_some_and(|line| field(line, name).is_some()),
            "{name}"
        );
    }
    // Every channel, and one of each engine that has come back.
    let passed = |line: &&&str| line.contains("summary 20 tests, 0 failures");
    assert_eq!(lines.iter().filter(passed).count(), 8 + 2, "{lines:#?}");
    for (at, via) in [("01:00.0", "dma0chan0"), ("02:00.0", "dma1chan0")] {
        for state in ["draining", "quiet", "detached", "live"] {
            let start = format!("hot: {at} {state} t=");
            assert!(lines.iter().any(|line| line.starts_with(&start)), "{start}");
        }
        let measured = |line: &&&str| {
            line.starts_with("bench: copy size=4096 ") && field(line, "via") == Some(via)
        };
        assert!(lines.iter().any(|line| measured(&line)), "{via}");
    }
    assert!(clean(&lines), "{lines:#?}");
    let again = ended.output_of(dmatest);
    let passed = |line: &&&str| line.contains("summary 5 tests, 0 failures");
    assert_eq!(again.iter().filter(passed).count(), 8, "{}", ended.all());
    assert!(clean(&ended.output_of("audit")), "{}", ended.all());
}

/// One engine hangs while it is tried, the driver of another does not take it, a third one vanishes: all
/// is said, and the rest is there. Parts of version 3.3 have an erratum.
#[test]
fn engines_that_fail_do_not_keep_a_report_from_its_end() {
    let fault = "ioat0:hang@30 ioat1:noreset ioat2:allones@30";
    let machine = [("IOAT", "4"), ("FAULT", fault), ("CBVER", "3.3")];
    let ended = bench().run("report; audit", &machine);
    ended.expect_success();
    let (lines, failed) = report(&ended);
    // The third one's other channels, its benchmark, its return.
    assert_eq!(failed, 1 + 1 + 4, "{lines:#?}");
    let says = |start: &str| lines.iter().any(|line| line.starts_with(start));
    assert!(says(
        "--- dmatest channel=dma0chan1 iterations=20 timeout=2000 failed: 1 of 20 tests"
    ));
    assert!(says("--- engine 02:00.0 failed: no driver has it"));
    assert!(says("--- engine 03:00.0 failed: it has not come back"));
    // Which has another number then.
    assert!(says("hot: 01:00.0 live") && says("hot: 04:00.0 live"));
    let passed = |line: &&&str| line.contains("summary 20 tests, 0 failures");
    assert_eq!(lines.iter().filter(passed).count(), 4 + 2 + 5, "{lines:#?}");
    assert!(says("regs: 01:00.0 errata: RESET wipes MSI-X"));
    let log = section(&lines, "dmesg").join("\n");
    assert!(log.contains("04:00.0: errata: RESET wipes MSI-X"), "{log}");
    assert!(clean(&lines) && clean(&ended.output_of("audit")));
}

#[test]
fn an_engine_that_somebody_uses_is_left_alone() {
    // It has its channel when the other one has ended.
    let busy = "dmatest channel=dma0chan0 iterations=0 &; dmatest channel=dma1chan0 iterations=20";
    let ended = bench().run(&format!("{busy}; report; stop 1; dma"), &[]);
    ended.expect_success();
    let (lines, failed) = report(&ended);
    assert_eq!(failed, 1, "{lines:#?}");
    let says = |start: &str| lines.iter().any(|line| line.starts_with(start));
    assert!(says("--- engine 01:00.0 failed: in use by 1 clients"));
    assert!(!says("hot: 01:00.0 ") && says("hot: 02:00.0 live"));
    assert!(ended.output_of("dma").contains(&"dma: devices=2"));
}

#[test]
fn a_machine_without_engines_has_a_report() {
    let ended = bench().run("report", &[("IOAT", "0"), ("CPUS", "1")]);
    ended.expect_success();
    let (lines, failed) = report(&ended);
    assert_eq!(failed, 0, "{lines:#?}");
    assert!(section(&lines, "dma").contains(&"dma: devices=0"));
}
