//! Devices confined by VT-d. What is tested elsewhere with nothing in between (copies, removal, slots,
//! engines that vanish) is run with `IOMMU=on` as well, by the environment variable that
//! `scenario::CONFINED` names.

#![forbid(unsafe_code)]

use longshore_qemu::scenario::{Bench, Ended, field, number};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

const ON: (&str, &str) = ("IOMMU", "on");

/// The line of a command that begins with this.
#[track_caller]
fn line<'a>(ended: &'a Ended, command: &str, start: &str) -> &'a str {
    let lines = ended.output_of(command);
    let found = lines.into_iter().find(|line| line.starts_with(start));
    found.unwrap_or_else(|| panic!("no {start:?} of {command}\n{}", ended.all()))
}

/// All channels copy, each engine in a domain of its own; interrupts come by entries; nothing stays
/// mapped, and nobody strays.
#[test]
fn every_channel_copies_in_a_domain_of_its_own() {
    for (irq, cpus) in [("msi", "4"), ("msix", "4"), ("intx", "1")] {
        let dmatest = "dmatest iterations=30 test_buf_size=65536";
        let commands = format!("{dmatest}; irqs; iommu; audit");
        let ended = bench().run(&commands, &[ON, ("IRQ", irq), ("CPUS", cpus)]);
        ended.expect_success();
        let passed = |line: &&&str| line.contains("summary 30 tests, 0 failures");
        let lines = ended.output_of(dmatest);
        assert_eq!(lines.iter().filter(passed).count(), 8, "{}", ended.all());
        let unit = line(&ended, "iommu", "unit0 ");
        // Its own interrupt is not remapped. Three ports have one each.
        let vectors = number(line(&ended, "irqs", "irqs: "), "vectors");
        let lines = ended.output_of("irqs");
        let by_pin = lines.iter().filter(|line| line.contains(" gsi=")).count() as u64;
        assert_eq!(number(unit, "interrupts"), vectors - 1, "{}", ended.all());
        assert!(irq != "intx" || by_pin > 0, "{}", ended.all());
        let arrived = |line: &&&str| line.contains(" ioat") && field(line, "count") != Some("0");
        assert!(lines.iter().any(|line| arrived(&line)), "{}", ended.all());
        let ranges: Vec<_> = ["domain 1 01:00.0 live", "domain 2 02:00.0 live"]
            .map(|start| field(line(&ended, "iommu", start), "range"))
            .into();
        assert_ne!(ranges[0], ranges[1], "{}", ended.all());
        let all = line(&ended, "iommu", "iommu: ");
        assert_eq!(
            (number(all, "pages"), number(all, "faults")),
            (0, 0),
            "{all}"
        );
        let audit = line(&ended, "audit", "audit: ");
        assert_eq!(
            (number(audit, "iova"), number(audit, "leaked")),
            (0, 0),
            "{audit}"
        );
    }
}

/// An engine that comes back begins anew: nothing is mapped, at other addresses.
#[test]
fn an_engine_that_comes_back_gets_a_fresh_domain() {
    let commands = "dmatest channel=dma0chan0 iterations=10; iommu; unbind 01:00.0; audit; \
                    bind 01:00.0 ioat; dmatest channel=dma0chan0 iterations=11; \
                    pci remove 01:00.0; pci rescan; \
                    dmatest channel=dma0chan0 iterations=12; audit";
    let ended = bench().run(commands, &[ON]);
    ended.expect_success();
    for audit in ended.lines_starting("audit: ") {
        assert_eq!(
            (number(audit, "iova"), number(audit, "leaked")),
            (0, 0),
            "{audit}"
        );
    }
}

/// What an engine that vanishes had is mapped for the other one, in its domain. Both ask QEMU's IOMMU
/// for every byte, and no address of one is the other's: what was not mapped anew would be a fault.
#[test]
fn work_that_fails_over_is_mapped_anew_in_the_other_engines_domain() {
    let dmatest = "dmatest channel=dma0chan0 iterations=60 threads_per_chan=4 test_buf_size=8192";
    let ended = bench().run(
        &format!("{dmatest}; iommu; audit"),
        &[ON, ("FAULT", "ioat0:allones@50 dma=messages")],
    );
    ended.expect_success();
    let passed = |line: &&&str| line.contains("summary 60 tests, 0 failures");
    let lines = ended.output_of(dmatest);
    assert_eq!(lines.iter().filter(passed).count(), 4, "{}", ended.all());
    let hot = ended.lines_starting("hot: 01:00.0 detached ");
    assert_eq!(hot.len(), 1, "{}", ended.all());
    let (failed_over, lost) = (number(hot[0], "failed_over"), number(hot[0], "lost"));
    assert!(failed_over > 0 && lost == 0, "{}", hot[0]);
    assert!(ended.stats(1).get("descriptors") >= failed_over);
    let all = line(&ended, "iommu", "iommu: ");
    let left = (number(all, "pages"), number(all, "faults"));
    assert_eq!(left, (0, 0), "{all}");
    let audit = line(&ended, "audit", "audit: ");
    let left = (number(audit, "iova"), number(audit, "leaked"));
    assert_eq!(left, (0, 0), "{audit}");
}

/// Off means off: the machine has a unit, and the kernel leaves it alone.
#[test]
fn off_means_off() {
    let variables = [ON, ("APPEND", "iommu=off")];
    let ended = bench().run("iommu; dmatest channel=dma0chan0 iterations=10", &variables);
    ended.expect_success();
    assert_eq!(ended.output_of("iommu")[0], "iommu: off");
}

/// On is strict: without a unit, nobody gets a device that could reach everything.
#[test]
fn without_a_unit_nobody_gets_an_engine() {
    let ended = bench().run(
        "dma; iommu; audit",
        &[("IOMMU", "off"), ("APPEND", "iommu=on")],
    );
    ended.expect_success();
    assert_eq!(line(&ended, "dma", "dma: devices="), "dma: devices=0");
    let refused = "01:00.0: not handed out: no unit confines it";
    assert!(ended.console.contains(refused), "{}", ended.all());
}
