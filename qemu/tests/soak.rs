//! Engines that go and come for a long time while all of them are tested: a little in `make test`; in
//! `make soak` for as long as `LONGSHORE_SOAK` says, in seconds, and as often as `LONGSHORE_CYCLES`.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use longshore_qemu::hotplug::{How, Running};
use longshore_qemu::scenario::{Bench, Machine, PATIENCE, confined, field, left_out, number};

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

/// The memory that is in use, in KiB, once nothing runs. What the heap has taken and not handed out
/// is not.
#[track_caller]
fn used(machine: &mut Machine) -> u64 {
    let lines = machine.ok("mem");
    let kib = |start: &str, name: &str| {
        let line = lines.iter().find(|line| line.starts_with(start));
        let text = line.and_then(|line| field(line, name));
        let kib = text.and_then(|text| text.parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("{start} {name}: {lines:#?}"))
    };
    let (frames, heap) = (kib("mem: total=", "used"), kib("mem: total=", "heap"));
    frames + heap - kib("mem: frames ", "size")
}

/// By how much the memory in use may have grown, in KiB: the console remembers 64 lines, the heap's
/// pages need tables, and what grows by doubling, such as a run queue, may have doubled.
const GROWTH: u64 = 16;

/// Takes engines away and brings them back while they are tested, for `time`, four times at least and
/// until some were at work then: those who wait for an IOMMU often have nothing with any engine.
#[track_caller]
fn go_and_come(machine: &mut Machine, random: &mut Random, time: Duration) {
    machine.ok("dmatest iterations=0 threads_per_chan=4 test_buf_size=32768 &");
    let begin = Instant::now();
    let (mut removals, mut in_flight, mut failed_over, mut by_cpu) = (0, 0, 0, 0);
    while begin.elapsed() < time || removals < 4 || failed_over + by_cpu == 0 {
        assert!(
            removals < 4 || begin.elapsed() < time + PATIENCE,
            "nothing was in flight, ever"
        );
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
    // What the first times allocate for good is no leak.
    go_and_come(&mut machine, &mut random, Duration::ZERO);
    stop(&mut machine, 1);
    let before = used(&mut machine);
    go_and_come(&mut machine, &mut random, limit());
    end(machine, 1, before);
}

/// Stops the tests in the background, of which there are `jobs`; nothing may be left of them.
#[track_caller]
fn stop(machine: &mut Machine, jobs: usize) {
    for job in 1..=jobs {
        machine.ok(&format!("stop {job}"));
    }
    machine.await_rest();
}

/// Stops the tests in the background, and the machine: nothing may have failed, be lost or be left,
/// nor more memory be in use than `before`.
#[track_caller]
fn end(mut machine: Machine, jobs: usize, before: u64) {
    stop(&mut machine, jobs);
    let after = used(&mut machine);
    println!("soak: {before} KiB in use before, {after} KiB after");
    assert!(after <= before + GROWTH, "{before} KiB, then {after} KiB");
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

/// A third of them freeze in the middle of a copy.
const WAYS: [Way; 6] = [
    Way::Button,
    Way::Yank(How::Freeze),
    Way::Yank(How::Power),
    Way::Button,
    Way::Yank(How::Freeze),
    Way::Yank(How::AllOnes),
];

/// Half of what a ring holds.
const HALF: u64 = 512;

/// How many engines there are that leave their slots.
const SLOTS: u64 = 3;
/// What they are tested with, in the background: on each of the channels twice what its ring holds, in
/// chains of dependent copies, and copies for themselves. They are slower than the CPUs, so that their
/// rings are full.
const LOADS: [&str; 2] = ["chain=500 threads_per_chan=4", "threads_per_chan=2"];
const SLOW: &str = "slow=500";

/// Waits until a ring is nearly full; which, from the `first` on.
#[track_caller]
fn await_full(machine: &mut Machine, first: u64) -> u64 {
    let begin = Instant::now();
    loop {
        let lines = machine.ok("dma");
        for engine in (first..first + SLOTS).map(|engine| engine % SLOTS) {
            let chan = format!("dma{engine}chan0 ");
            let line = lines.iter().find(|line| line.starts_with(&chan));
            if line.is_some_and(|line| number(line, "refs") >= 2 * HALF - HALF / 4) {
                return engine;
            }
        }
        assert!(begin.elapsed() < PATIENCE, "no ring is full: {lines:#?}");
    }
}

/// What became of those engines' work.
#[derive(Default)]
struct Work {
    in_flight: u64,
    least: u64,
    failed_over: u64,
    by_cpu: u64,
    frozen: u64,
    /// How often a ring had got less than half full before its engine left.
    emptied: u64,
}

/// Has engines leave and come back, while they are tested, until `cycles` of them had their ring half
/// full or more.
#[track_caller]
fn leave_and_come(machine: &mut Machine, random: &mut Random, cycles: u64) -> Work {
    for load in LOADS {
        machine.ok(&format!(
            "dmatest iterations=0 test_buf_size=512 timeout=600000 {load} &"
        ));
    }
    let mut work = Work {
        least: u64::MAX,
        ..Work::default()
    };
    let mut ways = WAYS;
    for cycle in 0.. {
        if cycle == cycles + work.emptied {
            break;
        }
        assert!(
            work.emptied <= 3 + cycles / 10,
            "{} too empty",
            work.emptied
        );
        let turn = cycle as usize % WAYS.len();
        if turn == 0 {
            for end in (1..WAYS.len()).rev() {
                ways.swap(end, random.below(end as u64 + 1) as usize);
            }
        }
        let way = ways[turn];
        std::thread::sleep(Duration::from_millis(random.below(300)));
        let engine = await_full(machine, random.below(SLOTS));
        let name = format!("ioat{engine}");
        let mut running = Running::find(machine.run_dir(), &name).expect("a machine");
        let at = format!("0{}:00.0", engine + 1);
        let done = match way {
            Way::Button => running.remove().map(drop),
            Way::Yank(how) => running.yank(how),
        };
        done.unwrap_or_else(|why| panic!("{cycle}: {way:?}: {why}"));
        machine.await_text(&format!("hot: {at} detached "), PATIENCE);
        let line = machine.rest_of_line();
        assert_eq!(number(&line, "lost"), 0, "{cycle}: {way:?}: {line}");
        let in_flight = number(&line, "inflight");
        if in_flight < HALF {
            work.emptied += 1;
        } else {
            work.least = work.least.min(in_flight);
        }
        work.in_flight += in_flight;
        work.failed_over += number(&line, "failed_over");
        work.by_cpu += number(&line, "cpu");
        if way == Way::Yank(How::Freeze) {
            work.frozen += 1;
            // QEMU asks one that is taken out this and that, and would wait for each answer.
            running.yank(How::AllOnes).expect("an answer");
        }
        // One that is dead in its slot is taken out of it.
        if !matches!(way, Way::Button | Way::Yank(How::Power)) {
            let out = running.remove();
            out.unwrap_or_else(|why| panic!("{cycle}: {why}"));
        }
        running.add().expect("an addition");
        machine.await_text(&format!("hot: {at} live "), PATIENCE);
    }
    work
}

#[test]
fn engines_leave_their_slots_in_every_way_and_nothing_is_lost() {
    if confined() {
        left_out(
            "engines_leave_their_slots_in_every_way_and_nothing_is_lost",
            "QEMU tells an engine of each page that is mapped: a full ring is emptied in 20 seconds",
        );
        return;
    }
    let settings = [
        ("CPUS", "4"),
        ("IOAT", "3"),
        ("CHANNELS", "1"),
        ("FAULT", SLOW),
        ("ANSWER", "500"),
        ("APPEND", "hotplug_window=50 loglevel=warn"),
        ("TIMEOUT", "14400"),
    ];
    let cycles = asked("LONGSHORE_CYCLES", 30);
    let mut machine = Bench::new(env!("CARGO_BIN_EXE_longshore-qemu")).start(&settings);
    machine.await_prompt();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    // What the first times allocate for good is no leak.
    leave_and_come(&mut machine, &mut random, 2);
    stop(&mut machine, LOADS.len());
    let before = used(&mut machine);
    let begin = Instant::now();
    let Work {
        in_flight,
        least,
        failed_over,
        by_cpu,
        frozen,
        emptied,
    } = leave_and_come(&mut machine, &mut random, cycles);
    println!(
        "soak: {} s, {cycles} cycles with {least} in flight at least, and {emptied} with less than half \
         a ring; {frozen} frozen, in flight {in_flight}, failed over {failed_over}, by the CPU \
         {by_cpu}, lost 0",
        begin.elapsed().as_secs()
    );
    assert!(frozen >= cycles / 6 * 2, "{frozen} of {cycles} frozen");
    end(machine, LOADS.len(), before);
}
