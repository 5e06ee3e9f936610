//! The second provider: QEMU's educational device beside an engine, its memory within 28 bits and
//! above.

#![forbid(unsafe_code)]

use longshore_qemu::scenario::{Bench, PATIENCE, field};

const DMATEST: &str = "dmatest channel=dma1chan0 iterations=2 test_buf_size=8192 timeout=20000";
const PUBLIC: &str = "dmatest iterations=2 test_buf_size=8192";

#[track_caller]
fn copies(mem: &str) {
    let commands = format!("dma; {DMATEST}; {PUBLIC}; lspci -v; audit");
    let bench = Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"));
    let ended = bench.run(&commands, &[("EDU", "1"), ("IOAT", "1"), ("MEM", mem)]);
    ended.expect_success();
    let dma = ended.output_of("dma");
    let listed = |line: &&&str| {
        line.starts_with("dma1 edu 00:") && line.contains(" caps=memcpy,private channels=1 ")
    };
    let line = dma.iter().find(listed);
    let line = line.unwrap_or_else(|| panic!("no edu in {dma:#?}"));
    assert_eq!(field(line, "bits"), Some("28"));

    let summary = |command| {
        let lines = ended.output_of(command);
        let is_summary = |line: &&str| line.contains(": summary ");
        lines.into_iter().filter(is_summary).collect::<Vec<_>>()
    };
    let [copies] = summary(DMATEST)[..] else {
        panic!("{}", ended.all());
    };
    let passed = "dmatest: dma1chan0-copy0: summary 2 tests, 0 failures ";
    assert!(copies.starts_with(passed), "{copies}");
    let public = summary(PUBLIC);
    assert_eq!(public.len(), 4, "the engine's channels alone: {public:#?}");
    assert!(public.iter().all(|line| line.contains(" dma0chan")));

    let lspci = ended.output_of("lspci -v");
    let has = |part: &str| lspci.iter().any(|line| line.contains(part));
    assert!(has("1234:11e8 QEMU edu device"), "{lspci:#?}");
    assert!(has("QEMU educational device version=1.0 bits=28 irq=msi"));
    let channel = lspci.iter().find(|line| line.contains(" bounced="));
    let channel = channel.unwrap_or_else(|| panic!("no channel in {lspci:#?}"));
    let number = |name| field(channel, name).and_then(|text| text.parse::<u64>().ok());
    // Each chunk goes in and out; buffers of clients lie above 28 bits.
    assert!(number("transfers").is_some_and(|count| count >= 4 && count % 2 == 0));
    assert_eq!(number("bounced"), Some(4), "{channel}");
    assert!(number("interrupts").is_some_and(|count| count > 0));
    assert_eq!(number("timeouts"), Some(0));

    let audit = ended.output_of("audit");
    let audit = audit.iter().find(|line| line.starts_with("audit: "));
    let audit = audit.unwrap_or_else(|| panic!("no audit\n{}", ended.all()));
    for name in ["rings", "timers", "iova", "leaked"] {
        assert_eq!(field(audit, name), Some("0"), "{audit}");
    }
}

#[test]
fn the_educational_device_copies_by_way_of_bounce_buffers() {
    copies("512M");
}

#[test]
fn the_educational_device_copies_with_6_gib() {
    copies("6G");
}

#[test]
fn an_unloaded_driver_leaves_nothing_and_comes_back() {
    let bench = Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"));
    let mut machine = bench.start(&[("EDU", "1"), ("IOAT", "0")]);
    machine.await_prompt();
    let lines = machine.command("dma", PATIENCE);
    let line = lines.iter().find(|line| line.starts_with("dma0 edu "));
    let address = line.and_then(|line| line.split_whitespace().nth(2));
    let address = address.unwrap_or_else(|| panic!("no edu in {lines:#?}"));
    let audit = |machine: &mut longshore_qemu::scenario::Machine| {
        let lines = machine.command("audit", PATIENCE);
        let line = lines.iter().find(|line| line.starts_with("audit: "));
        let line = line.unwrap_or_else(|| panic!("no audit in {lines:#?}"));
        assert_eq!(field(line, "leaked"), Some("0"), "{line}");
        let vectors = field(line, "vectors").and_then(|text| text.parse::<u64>().ok());
        vectors.unwrap_or_else(|| panic!("no vectors in {line:?}"))
    };
    let with = audit(&mut machine);
    machine.command(&format!("unbind {address}"), PATIENCE);
    assert_eq!(audit(&mut machine), with - 1, "its vector is free");
    let refused = machine.command(&format!("bind {address} ioat"), PATIENCE);
    assert!(
        refused
            .iter()
            .any(|line| line.starts_with("error: no driver \"ioat\""))
    );
    machine.command(&format!("bind {address} edu"), PATIENCE);
    assert_eq!(audit(&mut machine), with);
    let test = "dmatest channel=dma0chan0 iterations=1 test_buf_size=64 timeout=20000";
    let lines = machine.command(test, PATIENCE);
    let passed = |line: &String| line.contains("summary 1 tests, 0 failures");
    assert!(lines.iter().any(passed), "{lines:#?}");
    machine.type_text("poweroff\r");
    assert_eq!(machine.finish(PATIENCE).status, Some(0));
}
