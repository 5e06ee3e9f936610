//! Engines taken away by software while they copy, and given back: nothing is lost, nothing is
//! left behind, and what the channel still had to do is done.

#![forbid(unsafe_code)]

use longshore_qemu::scenario::{Bench, Ended, Machine, PATIENCE, confined, field, number};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

/// The `hot:` line of `address` in `state`, in the output of `command`.
#[track_caller]
fn hot(ended: &Ended, command: &str, address: &str, state: &str) -> String {
    let start = format!("hot: {address} {state} ");
    let lines = ended.output_of(command);
    let found = lines.iter().find(|line| line.starts_with(&start));
    found
        .unwrap_or_else(|| panic!("no {start:?} in {lines:#?}\n{}", ended.all()))
        .to_string()
}

#[track_caller]
fn audited(ended: &Ended) {
    let lines = ended.output_of("audit");
    let line = lines.iter().find(|line| line.starts_with("audit: "));
    let line = line.unwrap_or_else(|| panic!("no audit\n{}", ended.all()));
    for name in ["rings", "iova", "leaked"] {
        assert_eq!(field(line, name), Some("0"), "{line:?}\n{}", ended.all());
    }
}

/// A machine on whose first channel four clients copy, for ever.
#[track_caller]
fn in_use(settings: &[(&str, &str)]) -> Machine {
    let mut machine = bench().start(settings);
    machine.await_prompt();
    machine.ok("dmatest channel=dma0chan0 iterations=0 threads_per_chan=4 &");
    machine.ok("dmatest channel=dma1chan0 iterations=50");
    machine
}

/// What the first engine's `hot:` line says, of those that tell its `state`.
#[track_caller]
fn first_engine<'a>(lines: &'a [String], state: &str) -> &'a str {
    let start = format!("hot: 01:00.0 {state} ");
    let found = lines.iter().find(|line| line.starts_with(&start));
    found.unwrap_or_else(|| panic!("no {start:?} in {lines:#?}"))
}

/// The first engine works, and its clients end.
#[track_caller]
fn works_and_ends(mut machine: Machine) {
    machine.ok("dmatest channel=dma0chan0 iterations=50");
    machine.ok("stop 1");
    machine.await_rest();
    machine.type_text("poweroff\r");
    machine.finish(PATIENCE).expect_success();
}

/// The case in which Linux panics: the engine goes while a client copies on its channel.
#[test]
fn an_engine_in_use_leaves_and_comes_back() {
    for (irq, cpus) in [("msi", "1"), ("msix", "4"), ("intx", "4"), ("msi", "16")] {
        let mut machine = in_use(&[("IRQ", irq), ("CPUS", cpus)]);
        let gone = machine.ok("unbind 01:00.0");
        let lost = number(first_engine(&gone, "detached"), "lost");
        assert_eq!(lost, 0, "{irq} {cpus}");
        machine.ok("dmatest channel=dma1chan1 iterations=50");
        let back = machine.ok("bind 01:00.0 ioat");
        first_engine(&back, "live");
        works_and_ends(machine);
    }
}

/// A port goes after what is behind it, and comes back with it.
#[test]
fn a_port_takes_no_engine_in_use_with_it() {
    let mut machine = in_use(&[]);
    let gone = machine.ok("pci remove 00:01.0");
    assert_eq!(number(first_engine(&gone, "detached"), "lost"), 0);
    let back = machine.ok("pci rescan");
    assert!(back.iter().any(|line| line == "pci: found=2"), "{back:#?}");
    first_engine(&back, "live");
    works_and_ends(machine);
}

/// All channels of four engines are tested by four threads each, while the engines go and come, one
/// after the other. The clients retry nothing. Engines are slow, so that rings are never empty.
#[test]
fn four_engines_go_and_come_under_dmatest_without_a_failure() {
    for (cpus, irq) in [("4", "msi"), ("1", "msix")] {
        // QEMU tells an engine of each page that is mapped, and stands still meanwhile: with so many
        // of them a busy host takes longer than dmatest waits by itself.
        let timeout = if confined() { " timeout=60000" } else { "" };
        let mut machine = bench().start(&[
            ("CPUS", cpus),
            ("IRQ", irq),
            ("IOAT", "4"),
            ("CHANNELS", "2"),
            ("FAULT", "slow=20000"),
        ]);
        machine.await_prompt();
        machine.ok(&format!(
            "dmatest iterations=0 threads_per_chan=4 test_buf_size=32768{timeout} &"
        ));
        for engine in [1, 2, 3, 4, 1] {
            let remove = format!("pci remove 0{engine}:00.0");
            for command in [&*remove, "pci rescan"] {
                machine.ok("dmatest channel=cpu iterations=40");
                machine.ok(command);
            }
        }
        machine.ok("dma");
        machine.ok("stop 1");
        machine.ok("dmatest iterations=3");
        machine.await_rest();
        machine.type_text("poweroff\r");
        let ended = machine.finish(PATIENCE);
        ended.expect_success();
        let all = ended.all();
        let gone: Vec<_> = all
            .lines()
            .filter(|line| line.starts_with("hot: ") && line.contains(" detached "))
            .collect();
        assert_eq!(gone.len(), 5, "{all}");
        let failed_over: u64 = gone.iter().map(|line| number(line, "failed_over")).sum();
        assert!(failed_over > 0, "{gone:#?}");
        for line in gone {
            assert_eq!(number(line, "lost"), 0, "{line}");
        }
        // They may come behind a prompt.
        let summaries: Vec<_> = all
            .lines()
            .filter(|line| line.contains("dmatest: dma") && line.contains(" summary "))
            .collect();
        assert_eq!(summaries.len(), 32 + 8, "{all}");
        for line in summaries {
            assert!(line.contains(", 0 failures "), "{line}");
        }
    }
}

/// Nobody asks for its removal: the kernel finds out. Its clients go on, on the other engine. There
/// is nothing to refuse, so that this holds in a build without hot removal too.
#[test]
fn an_engine_that_vanishes_at_its_work_is_removed_and_nothing_is_lost() {
    for image in ["longshore", "longshore-nohotplug"] {
        vanish(&format!("build/{image}.elf"));
    }
}

fn vanish(kernel: &str) {
    let command = "dmatest channel=dma0chan0 iterations=100 threads_per_chan=4";
    let ended = bench().run(
        &format!("{command}; dma; audit"),
        &[("FAULT", "ioat0:allones@50"), ("KERNEL", kernel)],
    );
    ended.expect_success();
    hot(&ended, command, "01:00.0", "gone");
    let line = hot(&ended, command, "01:00.0", "detached");
    assert_eq!(number(&line, "lost"), 0, "{line}");
    assert!(number(&line, "inflight") > 0, "{line}");
    assert_eq!(
        number(&line, "failed_over") + number(&line, "cpu"),
        number(&line, "inflight")
    );
    let summaries = ended.output_of(command);
    let summaries = summaries
        .iter()
        .filter(|line| line.contains(" summary 100 tests, 0 failures "));
    assert_eq!(summaries.count(), 4, "{}", ended.all());
    assert!(ended.output_of("dma").contains(&"dma: devices=1"));
    audited(&ended);
}

/// As on Xeons: engines are functions of one device in the root complex, without a slot.
#[test]
fn engines_of_the_root_complex_leave_and_come_back() {
    let all = ["msi", "msix", "intx"];
    let irqs = if confined() { &all[..1] } else { &all };
    for &irq in irqs {
        let copies = "dmatest channel=dma0chan0 iterations=0 threads_per_chan=4 &";
        let wait = "dmatest channel=dma2chan1 iterations=50";
        let commands = format!(
            "{copies}; {wait}; pci remove 00:04.0; lspci; {wait}; pci remove 00:04.1; {wait}; \
             pci rescan; {wait}; stop 1; dmatest channel=cpu iterations=2000; slots; \
             dmatest iterations=20; audit"
        );
        let ended = bench().run(&commands, &[("WHERE", "root"), ("IOAT", "3"), ("IRQ", irq)]);
        ended.expect_success();
        let gone = hot(&ended, "pci remove 00:04.0", "00:04.0", "detached");
        assert_eq!(number(&gone, "lost"), 0, "{irq}: {gone}");
        let left = ended.output_of("lspci");
        let at = |at: &str| left.iter().any(|line| line.starts_with(at));
        assert!(
            !at("00:04.0 ") && at("00:04.1 ") && at("00:04.2 "),
            "{left:#?}"
        );
        for at in ["00:04.0", "00:04.1"] {
            hot(&ended, "pci rescan", at, "live");
        }
        // What it copied meanwhile, and afterwards all of them.
        let failed = |line: &&str| line.contains(" summary ") && !line.contains(", 0 failures ");
        assert_eq!(
            ended.console.lines().filter(failed).count(),
            0,
            "{irq}\n{}",
            ended.all()
        );
        let all = ended.output_of("dmatest iterations=20");
        let passed = |line: &&&str| line.contains("summary 20 tests, 0 failures");
        assert_eq!(
            all.iter().filter(passed).count(),
            12,
            "{irq}\n{}",
            ended.all()
        );
        audited(&ended);
    }
}

/// Nothing stands above an engine in the root complex but the IOMMU: without one, what an engine had
/// that vanishes cannot be done elsewhere.
#[test]
fn what_vanishes_from_the_root_complex_is_done_elsewhere_behind_an_iommu_alone() {
    let command = "dmatest channel=dma0chan0 iterations=100 threads_per_chan=4";
    for iommu in ["off", "on"] {
        let machine = [
            ("WHERE", "root"),
            ("FAULT", "ioat0:allones@50"),
            ("IOMMU", iommu),
        ];
        let ended = bench().run(&format!("{command}; audit"), &machine);
        let line = hot(&ended, command, "00:04.0", "detached");
        let [in_flight, elsewhere, lost] =
            ["inflight", "failed_over", "lost"].map(|name| number(&line, name));
        let confined = iommu == "on";
        let expected = if confined {
            (in_flight, 0)
        } else {
            (0, in_flight)
        };
        assert_eq!((elsewhere, lost), expected, "{iommu}: {line}");
        assert!(in_flight > 0, "{line}");
        assert_eq!(
            ended.status,
            Some(u8::from(!confined).into()),
            "{}",
            ended.all()
        );
        audited(&ended);
    }
}

#[test]
fn functions_go_and_are_found_again() {
    let commands = "pci remove 01:00.0; pci remove 02:00.0; dma; dmatest iterations=20; \
                    pci rescan; dmatest iterations=20; audit";
    let ended = bench().run(commands, &[]);
    ended.expect_success();
    assert!(
        ended.output_of("dma").contains(&"dma: devices=0"),
        "{}",
        ended.all()
    );
    assert!(ended.output_of("pci rescan").contains(&"pci: found=2"));
    audited(&ended);
}

/// Row S1.1: a build that counts no references takes only what nobody uses.
#[test]
fn s1_1_without_hot_removal_only_idle_engines_leave() {
    let mut machine = bench().start(&[("KERNEL", "build/longshore-nohotplug.elf")]);
    machine.await_prompt();
    let ends = |machine: &mut Machine, command: &str, wanted: &str| {
        let lines = machine.command(command, PATIENCE);
        assert_eq!(lines.last().unwrap(), wanted, "{command}: {lines:#?}");
    };
    let on = &mut machine;
    let refusal = "error: the device is in use by 1 clients, \
                   and this build, without `hotplug`, takes only idle ones away";
    ends(on, "dmatest channel=dma0chan0 iterations=0 &", "ok");
    ends(on, "dmatest channel=dma1chan0 iterations=50", "ok");
    ends(on, "unbind 01:00.0", refusal);
    ends(on, "pci remove 01:00.0", refusal);
    ends(on, "unbind 02:00.0", "ok");
    ends(on, "bind 02:00.0 ioat", "ok");
    ends(on, "dmatest channel=dma1chan0 iterations=50", "ok");
    ends(on, "stop 1", "ok");
    // It lets go of its channel when its operations have ended.
    let idle = |line: &String| line.starts_with("dma0chan0 clients=0 ");
    assert!(
        (0..1000).any(|_| on.command("dma", PATIENCE).iter().any(idle)),
        "dmatest does not stop"
    );
    ends(on, "pci remove 01:00.0", "ok");
    ends(on, "pci rescan", "ok");
    ends(on, "dmatest channel=dma0chan0 iterations=50", "ok");
    ends(on, "audit", "ok");
}

#[test]
fn what_cannot_be_removed_is_one_line() {
    let commands = "pci remove 77:00.0; pci remove nonsense; pci; unbind 00:00.0; unbind; \
                    bind 01:00.0 ioat; bind 01:00.0 other; bind 00:1f.0 ioat; audit";
    let ended = bench().run(commands, &[]);
    let errors = ended
        .all()
        .lines()
        .filter(|line| line.starts_with("error: "))
        .count();
    assert_eq!(errors, 8, "{}", ended.all());
    audited(&ended);
}
