//! Counts that must agree, and rates that are aimed at.
//!
//! A count that does not agree is a failure of the benchmark: either it has not measured what it
//! says, or the code does not keep what it promises. A rate is no such thing, machines being what
//! they are: it is met or not met.

use serde::Serialize;
use serde_json::Value;

use crate::bench::line::Line;
use crate::bench::report::System;
use crate::bench::statistics::Summary;

/// Two counts that must be the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What is counted.
    pub what: String,
    /// What there should be.
    pub expected: u64,
    /// What there was.
    pub counted: u64,
}

impl Check {
    fn new(what: impl Into<String>, expected: u64, counted: u64) -> Self {
        Self {
            what: what.into(),
            expected,
            counted,
        }
    }

    /// Whether they are.
    pub fn agrees(&self) -> bool {
        self.expected == self.counted
    }

    /// All that can be compared after a boot: its lines with each other, and with what each of its
    /// engines has counted.
    pub fn all(lines: &[Line], engines: &[Value]) -> Vec<Self> {
        let mut checks = Vec::new();
        for line in of_kind(lines, "copy") {
            if line.key("via") != "cpu" {
                let case = line.case().join(" ");
                let doorbells = (line.count("batches"), line.count("doorbells"));
                checks.push(Self::new(
                    format!("doorbells, one a batch: {case}"),
                    doorbells.0,
                    doorbells.1,
                ));
                let reads = line.count("mmio_reads");
                checks.push(Self::new(format!("MMIO reads: {case}"), 0, reads));
            }
        }
        for line in of_kind(lines, "find").filter(|line| line.key("by") == "table") {
            let case = line.case().join(" ");
            checks.push(Self::new(
                format!("channels found: {case}"),
                line.count("pairs"),
                line.count("found"),
            ));
        }
        let statistic = |engine: &Value, name: &str| engine[name].as_u64().unwrap_or(0);
        let over_engines = |name: &str| engines.iter().map(|engine| statistic(engine, name)).sum();
        let mut starts = 0;
        for (number, engine) in engines.iter().enumerate() {
            let channels = format!("dma{number}chan");
            let claims =
                of_kind(lines, "claimed").filter(|line| line.key("via").starts_with(&channels));
            let (ops, its) = claims.fold((0, 0), |(ops, its), line| {
                (ops + line.count("ops"), its + line.count("starts"))
            });
            starts += its;
            // Each start of a channel has it do a descriptor that moves nothing.
            let descriptors = statistic(engine, "descriptors");
            checks.push(Self::new(
                format!("descriptors of ioat{number}, operations and starts of channels"),
                ops + its,
                descriptors,
            ));
            checks.push(Self::new(
                format!("faults of ioat{number}"),
                0,
                statistic(engine, "faults"),
            ));
        }
        if let Some(totals) = of_kind(lines, "totals").last() {
            for name in ["mmio_reads", "mmio_writes"] {
                checks.push(Self::new(
                    format!("{name} of all engines, as the kernel counts them"),
                    totals.count(name),
                    over_engines(name),
                ));
            }
            let doorbells = totals.count("doorbells") + starts;
            checks.push(Self::new(
                "doorbells of all engines, for operations and starts",
                doorbells,
                over_engines("doorbells"),
            ));
        }
        checks
    }

    /// What can be said of engines that left, and of reservations.
    pub fn removals(lines: &[Line]) -> Vec<Self> {
        let mut checks = Vec::new();
        for line in of_kind(lines, "resv").filter(|line| line.key("cpus") == "1") {
            let case = line.case().join(" ");
            checks.push(Self::new(
                format!("allocations for reservations: {case}"),
                0,
                line.count("allocs_within"),
            ));
        }
        for line in of_kind(lines, "removal") {
            let case = line.key("case");
            let mut check = |what: &str, expected, counted| {
                checks.push(Self::new(
                    format!("{what}, removal of an engine, {case}"),
                    expected,
                    counted,
                ));
            };
            check("operations lost", 0, line.count("lost"));
            let elsewhere = line.count("failed_over") + line.count("cpu");
            match case {
                "idle" => check("operations done elsewhere", 0, elsewhere),
                // Those that were in flight, less what was found to be done already.
                _ => check(
                    "more done elsewhere than was in flight",
                    0,
                    elsewhere.saturating_sub(line.count("inflight")),
                ),
            }
        }
        checks
    }

    /// That nothing was lost when engines vanished, and that they were at work.
    pub fn detections(lines: &[Line]) -> Vec<Self> {
        let mut checks = Vec::new();
        for line in of_kind(lines, "detection") {
            let mut check = |what: &str, expected, counted| {
                let what = format!("{what}, engine that vanished, {}", line.key("how"));
                checks.push(Self::new(what, expected, counted));
            };
            check("operations lost", 0, line.count("lost"));
            let idle = line.count("inflight") == 0;
            check("nothing in flight", 0, idle.into());
        }
        checks
    }
}

fn of_kind<'a>(lines: &'a [Line], name: &'static str) -> impl Iterator<Item = &'a Line> {
    lines.iter().filter(move |line| line.kind.name == name)
}

/// A ratio that is aimed at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Target {
    /// Of what to what.
    pub what: String,
    /// At least this much.
    pub wanted: f64,
    /// One sample a round; none where one side of it is missing.
    pub ratio: Option<Summary>,
}

impl Target {
    /// Whether the median reaches it.
    pub fn is_met(&self) -> bool {
        self.ratio.is_some_and(|ratio| ratio.median >= self.wanted)
    }

    /// All of them.
    pub fn all(longshore: &System, linux: &System) -> Vec<Self> {
        let engine = |mode, size, batch| {
            move |line: &Line| {
                line.kind.name == "copy"
                    && line.key("via") != "cpu"
                    && line.key("channels") == "1"
                    && (line.key("mode"), line.key("size"), line.key("batch"))
                        == (mode, size, batch)
            }
        };
        let dmatest = |mode, size| {
            move |line: &Line| {
                line.kind.name == "dmatest" && (line.key("mode"), line.key("size")) == (mode, size)
            }
        };
        vec![
            Self {
                what: "polled copies of 4 KiB, one at a time: Longshore to Linux".into(),
                wanted: 1.0,
                ratio: ratio(
                    (longshore, &engine("polled", "4096", "1")),
                    (linux, &dmatest("polled", "4096")),
                ),
            },
            Self {
                what: "polled copies of 4 KiB: batches of 32 to one at a time".into(),
                wanted: 8.0,
                ratio: ratio(
                    (longshore, &engine("polled", "4096", "32")),
                    (longshore, &engine("polled", "4096", "1")),
                ),
            },
        ]
    }
}

type Side<'a> = (&'a System, &'a dyn Fn(&Line) -> bool);

/// The ratio of the medians of iops, round by round.
fn ratio(numerator: Side<'_>, denominator: Side<'_>) -> Option<Summary> {
    let median = |(system, wanted): Side<'_>, round: usize| {
        let boots = system.boots.iter().filter(|boot| boot.round == round);
        let lines = boots
            .flat_map(|boot| &boot.lines)
            .filter(|line| wanted(line));
        Some(Summary::of(lines.map(|line| line.metric("iops")))?.median)
    };
    let rounds = numerator.0.boots.iter().map(|boot| boot.round);
    Summary::of(rounds.filter_map(|round| {
        let (above, below) = (median(numerator, round)?, median(denominator, round)?);
        (below > 0.0).then_some(above / below)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Boot;
    use serde_json::json;

    fn copy(via: &str, batch: u32, iops: u32, doorbells: u32, reads: u32) -> Line {
        Line::parse(&format!(
            "copy via={via} mode=polled size=4096 batch={batch} channels=1 iops={iops} KB/s=0 \
             tsc_per_op=0 mmio_per_op=0 irq_per_op=0 allocs_per_op=0 ops=0 batches=10 ns=0 \
             mmio_reads={reads} mmio_writes=10 doorbells={doorbells} irqs=0 wakes=0 timers=0 allocs=0"
        ))
        .unwrap()
    }

    fn lines() -> Vec<Line> {
        let mut lines = vec![
            copy("dma0chan0", 1, 1000, 10, 0),
            copy("cpu", 1, 1000, 0, 0),
        ];
        for text in [
            "claimed by=copy via=dma0chan0 ops=10 starts=1",
            "claimed by=copy via=cpu ops=10 starts=0",
            "claimed by=find via=dma0chan0 ops=0 starts=1",
            "claimed by=find via=dma10chan0 ops=7 starts=1",
            "totals mmio_reads=3 mmio_writes=40 doorbells=10 irqs=0 wakes=0 timers=0 allocs=0",
        ] {
            lines.push(Line::parse(text).unwrap());
        }
        lines
    }

    fn failed(lines: &[Line], engine: &Value) -> Vec<String> {
        let checks = Check::all(lines, std::slice::from_ref(engine));
        let failed = checks.into_iter().filter(|check| !check.agrees());
        failed.map(|check| check.what).collect()
    }

    #[test]
    fn counts_that_agree_pass_and_each_other_one_is_found() {
        let engine = json!({
            "descriptors": 12, "faults": 0, "mmio_reads": 3, "mmio_writes": 40, "doorbells": 12,
        });
        assert_eq!(failed(&lines(), &engine), Vec::<String>::new());
        for name in [
            "descriptors",
            "faults",
            "mmio_reads",
            "mmio_writes",
            "doorbells",
        ] {
            let mut wrong = engine.clone();
            wrong[name] = json!(13);
            let failed = failed(&lines(), &wrong);
            assert!(
                failed.len() == 1 && failed[0].starts_with(name),
                "{failed:?}"
            );
        }
        let mut lines = lines();
        lines[0] = copy("dma0chan0", 1, 1000, 11, 1);
        assert_eq!(failed(&lines, &engine).len(), 2, "a doorbell, a read");
    }

    #[test]
    fn engines_that_leave_lose_nothing() {
        let removal = |text: &str| Line::parse(&format!("removal us=1 ring_us=2 {text}")).unwrap();
        let good = [
            removal("case=idle inflight=0 failed_over=0 cpu=0 lost=0"),
            removal("case=full inflight=9 failed_over=5 cpu=3 lost=0"),
        ];
        assert!(Check::removals(&good).iter().all(Check::agrees));
        for bad in [
            "case=idle inflight=0 failed_over=1 cpu=0 lost=0",
            "case=full inflight=9 failed_over=5 cpu=5 lost=0",
            "case=full inflight=9 failed_over=5 cpu=3 lost=1",
        ] {
            let checks = Check::removals(&[removal(bad)]);
            assert_eq!(checks.iter().filter(|check| !check.agrees()).count(), 1);
        }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let boot = |round, single, many| Boot {
            round,
            lines: vec![
                copy("dma0chan0", 1, single, 10, 0),
                copy("dma0chan0", 32, many, 10, 0),
                copy("cpu", 32, 1, 0, 0),
            ],
            checks: Vec::new(),
        };
        // The host was ten times as busy in the second round.
        let longshore = System {
            name: "longshore".into(),
            version: Ok("1".into()),
            boots: vec![
                boot(0, 1000, 9000),
                boot(1, 100, 800),
                boot(2, 1000, 10_000),
            ],
        };
        let linux = System {
            name: "linux".into(),
            version: Err("no make".into()),
            boots: Vec::new(),
        };
        let targets = Target::all(&longshore, &linux);
        assert_eq!((targets[0].ratio, targets[0].is_met()), (None, false));
        let ratio = targets[1].ratio.unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.samples), (9.0, 8.0, 3));
        assert!(targets[1].is_met());
    }
}
