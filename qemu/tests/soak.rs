//! Engines that go and come for a long time while all of them are tested: a few seconds in
//! `make test`, as long as `LONGSHORE_SOAK` says, in seconds, in `make soak`.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use longshore_qemu::scenario::{Bench, Machine, PATIENCE, field};

const ENGINES: u64 = 4;

fn limit() -> Duration {
    let seconds = std::env::var("LONGSHORE_SOAK").ok();
    let seconds = seconds.map_or(Ok(5), |text| text.parse());
    Duration::from_secs(seconds.expect("LONGSHORE_SOAK: seconds"))
}

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        // Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8(14), 2003.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Runs a command that must end in `ok`.
#[track_caller]
fn ok(machine: &mut Machine, command: &str) -> Vec<String> {
    let lines = machine.command(command, PATIENCE);
    // Lines of tasks in the background may come after it.
    assert!(
        lines.iter().any(|line| line == "ok"),
        "{command}: {lines:#?}"
    );
    lines
}

fn number(line: &str, name: &str) -> u64 {
    let value = field(line, name).and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {line:?}"))
}

/// The memory that is in use, in KiB, once nothing runs.
fn used(machine: &mut Machine) -> u64 {
    let lines = ok(machine, "mem");
    let line = lines.iter().find(|line| line.starts_with("mem: total="));
    let text = line.and_then(|line| field(line, "used")).unwrap();
    text.parse().unwrap()
}

#[test]
fn engines_go_and_come_under_dmatest_and_nothing_is_lost() {
    let settings = [
        ("CPUS", "4"),
        ("IOAT", "4"),
        ("CHANNELS", "2"),
        ("FAULT", "slow=8000"),
        ("TIMEOUT", "7200"),
    ];
    let mut machine = Bench::new(env!("CARGO_BIN_EXE_longshore-qemu")).start(&settings);
    machine.await_prompt();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // What a first run allocates for good, tables of CPUs and tasks, is no leak; nor is one more step
    // of the heap, which CPUs keep small blocks of.
    let test = "dmatest iterations=20 threads_per_chan=4 test_buf_size=32768";
    ok(&mut machine, test);
    let before = used(&mut machine);
    ok(
        &mut machine,
        "dmatest iterations=0 threads_per_chan=4 test_buf_size=32768 &",
    );
    let begin = Instant::now();
    let (mut removals, mut in_flight, mut failed_over, mut by_cpu) = (0, 0, 0, 0);
    while begin.elapsed() < limit() || removals < 4 {
        // One at a time, two at a time, all of them: then the CPU does the work.
        let first = random.below(ENGINES);
        let count = match random.below(10) {
            0 => ENGINES,
            1..=3 => 2,
            _ => 1,
        };
        for engine in (first..first + count).map(|n| n % ENGINES + 1) {
            let lines = ok(&mut machine, &format!("pci remove 0{engine}:00.0"));
            let line = lines.iter().find(|line| line.contains(" detached "));
            let line = line.unwrap_or_else(|| panic!("not detached: {lines:#?}"));
            assert_eq!(number(line, "lost"), 0, "{line}");
            assert_eq!(number(line, "refs"), 0, "{line}");
            removals += 1;
            in_flight += number(line, "inflight");
            failed_over += number(line, "failed_over");
            by_cpu += number(line, "cpu");
        }
        std::thread::sleep(Duration::from_millis(random.below(200)));
        let found = ok(&mut machine, "pci rescan");
        assert!(found.contains(&format!("pci: found={count}")), "{found:#?}");
        std::thread::sleep(Duration::from_millis(random.below(200)));
    }
    println!(
        "soak: {} s, {removals} removals, in flight {in_flight}, failed over {failed_over}, \
         by the CPU {by_cpu}, lost 0",
        begin.elapsed().as_secs()
    );
    assert!(failed_over + by_cpu > 0, "nothing was in flight, ever");
    ok(&mut machine, "stop 1");
    // What was stopped ends with its test; then the machine is as it was.
    ok(&mut machine, "dmatest channel=cpu iterations=200");
    ok(&mut machine, test);
    let audit = ok(&mut machine, "audit");
    let line = audit.iter().find(|line| line.starts_with("audit: "));
    let line = line.unwrap_or_else(|| panic!("{audit:#?}"));
    for name in ["rings", "iova", "leaked"] {
        assert_eq!(number(line, name), 0, "{line}");
    }
    let after = used(&mut machine);
    assert!(
        after <= before + 256,
        "{before} KiB used before, {after} KiB after"
    );
    machine.type_text("poweroff\r");
    let ended = machine.finish(PATIENCE);
    let all = ended.all();
    for bad in ["WARN", "PANIC", "error:", "result #"] {
        assert!(!all.contains(bad), "{bad} in\n{all}");
    }
    let summaries = all.lines().filter(|line| line.contains(": summary "));
    for line in summaries {
        assert!(line.contains(", 0 failures "), "{line}");
    }
}
