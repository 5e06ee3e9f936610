//! Engines that stray, behind an IOMMU. Nothing of it lands: free memory is full of marks, and copies
//! are compared byte for byte. What they ask of the machine is told and counted; who asked is in
//! quarantine, and its work is done elsewhere.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use longshore_qemu::scenario::{Bench, Ended, Machine, PATIENCE, number};

/// Of each kind.
const COUNT: u64 = 10_000;
/// Lines in a second that tell of one device, as often as it may stray.
const LINES: u64 = 5;

/// One engine strays to each, and one more does not stray: it is the last, and what the one before
/// it aims at.
const AIMS: [&str; 7] = [
    "unmapped",
    "edge",
    "raw",
    "completed",
    "removed",
    "interrupt",
    "foreign",
];
const REMOVED: usize = 4;
const INTERRUPT: usize = 5;
/// What is mapped next may lie where these aim: their engine does nothing any more while it strays.
const STANDS_STILL: [&str; 3] = ["unmapped", "edge", "completed"];

/// Who sends an interrupt by a message: QEMU passes on no requester of those.
const NOBODY: &str = "ff:1f.7";

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

fn address(engine: usize) -> String {
    format!("{:02x}:00.0", engine + 1)
}

/// Awaits that an engine says it has strayed as often as it was told to.
#[track_caller]
fn await_strays(machine: &Machine, engine: usize) {
    let log = machine.run_dir().engine_log(engine as u32);
    let begun = Instant::now();
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("strays: ")) {
        assert!(begun.elapsed() < PATIENCE, "{}: strays on", AIMS[engine]);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A machine whose engines stray by one way while they copy, and all that came of it.
#[track_caller]
fn stray(way: &str) -> (Ended, Duration) {
    let by_message = way != "mapped";
    let mut faults = Vec::new();
    for (engine, aim) in AIMS.iter().enumerate() {
        if (way, *aim) == ("read", "interrupt") {
            continue;
        }
        if by_message && STANDS_STILL.contains(aim) {
            faults.push(format!("ioat{engine}:hang@20"));
        }
        faults.push(format!("ioat{engine}:stray@20:{aim}:{way}:{COUNT}"));
    }
    let mut machine = bench().start(&[
        ("IOMMU", "on"),
        ("IOAT", "8"),
        ("CHANNELS", "1"),
        ("FAULT", &faults.join(" ")),
        ("APPEND", "hotplug_window=100"),
    ]);
    machine.await_prompt();
    let begun = Instant::now();
    machine.ok("guard fill");
    // Only an engine that has worked is taken away.
    machine.ok(&format!("dmatest channel=dma{REMOVED}chan0 iterations=25"));
    machine.ok("dmatest iterations=0 test_buf_size=16384 &");
    if by_message {
        machine.ok(&format!("pci remove {}", address(REMOVED)));
    } else {
        // Its slot is empty, and its process there still: who asks by message has nobody to ask then.
        let ioat = format!("ioat{REMOVED}");
        let (status, said) = bench().on(&machine, "hot-remove", &[("DEV", &ioat)]);
        assert_eq!(status, Some(0), "{said}");
    }
    for fault in &faults {
        if let Some((engine, _)) = fault.split_once(":stray") {
            await_strays(&machine, engine["ioat".len()..].parse().unwrap());
        }
    }
    // The one that does not stray works on, and who had another goes on with it or the CPU.
    machine.ok("dmatest channel=dma7chan0 iterations=20");
    machine.ok("stop 1");
    machine.ok("dmatest iterations=3");
    machine.ok("guard check");
    machine.ok("iommu");
    machine.ok("audit");
    machine.type_text("poweroff\r");
    let ended = machine.finish(PATIENCE);
    ended.expect_success();
    (ended, begun.elapsed())
}

/// The only line of the console that starts so.
#[track_caller]
fn line<'a>(ended: &'a Ended, start: &str) -> &'a str {
    let lines = ended.lines_starting(start);
    assert_eq!(lines.len(), 1, "{start:?}\n{}", ended.all());
    lines[0]
}

/// No stray landed, nobody's data changed, nothing stayed behind.
#[track_caller]
fn nothing_landed(ended: &Ended, way: &str) {
    let guard = *ended.lines_starting("guard: ").last().expect("a guard");
    assert_eq!(number(guard, "damaged"), 0, "{}", ended.all());
    // More than four fifths of the machine's 512 MiB.
    assert!(number(guard, "pages") > 105_000, "{guard}");
    let summaries = ended
        .console
        .lines()
        .filter(|line| line.contains(": summary "));
    for summary in summaries {
        assert!(summary.contains(", 0 failures "), "{}", ended.all());
    }
    let audit = line(ended, "audit: ");
    for name in ["rings", "iova", "leaked"] {
        assert_eq!(number(audit, name), 0, "{audit}");
    }
    for (engine, aim) in AIMS.iter().enumerate() {
        if (way, *aim) == ("read", "interrupt") {
            continue;
        }
        let stats = ended.stats(engine as u32);
        let count = |what: &str| stats.get(&format!("stray_{aim}_{way}_{what}"));
        let found = ["attempted", "refused", "landed", "unanswered", "remapped"].map(count);
        assert_eq!(found, [COUNT, COUNT, 0, 0, 0], "{aim} by {way}");
    }
}

/// Outside of what is mapped there is nothing to hit, and nothing that could tell of it.
#[test]
fn strays_through_mapped_files_hit_nothing() {
    let (ended, _) = stray("mapped");
    nothing_landed(&ended, "mapped");
    assert_eq!(number(line(&ended, "iommu: "), "faults"), 0);
}

/// By messages, which QEMU's IOMMU sees.
#[track_caller]
fn strays_by_messages(way: &str) {
    let (ended, time) = stray(way);
    nothing_landed(&ended, way);
    for (engine, aim) in AIMS.iter().enumerate() {
        let address = address(engine);
        let who = if engine == INTERRUPT {
            NOBODY
        } else {
            &address
        };
        let told = format!("iommu: {who} ");
        let lines = ended.console.lines();
        let told = lines.filter(|line| line.contains(&told)).count() as u64;
        if engine == REMOVED || (way, engine) == ("read", INTERRUPT) {
            // What has no bus mastering does not come as far as to the unit.
            assert_eq!(told, 0, "{aim}\n{}", ended.all());
            continue;
        }
        let count = number(line(&ended, &format!("fault: {who} ")), "count");
        println!("{aim} by {way}: {count} faults, {told} told");
        let most = LINES * (time.as_secs() + 1);
        assert!((1..=most.min(count)).contains(&told), "{}", ended.all());
        if engine == INTERRUPT {
            // They reach nobody, and memory is another matter: it goes on.
            assert!(count > told, "{}", ended.all());
            assert!(ended.lines_starting(&format!("hot: {address} ")).is_empty());
            continue;
        }
        line(&ended, &format!("WARN {address}: in quarantine"));
        let left = line(&ended, &format!("hot: {address} detached "));
        assert_eq!(number(left, "lost"), 0, "{left}");
        // What an engine that stands still had can only be done elsewhere.
        let elsewhere = number(left, "failed_over") + number(left, "cpu");
        assert!(elsewhere > 0 || !STANDS_STILL.contains(aim), "{left}");
    }
    let all = line(&ended, "iommu: units=");
    assert!(number(all, "faults") >= 5, "{all}");
}

#[test]
fn strays_that_read_by_messages_are_faults_and_quarantine() {
    strays_by_messages("read");
}

#[test]
fn strays_that_write_by_messages_are_faults_and_quarantine() {
    strays_by_messages("write");
}

/// What nothing confines lands, in marked memory too, and is seen there.
#[test]
fn the_marks_show_a_stray_that_lands() {
    let mut machine = bench().start(&[("IOMMU", "off"), ("FAULT", "ioat0:stray@1:raw:write:2")]);
    machine.await_prompt();
    machine.ok("guard fill");
    machine.ok("dmatest channel=dma0chan0 iterations=1");
    let log = machine.run_dir().engine_log(0);
    let begun = Instant::now();
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("2 landed")) {
        assert!(begun.elapsed() < PATIENCE, "no stray has landed");
        std::thread::sleep(Duration::from_millis(10));
    }
    let check = machine.command("guard check", PATIENCE);
    let damaged = check.iter().find(|line| line.starts_with("guard: pages="));
    let damaged = damaged.unwrap_or_else(|| panic!("{check:#?}"));
    assert!(number(damaged, "damaged") >= 1, "{check:#?}");
    assert!(check.last().unwrap().starts_with("error: "), "{check:#?}");
}
