//! The copy: dmatest through driver and engine on machines of many shapes, what the engines count
//! of it, and engines that fail on the way.

#![forbid(unsafe_code)]

use longshore_qemu::scenario::{Bench, Ended, PATIENCE, field};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

/// A summary line of dmatest:
/// `dmatest: dma0chan0-copy0: summary 1000 tests, 0 failures 8003.32 iops 500 KB/s (0)`.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    channel: String,
    tests: u64,
    failures: u64,
    result: i64,
}

impl Summary {
    fn parse(line: &str) -> Option<Self> {
        let (thread, rest) = line.strip_prefix("dmatest: ")?.split_once(": summary ")?;
        let (tests, rest) = rest.split_once(" tests, ")?;
        let (failures, rest) = rest.split_once(" failures ")?;
        let (iops, rest) = rest.split_once(" iops ")?;
        let (kb, result) = rest.split_once(" KB/s (")?;
        iops.parse::<f64>().ok()?;
        kb.parse::<u64>().ok()?;
        Some(Self {
            channel: thread.rsplit_once("-copy")?.0.into(),
            tests: tests.parse().ok()?,
            failures: failures.parse().ok()?,
            result: result.strip_suffix(')')?.parse().ok()?,
        })
    }
}

fn summaries(ended: &Ended, command: &str) -> Vec<Summary> {
    ended
        .output_of(command)
        .iter()
        .filter_map(|line| Summary::parse(line))
        .collect()
}

/// One channel did so many tests and none failed.
#[track_caller]
fn all_passed(ended: &Ended, command: &str, channel: &str, tests: u64) {
    let expected = Summary {
        channel: channel.into(),
        tests,
        failures: 0,
        result: 0,
    };
    assert_eq!(summaries(ended, command), [expected], "{}", ended.all());
}

/// The sum of a number over all lines of `dma` that begin with `start`.
fn sum(ended: &Ended, start: &str, name: &str) -> u64 {
    let lines = ended
        .output_of("dma")
        .into_iter()
        .filter(|line| line.starts_with(start));
    lines
        .filter_map(|line| field(line, name)?.parse::<u64>().ok())
        .sum()
}

/// The audit's ledgers show nothing left behind.
#[track_caller]
fn nothing_leaked(ended: &Ended) {
    let lines = ended.output_of("audit");
    let line = lines.iter().find(|line| line.starts_with("audit: "));
    let line = line.unwrap_or_else(|| panic!("no audit in {lines:#?}"));
    for name in ["rings", "timers", "iova", "leaked"] {
        assert_eq!(
            field(line, name),
            Some("0"),
            "{name} in {line:?}\n{}",
            ended.all()
        );
    }
}

const DMATEST: &str = "dmatest channel=dma0chan0 iterations=1000 test_buf_size=16384";

/// Runs the test of issue and README; gives the run.
#[track_caller]
fn thousand(variables: &[(&str, &str)]) -> Ended {
    let ended = bench().run(&format!("{DMATEST}; dma; audit"), variables);
    ended.expect_success();
    all_passed(&ended, DMATEST, "dma0chan0", 1000);
    nothing_leaked(&ended);
    // What the engine counted is what the channel says it did, and nothing else was done.
    let stats = ended.stats(0);
    assert_eq!(sum(&ended, "dma0chan0 ", "copies"), 1000);
    assert_eq!(
        stats.get("bytes"),
        sum(&ended, "dma0chan", "bytes"),
        "{variables:?}"
    );
    assert!(
        stats.get("descriptors") >= 1000 && stats.get("completions") >= 1000,
        "{stats:?}"
    );
    assert_eq!(
        (stats.get("faults"), stats.get("mmio_after_gone")),
        (0, 0),
        "{stats:?}"
    );
    ended
}

/// Every kind of interrupt with every number of CPUs; the versions take turns.
#[test]
fn a_thousand_copies_with_1_cpu() {
    thousand(&[("CPUS", "1"), ("IRQ", "msi"), ("CBVER", "3.2")]);
    thousand(&[("CPUS", "1"), ("IRQ", "msix"), ("CBVER", "3.3")]);
    thousand(&[("CPUS", "1"), ("IRQ", "intx"), ("CBVER", "3.4")]);
}

#[test]
fn a_thousand_copies_with_4_cpus() {
    thousand(&[("CPUS", "4"), ("IRQ", "msi"), ("CBVER", "3.3")]);
    thousand(&[("CPUS", "4"), ("IRQ", "msix"), ("CBVER", "3.4")]);
    thousand(&[("CPUS", "4"), ("IRQ", "intx"), ("CBVER", "3.2")]);
}

#[test]
fn a_thousand_copies_with_16_cpus() {
    thousand(&[("CPUS", "16"), ("IRQ", "msi"), ("CBVER", "3.4")]);
    thousand(&[("CPUS", "16"), ("IRQ", "msix"), ("CBVER", "3.2")]);
    thousand(&[("CPUS", "16"), ("IRQ", "intx"), ("CBVER", "3.3")]);
}

#[test]
fn all_channels_of_8_engines_at_once_with_6_gib() {
    let command = "dmatest iterations=100 test_buf_size=16384";
    for irq in ["msi", "msix"] {
        let variables = [("IOAT", "8"), ("MEM", "6G"), ("IRQ", irq)];
        let ended = bench().run(&format!("{command}; dma; audit"), &variables);
        ended.expect_success();
        let mut summaries = summaries(&ended, command);
        summaries.sort_by(|a, b| a.channel.cmp(&b.channel));
        let channels = (0..8).flat_map(|device| (0..4).map(move |n| format!("dma{device}chan{n}")));
        let expected = |channel| Summary {
            channel,
            tests: 100,
            failures: 0,
            result: 0,
        };
        assert_eq!(
            summaries,
            channels.map(expected).collect::<Vec<_>>(),
            "{}",
            ended.all()
        );
        nothing_leaked(&ended);
        let bytes: u64 = (0..8).map(|engine| ended.stats(engine).get("bytes")).sum();
        assert_eq!(bytes, sum(&ended, "dma", "bytes"));
        assert!((0..8).all(|engine| ended.stats(engine).get("descriptors") >= 400));
    }
}

#[test]
fn without_an_engine_the_cpu_copies_and_it_is_said() {
    let ended = bench().run("dmatest iterations=1000; dma; audit", &[("IOAT", "0")]);
    ended.expect_success();
    all_passed(&ended, "dmatest iterations=1000", "cpu", 1000);
    let said = |line: &&str| line.contains("no engine") && line.contains("CPU");
    assert_eq!(
        ended
            .output_of("dmatest iterations=1000")
            .into_iter()
            .filter(said)
            .count(),
        1
    );
    nothing_leaked(&ended);
}

/// Ten times the copies, no more reads of registers and one doorbell each at most.
#[test]
fn copies_cost_no_mmio_reads() {
    for cbver in ["3.2", "3.4"] {
        let counts = |iterations: u64| {
            let command = format!(
                "dmatest channel=dma0chan0 iterations={iterations} test_buf_size=4096 norandom=1"
            );
            let variables = [("CBVER", cbver), ("IOAT", "1")];
            let ended = bench().run(&format!("{command}; dma"), &variables);
            ended.expect_success();
            all_passed(&ended, &command, "dma0chan0", iterations);
            let bytes = sum(&ended, "dma0chan0 ", "bytes");
            assert_eq!(bytes, iterations * 4096, "as asked");
            let stats = ended.stats(0);
            assert_eq!(stats.get("bytes"), bytes);
            (stats.get("mmio_reads"), stats.get("doorbells"))
        };
        let (few, many) = (counts(300), counts(3000));
        assert!(
            many.0 <= few.0 + 20,
            "MMIO reads: {} for 300, {} for 3000",
            few.0,
            many.0
        );
        assert!(
            many.1 - few.1 <= 2700 + 20,
            "doorbells: {} for 300, {} for 3000",
            few.1,
            many.1
        );
    }
}

/// 10,000 random copies, 1 byte to 4 MiB, offsets and lengths to the byte; dmatest compares every
/// byte of each destination and its neighbours.
/// Every access, descriptors and completion words among them, is a message that QEMU carries out, as
/// its IOMMU translates it.
#[test]
fn engines_that_map_nothing_copy_by_messages() {
    let command = "dmatest iterations=20 test_buf_size=16384";
    for iommu in ["off", "on"] {
        let ended = bench().run(
            &format!("{command}; audit"),
            &[("FAULT", "dma=messages"), ("IOMMU", iommu)],
        );
        ended.expect_success();
        let found = summaries(&ended, command);
        let passed = |summary: &&Summary| (summary.tests, summary.failures) == (20, 0);
        assert_eq!(found.iter().filter(passed).count(), 8, "{}", ended.all());
        nothing_leaked(&ended);
        for engine in 0..2 {
            let stats = ended.stats(engine);
            assert_eq!(stats.get("faults"), 0, "{}", ended.all());
            assert!(stats.get("completions") >= 4 * 20, "{}", ended.all());
        }
    }
}

#[test]
fn ten_thousand_random_copies_without_a_difference() {
    let small = "dmatest channel=dma0chan0 iterations=9100 test_buf_size=4096 alignment=0";
    let middle = "dmatest channel=dma0chan1 iterations=800 test_buf_size=131072 alignment=0";
    let large = "dmatest channel=dma1chan0 iterations=100 test_buf_size=4194304 alignment=0";
    let ended = bench().run(
        &format!("{small}; {middle}; {large}; dma; audit"),
        &[("MEM", "6G")],
    );
    ended.expect_success();
    all_passed(&ended, small, "dma0chan0", 9100);
    all_passed(&ended, middle, "dma0chan1", 800);
    all_passed(&ended, large, "dma1chan0", 100);
    nothing_leaked(&ended);
    let bytes = ended.stats(0).get("bytes") + ended.stats(1).get("bytes");
    assert_eq!(bytes, sum(&ended, "dma", "bytes"));
}

#[test]
fn absurd_values_are_refused_with_one_line() {
    let bad = [
        "dmatest channel=dma0chan0 iterations=1 test_buf_size=0",
        "dmatest channel=dma0chan0 iterations=1 test_buf_size=9999999999999",
        "dmatest channel=dma0chan0 iterations=1 threads_per_chan=0",
        "dmatest channel=dma0chan0 iterations=1 threads_per_chan=4000000000",
        "dmatest channel=dma9chan9 iterations=1",
        "dmatest channel=dma0chan0 iterations=-1",
        "dmatest channel=dma0chan0 iterations=99999999999999999999999",
        "dmatest channel=dma0chan0 iterations=1 transfer_size=17000",
        "dmatest channel=dma0chan0 iterations=1 alignment=63",
        "dmatest channel=dma0chan0 iterations=1 timeout=never",
        "dmatest iterations=1 channel",
        "dmatest =",
    ];
    let good = "dmatest channel=dma0chan0 iterations=10";
    let ended = bench().run(&format!("{}; {good}; audit", bad.join("; ")), &[]);
    assert_eq!(ended.status, Some(1), "{}", ended.all());
    assert!(ended.lines_starting("PANIC").is_empty(), "{}", ended.all());
    for command in bad {
        let lines = ended.output_of(command);
        assert!(
            lines.len() == 1 && lines[0].starts_with("error: "),
            "{command}: {lines:#?}"
        );
    }
    all_passed(&ended, good, "dma0chan0", 10);
    nothing_leaked(&ended);
}

/// A first run meets the fault in one of its copies; a second run on the same channel finds it
/// usable. Nothing is left behind.
#[track_caller]
fn fails_once(fault: &str, irq: &str, what: &str) {
    let command = "dmatest channel=dma0chan0 iterations=20";
    let again = "dmatest channel=dma0chan0 iterations=21";
    let variables = [("FAULT", fault), ("IRQ", irq), ("IOAT", "1")];
    let ended = bench().run(&format!("{command}; {again}; audit"), &variables);
    assert_eq!(ended.status, Some(1), "{}", ended.all());
    let lines = ended.output_of(command);
    let results = lines
        .iter()
        .filter(|line| line.contains(": result #5: ") && line.contains(what));
    assert_eq!(results.count(), 1, "{fault}\n{}", ended.all());
    let failed = Summary {
        channel: "dma0chan0".into(),
        tests: 20,
        failures: 1,
        result: 0,
    };
    assert_eq!(summaries(&ended, command), [failed], "{}", ended.all());
    assert!(
        lines.last().is_some_and(|line| line.starts_with("error: ")),
        "{lines:#?}"
    );
    all_passed(&ended, again, "dma0chan0", 21);
    nothing_leaked(&ended);
}

#[test]
fn an_engine_that_reports_an_error() {
    fails_once("error@5", "msi", "error");
    fails_once("error@5:3", "msix", "error");
    fails_once("error@5:0", "intx", "error");
}

#[test]
fn an_engine_that_never_completes() {
    fails_once("hang@5", "msi", "timed out");
    fails_once("hang@5", "intx", "timed out");
}

#[test]
fn an_engine_that_does_not_even_start() {
    let command = "dmatest channel=dma0chan0 iterations=5";
    let ended = bench().run(
        &format!("{command}; audit"),
        &[("FAULT", "hang@0"), ("IOAT", "1")],
    );
    let lines = ended.output_of(command);
    assert!(
        lines.len() == 1 && lines[0].starts_with("error: "),
        "{lines:#?}"
    );
    nothing_leaked(&ended);
}

#[test]
fn a_lost_interrupt_costs_time_and_nothing_else() {
    let command = "dmatest channel=dma0chan0 iterations=20";
    for irq in ["msi", "msix"] {
        let variables = [("FAULT", "drop-irq@3"), ("IRQ", irq), ("IOAT", "1")];
        let ended = bench().run(&format!("{command}; audit"), &variables);
        ended.expect_success();
        all_passed(&ended, command, "dma0chan0", 20);
        nothing_leaked(&ended);
        assert_eq!(ended.stats(0).get("faults"), 1, "the fault has been met");
    }
}

#[test]
fn an_engine_left_running_by_whoever_had_it_before() {
    let command = "dmatest iterations=20";
    for cbver in ["3.2", "3.3", "3.4"] {
        let variables = [("FAULT", "dirty"), ("CBVER", cbver), ("IOAT", "1")];
        let ended = bench().run(&format!("{command}; audit"), &variables);
        ended.expect_success();
        let summaries = summaries(&ended, command);
        assert_eq!(summaries.len(), 4, "{}", ended.all());
        assert!(
            summaries
                .iter()
                .all(|summary| summary.failures == 0 && summary.tests == 20)
        );
        nothing_leaked(&ended);
    }
}

#[test]
fn an_engine_that_vanishes_ends_neither_the_test_nor_the_machine() {
    let command = "dmatest channel=dma0chan0 iterations=20";
    let ended = bench().run(
        &format!("{command}; {command} polled=1; version"),
        &[("FAULT", "ioat0:allones@5")],
    );
    assert_eq!(ended.status, Some(1), "{}", ended.all());
    assert!(ended.lines_starting("PANIC").is_empty(), "{}", ended.all());
    assert_eq!(summaries(&ended, command)[0].failures, 0, "{}", ended.all());
    let polled = format!("{command} polled=1");
    let lines = ended.output_of(&polled);
    assert!(
        lines.iter().any(|line| line.contains("no such channel")),
        "{lines:#?}"
    );
    assert_eq!(ended.output_of("version").last(), Some(&"ok"));
    // After it has been found out it is left alone: a handful of accesses, not a stream of them.
    assert!(
        ended.stats(0).get("mmio_after_gone") < 20,
        "{:?}",
        ended.stats(0)
    );
}

#[test]
fn ctrl_c_stops_a_test_that_would_run_for_ever() {
    let mut machine = bench().start(&[("IOAT", "1")]);
    machine.await_prompt();
    machine.type_text("dmatest channel=dma0chan0 iterations=0\r");
    machine.await_text("Started 1 threads", PATIENCE);
    std::thread::sleep(std::time::Duration::from_millis(300));
    machine.type_text("\x03");
    machine.await_prompt();
    let lines = machine.command("audit", PATIENCE);
    assert!(
        lines
            .iter()
            .any(|line| line.contains("iova=0") && line.contains("leaked=0")),
        "{lines:?}"
    );
    machine.type_text("poweroff\r");
    assert_eq!(machine.finish(PATIENCE).status, Some(0));
}
