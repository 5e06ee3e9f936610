//! The peer: Debian's Linux with its own driver and its own dmatest, on the same engine.
//!
//! dmatest copies one buffer after the other, polling or by interrupt; it has no batches. It runs
//! with verification off, so that its time is that of the operations and their mapping.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::bench::check::Check;
use crate::bench::line::Line;
use crate::bench::plan::Plan;
use crate::bench::{Boot, Place};
use crate::failure::Failure;
use crate::linux::{Errand, Host, Linux};
use crate::run_dir::RunDir;
use crate::settings::Settings;

/// How long a boot may take on top of what it measures.
const PATIENCE: Duration = Duration::from_secs(180);
/// How its lines begin, in the script's and in dmatest's words.
const CASE: &str = "bench-case: ";
const SUMMARY: &str = ": summary ";

/// What runs one case: mode, size, copies.
const FUNCTIONS: &str = r#"
P=/sys/module/dmatest/parameters
set_to() { echo $2 >$P/$1; }
set_to noverify 1
set_to norandom 1
set_to timeout 10000
set_to threads_per_chan 1
dmatest_case() {
    case $1 in polled) set_to polled 1 ;; *) set_to polled 0 ;; esac
    set_to test_buf_size $2
    set_to iterations $3
    echo "bench-case: mode=$1 size=$2 ops=$3"
    set_to channel dma0chan0
    set_to run 1
    $B cat $P/wait >/dev/null
    set_to run 0
}
"#;

/// Linux, and its dmatest.
#[derive(Clone, Debug)]
pub struct Peer {
    linux: Linux,
    dmatest: PathBuf,
}

impl Peer {
    /// Finds both, fetching and building what is missing. The error is one line: why there is none.
    pub fn find(root: &Path) -> Result<Self, String> {
        let linux = Linux::find(root)?;
        let script = root.join("qemu/linux/get-dmatest.sh");
        let output = Command::new(&script)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("{}: {error}", script.display()))?;
        let last = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.trim_end()
                .lines()
                .last()
                .unwrap_or_default()
                .to_string()
        };
        match output.status.success() {
            true => Ok(Self {
                linux,
                dmatest: last(&output.stdout).into(),
            }),
            false => Err(last(&output.stderr)),
        }
    }

    /// The kernel's release.
    pub fn version(&self) -> String {
        self.linux.version()
    }

    /// Boots once and measures.
    pub fn boot(
        &self,
        place: &Place,
        qemu: &Path,
        settings: &Settings,
        plan: &Plan,
        round: usize,
    ) -> Result<Boot, Failure> {
        let errand = Errand {
            script: script(plan),
            modules: vec![self.dmatest.clone()],
        };
        let run_dir = RunDir::new(place.out.join("linux"));
        let console = self.linux.boot(
            Host {
                qemu,
                engine: &place.engine,
                spawner: &place.spawner(),
                run_dir: &run_dir,
            },
            settings,
            &errand,
            PATIENCE,
        )?;
        let lines = read(&console).map_err(|what| {
            Failure::run(format!("round {}: Linux: {what}\n{console}", round + 1))
        })?;
        let expected = plan.repeat as usize * 2 * plan.sizes.len();
        let measured = Check {
            what: "cases that Linux has measured".into(),
            expected: expected as u64,
            counted: lines.len() as u64,
        };
        Ok(Boot {
            round,
            lines,
            checks: vec![measured],
        })
    }
}

/// The shell commands of a boot.
fn script(plan: &Plan) -> String {
    let mut script = FUNCTIONS.to_string();
    for _ in 0..plan.repeat {
        for mode in ["polled", "irq"] {
            for &size in &plan.sizes {
                let copies = copies(plan, mode, size);
                script.push_str(&format!("dmatest_case {mode} {size} {copies}\n"));
            }
        }
    }
    script
}

/// dmatest counts copies, not time: about as many as it makes in a case's time where nothing else
/// runs on the host.
fn copies(plan: &Plan, mode: &str, size: u32) -> u32 {
    let in_a_second = match mode {
        "polled" if size <= 16384 => 60_000,
        "polled" => 20_000,
        _ => 10_000,
    };
    (in_a_second / 1000 * plan.ms).max(100)
}

/// The lines of a boot's console. The error says what is wrong.
fn read(console: &str) -> Result<Vec<Line>, String> {
    let mut case = None;
    let mut lines = Vec::new();
    for line in console.lines() {
        if let Some((_, words)) = line.split_once(CASE) {
            case = Some(words);
        } else if let Some((_, summary)) = line.split_once(SUMMARY) {
            let case = case.take().ok_or("a summary without a case")?;
            let (tests, rates) =
                summary_of(summary).ok_or_else(|| format!("no summary: {line}"))?;
            let measured = Line::parse(&format!("dmatest {case} {rates}"))?;
            if measured.count("ops") != tests {
                return Err(format!("{tests} copies for {case}"));
            }
            lines.push(measured);
        }
    }
    Ok(lines)
}

/// `5000 tests, 0 failures 61538.02 iops 246152 KB/s (0)`: how many, and the rates in our words.
/// `None` where it says something else, a failure for one.
fn summary_of(text: &str) -> Option<(u64, String)> {
    let (tests, rest) = text.split_once(" tests, 0 failures ")?;
    let (iops, rest) = rest.split_once(" iops ")?;
    let (kilobytes, result) = rest.split_once(" KB/s ")?;
    let tests = tests.parse().ok()?;
    (result.trim_end() == "(0)").then(|| (tests, format!("iops={iops} KB/s={kilobytes}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "\
[    4.1] ioatdma: Intel(R) QuickData Technology Driver 5.00
bench-case: mode=polled size=4096 ops=5000
[    5.0] dmatest: No channels configured, continue with any
[    5.1] dmatest: Added 1 threads using dma0chan0
[    5.2] dmatest: dma0chan0-copy0: summary 5000 tests, 0 failures 61538.02 iops 246152 KB/s (0)
bench-case: mode=irq size=65536 ops=100
[    5.9] dmatest: dma0chan0-copy0: summary 100 tests, 0 failures 8000 iops 512000 KB/s (0)
";

    #[test]
    fn summaries_are_read_with_their_cases() {
        let lines = read(CONSOLE).unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].case(), ["polled", "4096"]);
        assert_eq!(lines[0].metric("iops"), 61538.02);
        assert_eq!(lines[1].case(), ["irq", "65536"]);
        assert_eq!(
            (lines[1].count("KB/s"), lines[1].count("ops")),
            (512_000, 100)
        );
    }

    #[test]
    fn failures_and_strays_are_errors() {
        for (from, to) in [
            ("0 failures 61538", "1 failures 61538"),
            ("KB/s (0)", "KB/s (-110)"),
            ("bench-case: mode=irq size=65536 ops=100\n", ""),
            ("ops=5000", "ops=5001"),
            ("mode=irq", "mood=irq"),
            ("8000 iops", "fast iops"),
        ] {
            assert!(CONSOLE.contains(from));
            assert!(read(&CONSOLE.replacen(from, to, 1)).is_err(), "{to}");
        }
    }

    #[test]
    fn the_script_runs_each_case_as_often_as_planned() {
        let plan = Plan {
            repeat: 3,
            ..Plan::tiny()
        };
        let script = script(&plan);
        assert_eq!(script.matches("\ndmatest_case ").count(), 3 * 2 * 2);
        assert!(script.contains("\ndmatest_case polled 4096 300\n"));
        assert!(script.contains("\ndmatest_case irq 65536 100\n"));
    }
}
