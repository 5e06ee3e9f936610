//! Engines that vanish without a word while they copy: killed, deaf, or frozen. The kernel finds out
//! by itself, what was in flight is done elsewhere, clients notice nothing, nothing stays behind.

#![forbid(unsafe_code)]

use std::time::Instant;

use longshore_qemu::console::PROMPT;
use longshore_qemu::scenario::{Bench, Ended, Machine, PATIENCE, confined, left_out, number};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

/// `engines` that take 20 ms a copy: there is always work in flight. A CPU stands still for half
/// a second when it asks one that is frozen.
fn slow<'a>(engines: &'a str, how: &str) -> Vec<(&'a str, &'a str)> {
    let mut settings = vec![
        ("IOAT", engines),
        ("CHANNELS", "2"),
        ("FAULT", "slow=20000"),
    ];
    settings.extend((how == "freeze").then_some(("ANSWER", "500")));
    settings
}

/// The ways in which all scenarios are run. With an IOMMU an engine that freezes is left to
/// [`a_frozen_engine_is_missed_by_nobody`]: QEMU tells it of its domain's end in some thirty messages
/// that cover all addresses, and the whole machine stands still until it has waited for the answer to
/// each of them. A real unit asks no engine.
fn ways(test: &str) -> &'static [&'static str] {
    if confined() {
        left_out(
            &format!("{test} (freeze)"),
            "behind an IOMMU QEMU waits for a frozen engine's answers, and the machine with it",
        );
        &["kill", "allones"]
    } else {
        &["kill", "allones", "freeze"]
    }
}

/// What clients are told, so that they bear with a machine that stands still as [`ways`] says.
fn patience(how: &str) -> &'static str {
    if how == "freeze" && confined() {
        "timeout=100000"
    } else {
        "timeout=3000"
    }
}

/// Lets engines vanish, at once.
#[track_caller]
fn yank(machine: &Machine, engines: &[&str], how: &str) {
    let yanks: Vec<_> = engines
        .iter()
        .map(|engine| {
            bench()
                .launcher("yank", &[("DEV", engine), ("HOW", how)])
                .env("RUN_DIR", machine.run_dir().path())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut yank in yanks {
        assert!(yank.wait().unwrap().success(), "{how}");
    }
}

/// The only `hot:` line of `address` in `state`.
#[track_caller]
fn hot<'a>(ended: &'a Ended, address: &str, state: &str) -> &'a str {
    let start = format!("hot: {address} {state} ");
    // It may have come while the prompt stood there.
    let lines = ended.console.lines();
    let lines = lines.map(|line| line.strip_prefix(PROMPT).unwrap_or(line));
    let lines: Vec<_> = lines.filter(|line| line.starts_with(&start)).collect();
    assert_eq!(lines.len(), 1, "{address} {state}\n{}", ended.all());
    lines[0]
}

/// Stops the tests in the background, of which there are `jobs`, and the machine. Nothing may have
/// failed, be lost or be left.
#[track_caller]
fn end(mut machine: Machine, jobs: usize) -> Ended {
    for job in 1..=jobs {
        machine.ok(&format!("stop {job}"));
    }
    // Rings are worked off in order: behind these, those that were stopped have ended.
    machine.ok("dmatest iterations=3");
    machine.ok("dmatest channel=cpu iterations=200");
    let audit = machine.ok("audit");
    let line = audit.iter().find(|line| line.starts_with("audit: "));
    let line = line.unwrap_or_else(|| panic!("{audit:#?}"));
    for name in ["rings", "iova", "leaked"] {
        assert_eq!(number(line, name), 0, "{line}");
    }
    machine.type_text("poweroff\r");
    let ended = machine.finish(PATIENCE);
    let all = ended.all();
    for bad in ["WARN", "PANIC", "error:", "result #"] {
        assert!(!all.contains(bad), "{bad} in\n{all}");
    }
    let summaries = ended
        .console
        .lines()
        .filter(|line| line.contains(": summary "));
    for line in summaries {
        assert!(line.contains(", 0 failures "), "{line}\n{all}");
    }
    ended
}

/// Awaits that the kernel has removed the engine at `address`, and prints how long it took.
#[track_caller]
fn await_gone(machine: &mut Machine, address: &str, since: Instant, what: &str) {
    machine.await_text(&format!("hot: {address} gone "), PATIENCE);
    let known = since.elapsed().as_millis();
    machine.await_text(&format!("hot: {address} detached "), PATIENCE);
    println!(
        "{what}: known after {known} ms, all done elsewhere after {} ms",
        since.elapsed().as_millis()
    );
}

/// The case in which Linux never finds out: the engine is gone, its slot says nothing. Gives how much
/// was done elsewhere.
fn vanishes(how: &str, cpus: &str) -> u64 {
    let mut settings = slow("3", how);
    settings.push(("CPUS", cpus));
    let mut machine = bench().start(&settings);
    machine.await_prompt();
    let timeout = patience(how);
    machine.ok(&format!(
        "dmatest channel=dma0chan0 iterations=0 {timeout} &"
    ));
    machine.ok(&format!(
        "dmatest iterations=0 threads_per_chan=2 test_buf_size=65536 {timeout} &"
    ));
    machine.ok("dmatest channel=cpu iterations=50");
    let since = Instant::now();
    yank(&machine, &["ioat0"], how);
    await_gone(
        &mut machine,
        "01:00.0",
        since,
        &format!("{how}, {cpus} CPUs"),
    );
    // They go on elsewhere.
    machine.ok("dmatest channel=dma1chan0 iterations=20");
    let dma = machine.ok("dma");
    assert!(dma.iter().any(|line| line == "dma: devices=2"), "{dma:#?}");
    let ended = end(machine, 2);
    let line = hot(&ended, "01:00.0", "detached");
    assert_eq!(number(line, "lost"), 0, "{line}");
    let (done, cpu) = (number(line, "failed_over"), number(line, "cpu"));
    assert!(done > 0 || confined(), "{line}");
    assert_eq!(done + cpu, number(line, "inflight"), "{line}");
    if how == "allones" {
        // One read tells. Doorbells and re-arming that were on their way when it vanished reveal
        // nothing: one of each from each of the threads that used it.
        let stats = ended.stats(0);
        let touched = stats.get("mmio_after_gone");
        println!("{how}, {cpus} CPUs: mmio_after_gone={touched}");
        assert!(touched <= 1 + 2 * 5, "{touched} accesses");
        // One look at whether it is there. Whenever the port's link status is read, stock QEMU reads
        // two words of what stands behind it (pcie_sync_bridge_lnk).
        let looks = stats.get("config_after_gone");
        println!("config_after_gone={looks}");
        let by_qemu = if confined() { 4 } else { 0 };
        assert!(looks % 2 == 1 && looks <= 1 + by_qemu, "{looks} looks");
    }
    done
}

/// [`vanishes`] with so many CPUs each. Behind an IOMMU an engine may be between two copies, which are
/// mapped first and so take longer to come: then it is enough that one of the machines had some.
#[track_caller]
fn vanishes_with(how: &str, cpus: &[&str]) {
    let done: u64 = cpus.iter().map(|cpus| vanishes(how, cpus)).sum();
    let alone = confined() && cpus.len() == 1;
    assert!(done > 0 || alone, "{how}: nothing was ever done elsewhere");
}

#[test]
fn a_killed_engine_is_missed_by_nobody() {
    vanishes_with("kill", &["1", "4", "16"]);
}

#[test]
fn an_engine_of_all_ones_is_missed_by_nobody() {
    vanishes_with("allones", &["1", "4", "16"]);
}

#[test]
fn a_frozen_engine_is_missed_by_nobody() {
    let all: &[&str] = if confined() {
        &["4"]
    } else {
        &["1", "4", "16"]
    };
    vanishes_with("freeze", all);
}

#[test]
fn two_engines_vanish_at_once() {
    for how in ways("two_engines_vanish_at_once") {
        let mut machine = bench().start(&slow("3", how));
        machine.await_prompt();
        machine.ok("dmatest channel=dma0chan0 iterations=0 &");
        machine.ok("dmatest iterations=0 threads_per_chan=2 &");
        machine.ok("dmatest channel=cpu iterations=50");
        yank(&machine, &["ioat0", "ioat1"], how);
        for address in ["01:00.0", "02:00.0"] {
            let wanted = format!("dma{}", if address.starts_with("01") { 0 } else { 1 });
            // Their lines come in any order.
            let gone = |machine: &mut Machine| {
                let dma = machine.command("dma", PATIENCE);
                !dma.iter()
                    .any(|line| line.starts_with(&format!("{wanted} ")))
            };
            let begun = Instant::now();
            while !gone(&mut machine) {
                assert!(begun.elapsed() < PATIENCE, "{wanted} stays");
            }
        }
        machine.ok("dmatest channel=dma2chan0 iterations=20");
        let ended = end(machine, 2);
        for address in ["01:00.0", "02:00.0"] {
            let line = hot(&ended, address, "detached");
            assert_eq!(number(line, "lost"), 0, "{line}");
            assert!(number(line, "inflight") > 0 || confined(), "{line}");
        }
    }
}

#[test]
fn the_cpu_goes_on_when_the_last_engine_vanishes() {
    for how in ways("the_cpu_goes_on_when_the_last_engine_vanishes") {
        let mut machine = bench().start(&slow("1", how));
        machine.await_prompt();
        machine.ok("dmatest channel=dma0chan0 iterations=0 &");
        machine.ok("dmatest channel=cpu iterations=50");
        yank(&machine, &["ioat0"], how);
        await_gone(&mut machine, "01:00.0", Instant::now(), how);
        machine.ok("dmatest channel=cpu iterations=50");
        let ended = end(machine, 1);
        let line = hot(&ended, "01:00.0", "detached");
        assert_eq!(number(line, "lost"), 0, "{line}");
        assert_eq!(number(line, "cpu"), number(line, "inflight"), "{line}");
        assert!(number(line, "cpu") > 0 || confined(), "{line}");
    }
}

/// Nobody looks at an engine that nobody uses. Who uses it next is served by another.
#[test]
fn an_idle_engine_that_vanished_fails_nobody() {
    for how in ["kill", "allones"] {
        let mut machine = bench().start(&[]);
        machine.await_prompt();
        yank(&machine, &["ioat0"], how);
        machine.ok("dmatest channel=dma0chan0 iterations=20");
        let ended = end(machine, 0);
        hot(&ended, "01:00.0", "gone");
        assert_eq!(number(hot(&ended, "01:00.0", "detached"), "lost"), 0);
    }
}

/// Frozen by order, in the middle of one certain copy.
#[test]
fn an_engine_freezes_in_the_middle_of_a_copy_and_nothing_is_lost() {
    let test = "an_engine_freezes_in_the_middle_of_a_copy_and_nothing_is_lost";
    if !ways(test).contains(&"freeze") {
        return;
    }
    let command = "dmatest channel=dma0chan0 iterations=100 threads_per_chan=4 \
                   test_buf_size=1048576";
    let ended = bench().run(
        &format!("{command}; dma; audit"),
        &[("FAULT", "ioat0:freeze@50")],
    );
    ended.expect_success();
    let line = hot(&ended, "01:00.0", "detached");
    assert_eq!(number(line, "lost"), 0, "{line}");
    assert!(number(line, "failed_over") > 0, "{line}");
    let summaries = ended.output_of(command);
    let good = summaries
        .iter()
        .filter(|line| line.contains(" summary 100 tests, 0 failures "));
    assert_eq!(good.count(), 4, "{}", ended.all());
    assert!(ended.output_of("dma").contains(&"dma: devices=1"));
    assert_eq!(ended.stats(0).get("faults"), 1);
}
