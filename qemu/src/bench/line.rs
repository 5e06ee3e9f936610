//! The lines that are measured: `bench: NAME KEY=VALUE…`.
//!
//! Read strictly: what a line of its kind must have it has, each word once, and nothing else. So a
//! field that is misspelt or forgotten on either side is an error, not a gap in a table.

use std::collections::BTreeMap;
use std::fmt;

/// What a kind of line says.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// What tells cases apart, in the order in which tables show it.
    pub keys: &'static [&'static str],
    /// What is measured: numbers.
    pub metrics: &'static [&'static str],
}

/// The counts that the kernel prints with everything that it measures.
macro_rules! with_counts {
    ($($metric:literal),*) => {
        &[$($metric,)* "mmio_reads", "mmio_writes", "doorbells", "irqs", "wakes", "timers", "allocs"]
    };
}

/// Every kind of line that Longshore prints, and the one made of dmatest's.
pub static KINDS: &[Kind] = &[
    Kind {
        name: "copy",
        keys: &["via", "mode", "size", "batch", "channels"],
        metrics: with_counts!(
            "iops",
            "KB/s",
            "tsc_per_op",
            "mmio_per_op",
            "irq_per_op",
            "allocs_per_op",
            "ops",
            "batches",
            "ns"
        ),
    },
    Kind {
        name: "steps",
        keys: &["via", "mode", "batch"],
        metrics: &["insns_per_op", "locked_per_op"],
    },
    Kind {
        name: "claimed",
        keys: &["by", "via"],
        metrics: &["ops", "starts"],
    },
    Kind {
        name: "find",
        keys: &["by", "cpus"],
        metrics: with_counts!(
            "tsc_per_pair",
            "tsc_per_pair_max",
            "insns_per_pair",
            "locked_per_pair",
            "pairs",
            "found"
        ),
    },
    Kind {
        name: "removal",
        keys: &["case"],
        metrics: &["us", "ring_us", "inflight", "failed_over", "cpu", "lost"],
    },
    Kind {
        name: "detection",
        keys: &["how"],
        metrics: &["known_us", "us", "inflight", "failed_over", "cpu", "lost"],
    },
    Kind {
        name: "wake",
        keys: &["cpu"],
        metrics: with_counts!("ns", "ns_most", "signals"),
    },
    Kind {
        name: "resv",
        keys: &["buffers", "cpus"],
        metrics: with_counts!("ns_per_ticket", "tickets", "retries", "allocs_within"),
    },
    Kind {
        name: "pipeline",
        keys: &["via", "size"],
        metrics: with_counts!("fps", "frames", "ns"),
    },
    Kind {
        name: "mapping",
        keys: &["bytes"],
        metrics: &["map_ns", "unmap_ns", "maps"],
    },
    Kind {
        name: "confined",
        keys: &["iommu", "size"],
        metrics: &["iops", "KB/s", "ops", "ns"],
    },
    Kind {
        name: "totals",
        keys: &[],
        metrics: with_counts!(),
    },
    Kind {
        name: "dmatest",
        keys: &["mode", "size"],
        metrics: &["iops", "KB/s", "ops"],
    },
];

/// A line that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What kind of line.
    pub kind: &'static Kind,
    keys: BTreeMap<&'static str, String>,
    metrics: BTreeMap<&'static str, f64>,
}

impl Line {
    /// Reads a line. `None` where it is somebody else's.
    pub fn read(line: &str) -> Option<Result<Self, BadLine>> {
        let words = line.trim_end().strip_prefix("bench: ")?;
        Some(Self::parse(words).map_err(|what| BadLine {
            line: line.trim_end().into(),
            what,
        }))
    }

    /// Reads `NAME KEY=VALUE…`. The error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split(' ');
        let name = words.next().unwrap_or_default();
        let kind = KINDS
            .iter()
            .find(|kind| kind.name == name)
            .ok_or_else(|| format!("no kind of line is called {name:?}"))?;
        let mut line = Self {
            kind,
            keys: BTreeMap::new(),
            metrics: BTreeMap::new(),
        };
        for word in words {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| format!("{word:?} is no KEY=VALUE"))?;
            let known = |names: &[&'static str]| names.iter().copied().find(|known| *known == name);
            let twice = if let Some(name) = known(kind.keys) {
                line.keys.insert(name, value.into()).is_some()
            } else if let Some(name) = known(kind.metrics) {
                let number = number(value).ok_or_else(|| format!("{word:?} is no number"))?;
                line.metrics.insert(name, number).is_some()
            } else {
                return Err(format!("{name:?} is unknown"));
            };
            if twice {
                return Err(format!("{name:?} twice"));
            }
        }
        let missing =
            |name: &&&str| !line.keys.contains_key(**name) && !line.metrics.contains_key(**name);
        match kind.keys.iter().chain(kind.metrics).find(missing) {
            Some(name) => Err(format!("{name:?} is missing")),
            None => Ok(line),
        }
    }

    /// What tells its case apart, in order.
    pub fn case(&self) -> Vec<&str> {
        let names = self.kind.keys.iter();
        names.map(|name| self.key(name)).collect()
    }

    /// A key's value; empty where the kind has no such key.
    pub fn key(&self, name: &str) -> &str {
        self.keys.get(name).map_or("", String::as_str)
    }

    /// A metric; not a number where the kind has no such metric.
    pub fn metric(&self, name: &str) -> f64 {
        self.metrics.get(name).copied().unwrap_or(f64::NAN)
    }

    /// A metric that counts.
    pub fn count(&self, name: &str) -> u64 {
        self.metric(name) as u64
    }
}

/// Digits, perhaps with a decimal point inside: no sign, no exponent, no `inf`.
fn number(text: &str) -> Option<f64> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let plain = match text.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => digits(text),
    };
    plain.then(|| text.parse().ok()).flatten()
}

/// A line that begins like one of ours and is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// The line.
    pub line: String,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed line, {}: {}", self.what, self.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIND: &str = "find by=table cpus=4 tsc_per_pair=5.2500 tsc_per_pair_max=6 \
                        insns_per_pair=13 locked_per_pair=0 pairs=4000 \
                        found=4000 mmio_reads=0 mmio_writes=0 doorbells=0 irqs=1 wakes=3 timers=0 \
                        allocs=12";

    #[test]
    fn a_line_is_read_in_any_order_of_its_words() {
        let line = Line::read(&format!("bench: {FIND}\r\n")).unwrap().unwrap();
        assert_eq!((line.kind.name, line.case()), ("find", vec!["table", "4"]));
        assert_eq!(line.metric("tsc_per_pair"), 5.25);
        assert_eq!((line.count("allocs"), line.key("by")), (12, "table"));
        let mut words: Vec<&str> = FIND.split(' ').skip(1).collect();
        words.reverse();
        let turned = Line::parse(&format!("find {}", words.join(" "))).unwrap();
        assert_eq!(turned, line);
        assert!(Line::read("info bench: nothing").is_none());
        assert!(line.metric("iops").is_nan());
    }

    #[test]
    fn what_is_malformed_is_an_error() {
        for (from, to, says) in [
            ("find", "fund", "no kind"),
            ("find ", "", "no kind"),
            ("by=table", "by", "KEY=VALUE"),
            ("cpus=4", "cpus=4 cpus=4", "twice"),
            ("cpus=4 ", "", "missing"),
            (" allocs=12", "", "missing"),
            ("allocs=12", " allocs=12", "KEY=VALUE"),
            ("allocs=12", "allocations=12", "unknown"),
            ("pairs=4000", "pairs=", "no number"),
            ("pairs=4000", "pairs=-1", "no number"),
            ("pairs=4000", "pairs=inf", "no number"),
            ("pairs=4000", "pairs=4e3", "no number"),
            ("pairs=4000", "pairs=4.", "no number"),
        ] {
            let line = format!("bench: {}", FIND.replacen(from, to, 1));
            let bad = Line::read(&line).unwrap().unwrap_err();
            assert!(bad.what.contains(says), "{line}: {bad}");
        }
    }
}
