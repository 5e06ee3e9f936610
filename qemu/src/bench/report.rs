//! The table for people, and `results.json` for machines.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::bench::Boot;
use crate::bench::check::{Check, Target};
use crate::bench::line::{KINDS, Kind, Line};
use crate::bench::plan::Plan;
use crate::bench::statistics::Summary;
use crate::failure::{Context, Failure};
use crate::settings::Settings;

/// One system and what it has measured.
#[derive(Clone, Debug)]
pub struct System {
    /// `longshore` or `linux`.
    pub name: String,
    /// Its version, or why it is missing.
    pub version: Result<String, String>,
    /// Its boots.
    pub boots: Vec<Boot>,
}

/// One case over all boots.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Which system.
    pub system: String,
    /// Which benchmark.
    pub benchmark: &'static str,
    /// What tells it apart from others of the same benchmark.
    pub keys: BTreeMap<&'static str, String>,
    /// What was measured.
    pub metrics: BTreeMap<&'static str, Summary>,
    #[serde(skip)]
    kind: &'static Kind,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    plan: Plan,
    settings: Settings,
    /// Name, and version or the reason why it is missing.
    systems: BTreeMap<String, Presence>,
    cases: Vec<Case>,
    checks_passed: usize,
    checks_failed: Vec<Check>,
    targets: Vec<Verdict>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Presence {
    Version(String),
    Missing(String),
}

#[derive(Clone, Debug, Serialize)]
struct Verdict {
    #[serde(flatten)]
    target: Target,
    met: bool,
}

impl Results {
    /// Sums up.
    pub fn new<const N: usize>(
        plan: &Plan,
        settings: &Settings,
        systems: [System; N],
        targets: Vec<Target>,
    ) -> Self {
        let checks = systems.iter().flat_map(|system| &system.boots);
        let (passed, failed): (Vec<_>, Vec<_>) = checks
            .flat_map(|boot| &boot.checks)
            .cloned()
            .partition(Check::agrees);
        Self {
            plan: plan.clone(),
            settings: settings.clone(),
            cases: systems.iter().flat_map(cases).collect(),
            checks_passed: passed.len(),
            checks_failed: failed,
            targets: targets
                .into_iter()
                .map(|target| Verdict {
                    met: target.is_met(),
                    target,
                })
                .collect(),
            systems: systems
                .into_iter()
                .map(|system| {
                    let presence = match system.version {
                        Ok(version) => Presence::Version(version),
                        Err(reason) => Presence::Missing(reason),
                    };
                    (system.name, presence)
                })
                .collect(),
        }
    }

    /// Whether every count was what it should be.
    pub fn all_counts_agree(&self) -> bool {
        self.checks_failed.is_empty()
    }

    /// The cases.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// Writes them as JSON.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let mut text = serde_json::to_string_pretty(self).context("results")?;
        text.push('\n');
        fs::write(path, text).context(path.display())
    }
}

/// The cases of a system, each with the samples of all its boots, in the order of the first boot.
fn cases(system: &System) -> Vec<Case> {
    let mut groups: Vec<(&'static Kind, Vec<&Line>)> = Vec::new();
    for line in system.boots.iter().flat_map(|boot| &boot.lines) {
        let same = |group: &&mut (&'static Kind, Vec<&Line>)| {
            group.0 == line.kind && group.1[0].case() == line.case()
        };
        match groups.iter_mut().find(same) {
            Some((_, lines)) => lines.push(line),
            None => groups.push((line.kind, vec![line])),
        }
    }
    let case = |(kind, lines): (&'static Kind, Vec<&Line>)| Case {
        system: system.name.clone(),
        benchmark: kind.name,
        keys: kind
            .keys
            .iter()
            .map(|key| (*key, lines[0].key(key).to_string()))
            .collect(),
        metrics: kind
            .metrics
            .iter()
            .filter_map(|name| {
                let samples = lines.iter().map(|line| line.metric(name));
                Some((*name, Summary::of(samples)?))
            })
            .collect(),
        kind,
    };
    groups.into_iter().map(case).collect()
}

/// A column of a table, and what makes it from a case.
type Column = (&'static str, fn(&Case) -> String);

/// The columns of each benchmark; those that have none here are in `results.json` alone.
const TABLES: &[(&str, &[Column])] = &[
    (
        "copy",
        &[
            ("iops", |case| case.spread("iops")),
            ("MB/s", |case| case.scaled("KB/s", 1024.0)),
            ("tsc/op", |case| case.scaled("tsc_per_op", 1.0)),
            ("reads/op", |case| case.quotient("mmio_reads", "ops")),
            ("writes/op", |case| case.quotient("mmio_writes", "ops")),
            ("doorbells/batch", |case| {
                case.quotient("doorbells", "batches")
            }),
            ("irqs/op", |case| case.quotient("irqs", "ops")),
            ("wakes/op", |case| case.quotient("wakes", "ops")),
            ("allocs/op", |case| case.quotient("allocs", "ops")),
        ],
    ),
    (
        "steps",
        &[
            ("instructions/op", |case| case.scaled("insns_per_op", 1.0)),
            ("locked/op", |case| case.scaled("locked_per_op", 1.0)),
        ],
    ),
    (
        "dmatest",
        &[
            ("iops", |case| case.spread("iops")),
            ("MB/s", |case| case.scaled("KB/s", 1024.0)),
        ],
    ),
    (
        "find",
        &[
            ("tsc/pair", |case| case.spread("tsc_per_pair")),
            ("slowest CPU", |case| case.scaled("tsc_per_pair_max", 1.0)),
            ("instructions/pair", |case| {
                case.scaled("insns_per_pair", 1.0)
            }),
            ("locked/pair", |case| case.scaled("locked_per_pair", 1.0)),
            ("allocs/pair", |case| case.quotient("allocs", "pairs")),
        ],
    ),
    (
        "wake",
        &[
            ("ns from signal to task", |case| case.spread("ns")),
            ("the longest", |case| case.scaled("ns_most", 1.0)),
        ],
    ),
    (
        "resv",
        &[
            ("ns/ticket", |case| case.spread("ns_per_ticket")),
            ("retries/ticket", |case| case.quotient("retries", "tickets")),
            ("allocs/ticket", |case| {
                case.quotient("allocs_within", "tickets")
            }),
        ],
    ),
    (
        "pipeline",
        &[
            ("frames/s", |case| case.spread("fps")),
            ("irqs/frame", |case| case.quotient("irqs", "frames")),
        ],
    ),
    (
        "mapping",
        &[
            ("us to map", |case| case.scaled("map_ns", 1000.0)),
            ("us to unmap", |case| case.scaled("unmap_ns", 1000.0)),
        ],
    ),
    (
        "confined",
        &[
            ("iops", |case| case.spread("iops")),
            ("MB/s", |case| case.scaled("KB/s", 1024.0)),
        ],
    ),
    (
        "removal",
        &[
            ("us", |case| case.spread("us")),
            ("us for what is in the ring", |case| case.spread("ring_us")),
            ("in flight", |case| case.scaled("inflight", 1.0)),
            ("failed over", |case| case.scaled("failed_over", 1.0)),
            ("by the CPU", |case| case.scaled("cpu", 1.0)),
        ],
    ),
    (
        "detection",
        &[
            ("us until known", |case| case.spread("known_us")),
            ("us until all was done", |case| case.spread("us")),
            ("in flight", |case| case.scaled("inflight", 1.0)),
            ("failed over", |case| case.scaled("failed_over", 1.0)),
            ("by the CPU", |case| case.scaled("cpu", 1.0)),
        ],
    ),
];

impl Case {
    fn median(&self, name: &str) -> f64 {
        self.metrics
            .get(name)
            .map_or(f64::NAN, |summary| summary.median)
    }

    fn spread(&self, name: &str) -> String {
        self.metrics.get(name).map_or("-".into(), |summary| {
            let Summary { median, q1, q3, .. } = summary;
            format!("{} ({}..{})", short(*median), short(*q1), short(*q3))
        })
    }

    fn scaled(&self, name: &str, by: f64) -> String {
        short(self.median(name) / by)
    }

    fn quotient(&self, above: &str, below: &str) -> String {
        let quotient = self.median(above) / self.median(below);
        if quotient == 0.0 {
            "0".into()
        } else {
            format!("{quotient:.3}")
        }
    }

    fn label(&self) -> String {
        let words = self
            .kind
            .keys
            .iter()
            .map(|key| match (*key, &self.keys[key]) {
                ("batch", value) => format!("x{value}"),
                ("channels" | "cpus", value) => format!("{key}={value}"),
                (_, value) => value.clone(),
            });
        let words: Vec<String> = words.collect();
        format!("{} {}", self.system, words.join(" "))
    }
}

/// As many digits as are worth a look.
fn short(number: f64) -> String {
    match number {
        _ if number.is_nan() => "-".into(),
        _ if number.abs() < 100.0 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in KINDS {
            let columns = TABLES.iter().find(|(name, _)| *name == kind.name);
            let Some((_, columns)) = columns else {
                continue;
            };
            let cases = self.cases.iter().filter(|case| case.kind == kind);
            let rows: Vec<Vec<String>> = cases
                .map(|case| {
                    let cells = columns.iter().map(|(_, cell)| cell(case));
                    std::iter::once(case.label()).chain(cells).collect()
                })
                .collect();
            if rows.is_empty() {
                continue;
            }
            let heads = columns.iter().map(|(head, _)| (*head).to_string());
            let heads = std::iter::once(kind.name.to_string())
                .chain(heads)
                .collect();
            write_table(f, heads, &rows)?;
        }
        writeln!(
            f,
            "medians of {} boots; in brackets the quartiles",
            self.plan.rounds
        )?;
        for (name, presence) in &self.systems {
            match presence {
                Presence::Version(version) => writeln!(f, "{name} {version}")?,
                Presence::Missing(reason) => writeln!(f, "{name} is missing: {reason}")?,
            }
        }
        for Verdict { target, met } in &self.targets {
            let verdict = if *met { "met" } else { "not met" };
            match target.ratio {
                Some(ratio) => writeln!(
                    f,
                    "{verdict}: {}: {:.2} ({:.2}..{:.2}), wanted {:.1}",
                    target.what, ratio.median, ratio.min, ratio.max, target.wanted
                )?,
                None => writeln!(f, "{verdict}: {}: not measured", target.what)?,
            }
        }
        for Check {
            what,
            expected,
            counted,
        } in &self.checks_failed
        {
            writeln!(f, "WRONG: {what}: {counted}, expected {expected}")?;
        }
        let failed = self.checks_failed.len();
        writeln!(f, "counts: {} agree, {failed} do not", self.checks_passed)
    }
}

fn write_table(
    f: &mut fmt::Formatter<'_>,
    heads: Vec<String>,
    rows: &[Vec<String>],
) -> fmt::Result {
    let all = || std::iter::once(&heads).chain(rows);
    let widths: Vec<usize> = (0..heads.len())
        .map(|column| all().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    for row in all() {
        write!(f, "{:<width$}", row[0], width = widths[0])?;
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            write!(f, "  {cell:>width$}")?;
        }
        writeln!(f)?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(round: usize, iops: u32) -> Boot {
        let line = format!("dmatest mode=polled size=4096 iops={iops}.00 KB/s=2048 ops=100");
        Boot {
            round,
            lines: vec![Line::parse(&line).unwrap()],
            checks: vec![Check {
                what: "descriptors".into(),
                expected: 5,
                counted: iops.into(),
            }],
        }
    }

    fn results(boots: Vec<Boot>) -> Results {
        let linux = System {
            name: "linux".into(),
            version: Ok("6.12".into()),
            boots,
        };
        let longshore = System {
            name: "longshore".into(),
            version: Err("left out".into()),
            boots: Vec::new(),
        };
        let targets = Target::all(&longshore, &linux);
        Results::new(
            &Plan::tiny(),
            &Settings::default(),
            [longshore, linux],
            targets,
        )
    }

    #[test]
    fn whatever_is_measured_is_shown() {
        const FOR_THE_CHECKS: [&str; 2] = ["claimed", "totals"];
        for kind in KINDS {
            assert!(
                FOR_THE_CHECKS.contains(&kind.name)
                    || TABLES.iter().any(|(name, _)| *name == kind.name),
                "{} has no table",
                kind.name
            );
        }
    }

    #[test]
    fn a_case_has_the_samples_of_all_boots() {
        let results = results(vec![boot(0, 5), boot(1, 7), boot(2, 9)]);
        assert_eq!(results.cases().len(), 1);
        let iops = results.cases()[0].metrics["iops"];
        assert_eq!((iops.median, iops.samples), (7.0, 3));
        assert!(!results.all_counts_agree());
        let text = results.to_string();
        for line in [
            "linux polled 4096  7.0 (6.0..8.0)   2.0",
            "longshore is missing: left out",
            "WRONG: descriptors: 7, expected 5",
            "counts: 1 agree, 2 do not",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_json_can_be_read_back() {
        let value = serde_json::to_value(results(vec![boot(0, 5)])).unwrap();
        assert_eq!(value["cases"][0]["metrics"]["iops"]["median"], 5.0);
        assert_eq!(value["cases"][0]["keys"]["mode"], "polled");
        assert_eq!(value["systems"]["longshore"]["missing"], "left out");
        assert_eq!(value["targets"][0]["met"], false);
        assert!(value["targets"][0]["ratio"].is_null());
        assert_eq!(value["checks_passed"], 1);
    }
}
