//! Engines that go and come for a long time while all of them are tested: a little in `make test`; in
//! `make soak` for as long as `LONGSHORE_SOAK` says, in seconds, and as often as `LONGSHORE_CYCLES`.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use longshore_qemu::hotplug::{How, Running};
use longshore_qemu::scenario::{Bench, Machine, PATIENCE, field, number};

const ENGINES: u64 = 4;

/// A number from the environment.
fn asked(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    let number = text.map_or(Ok(default), |text| text.parse());
    number.unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn limit() -> Duration {
    Duration::from_secs(asked("LONGSHORE_SOAK", 5))
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

/// The memory that is in use, in KiB, once nothing runs.
fn used(machine: &mut Machine) -> u64 {
    let lines = machine.ok("mem");
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
    machine.ok(test);
    let before = used(&mut machine);
    machine.ok("dmatest iterations=0 threads_per_chan=4 test_buf_size=32768 &");
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
            let lines = machine.ok(&format!("pci remove 0{engine}:00.0"));
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
        let found = machine.ok("pci rescan");
        assert!(found.contains(&format!("pci: found={count}")), "{found:#?}");
        std::thread::sleep(Duration::from_millis(random.below(200)));
    }
    println!(
        "soak: {} s, {removals} removals, in flight {in_flight}, failed over {failed_over}, \
         by the CPU {by_cpu}, lost 0",
        begin.elapsed().as_secs()
    );
    assert!(failed_over + by_cpu > 0, "nothing was in flight, ever");
    end(machine, 1, test, before);
}

/// Stops the tests in the background, and the machine: nothing may have failed, be lost or be left,
/// nor more memory be in use than `before`. `test` runs on every channel.
#[track_caller]
fn end(mut machine: Machine, jobs: usize, test: &str, before: u64) {
    for job in 1..=jobs {
        machine.ok(&format!("stop {job}"));
    }
    // What was stopped ends with its test; then the machine is as it was.
    machine.ok("dmatest channel=cpu iterations=200");
    machine.ok(test);
    // Long chains take their time to end.
    let begin = Instant::now();
    let line = loop {
        let audit = machine.ok("audit");
        let line = audit.iter().find(|line| line.starts_with("audit: "));
        let line = line.unwrap_or_else(|| panic!("{audit:#?}")).clone();
        if number(&line, "rings") == 0 || begin.elapsed() > PATIENCE {
            break line;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    for name in ["rings", "iova", "leaked"] {
        assert_eq!(number(&line, name), 0, "{line}");
    }
    let after = used(&mut machine);
    // The heap keeps what it has grown to, and falls into pieces when rings come and go.
    assert!(
        after <= before + 1024,
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

/// How an engine leaves its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By the attention button.
    Button,
    Yank(How),
}

const WAYS: [Way; 6] = [
    Way::Button,
    Way::Yank(How::Freeze),
    Way::Yank(How::Power),
    Way::Button,
    Way::Yank(How::Freeze),
    Way::Yank(How::AllOnes),
];

#[test]
#[ignore = "takes minutes: make soak-removal runs it"]
fn engines_leave_their_slots_in_every_way_and_nothing_is_lost() {
    let settings = [
        ("CPUS", "4"),
        ("IOAT", "3"),
        ("CHANNELS", "1"),
        ("FAULT", "slow=250"),
        ("ANSWER", "500"),
        ("APPEND", "hotplug_window=50 loglevel=warn"),
        ("TIMEOUT", "14400"),
    ];
    let cycles = asked("LONGSHORE_CYCLES", 30);
    let mut machine = Bench::new(env!("CARGO_BIN_EXE_longshore-qemu")).start(&settings);
    machine.await_prompt();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let test = "dmatest iterations=3 test_buf_size=512 timeout=60000 chain=900 threads_per_chan=2";
    machine.ok(test);
    let before = used(&mut machine);
    // On each of the three channels more than its ring of 1023 holds, each copy after the one before;
    // and copies for themselves.
    for load in ["chain=900 threads_per_chan=2", "threads_per_chan=2"] {
        machine.ok(&format!(
            "dmatest iterations=0 test_buf_size=512 timeout=60000 {load} &"
        ));
    }
    let begin = Instant::now();
    let (mut in_flight, mut failed_over, mut by_cpu, mut full, mut frozen) = (0, 0, 0, 0, 0);
    for cycle in 0..cycles {
        std::thread::sleep(Duration::from_millis(random.below(300)));
        let engine = random.below(3);
        let way = WAYS[random.below(WAYS.len() as u64) as usize];
        let name = format!("ioat{engine}");
        let mut running = Running::find(machine.run_dir(), &name).expect("a machine");
        let at = format!("0{}:00.0", engine + 1);
        let detached = format!("hot: {at} detached ");
        match way {
            Way::Button => drop(
                running
                    .remove()
                    .unwrap_or_else(|why| panic!("{cycle}: {why}")),
            ),
            Way::Yank(how) => running.yank(how).expect("a yank"),
        }
        machine.await_text(&detached, PATIENCE);
        let line = machine.rest_of_line();
        assert_eq!(number(&line, "lost"), 0, "{cycle}: {way:?}: {line}");
        in_flight += number(&line, "inflight");
        failed_over += number(&line, "failed_over");
        by_cpu += number(&line, "cpu");
        full += u64::from(number(&line, "inflight") >= 512);
        frozen += u64::from(way == Way::Yank(How::Freeze));
        // One that is dead in its slot is taken out of it.
        if !matches!(way, Way::Button | Way::Yank(How::Power)) {
            running
                .remove()
                .unwrap_or_else(|why| panic!("{cycle}: {why}"));
        }
        running.add().expect("an addition");
        machine.await_text(&format!("hot: {at} live "), PATIENCE);
    }
    println!(
        "soak: {} s, {cycles} cycles, {frozen} frozen, {full} with half a ring or more, in flight \
         {in_flight}, failed over {failed_over}, by the CPU {by_cpu}, lost 0",
        begin.elapsed().as_secs()
    );
    assert!(frozen > 0, "none of {cycles} frozen");
    // When an engine leaves is chance: of a few, all may find it idle.
    assert!(full > 0 || cycles < 30, "none of {cycles} with half a ring");
    // Long chains have the heap grow by some MiB within the first cycles, which it keeps: only what
    // grows beyond that is seen here.
    end(machine, 2, test, before + 8192);
}
