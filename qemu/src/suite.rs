//! `make test`: every phase, its output passed through, and one closing line with the sums.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::{Context, Failure};
use crate::firmware;
use crate::qemu;
use crate::scenario::CONFINED;
use crate::tally::Counter;

/// What is run, in this order: name, arguments of cargo.
const PHASES: [(&str, &[&str]); 6] = [
    (
        "machine interface",
        &["test", "--no-fail-fast", "-p", "hal", "--features", "host"],
    ),
    (
        "crates on the host",
        &[
            "test",
            "--no-fail-fast",
            "--workspace",
            "--exclude",
            "longshore-boot",
            "--exclude",
            "hal",
            "--exclude",
            "longshore-qemu",
        ],
    ),
    (
        "reservations that nobody counts",
        &[
            "test",
            "--no-fail-fast",
            "-p",
            "vcm",
            "--no-default-features",
            "--lib",
        ],
    ),
    (
        "launcher",
        &[
            "test",
            "--no-fail-fast",
            "-p",
            "longshore-qemu",
            "--lib",
            "--bins",
        ],
    ),
    // Two machines at a time: more of them on a small machine take longer for each, not less in all.
    (
        "co-simulation and machines",
        &[
            "test",
            "--no-fail-fast",
            "-p",
            "longshore-qemu",
            "--test",
            "*",
            "--",
            "--test-threads=2",
        ],
    ),
    // The same scenarios, each machine with its devices behind an IOMMU.
    (
        CONFINED_PHASE,
        &[
            "test",
            "--no-fail-fast",
            "-p",
            "longshore-qemu",
            "--test",
            "copy",
            "--test",
            "hotplug",
            "--test",
            "removal",
            "--test",
            "slots",
            "--test",
            "soak",
            "--test",
            "yank",
            "--",
            "--test-threads=2",
        ],
    ),
];

const CONFINED_PHASE: &str = "machines with an IOMMU";

/// Runs all phases; true when nothing failed and no more than `allowed_skips` tests were skipped.
pub fn run(root: &Path, allowed_skips: u64) -> Result<bool, Failure> {
    // Fetched once where it is missing: what that says belongs to no test.
    qemu::find(root, std::env::var("QEMU").ok().as_deref())?;
    // Without it tests are skipped, and say so themselves.
    let _ = firmware::fetch(root);
    let mut counter = Counter::default();
    for (name, args) in PHASES {
        say(&format!("== {name}: cargo {}\n", args.join(" ")))?;
        let confined = name == CONFINED_PHASE;
        let success = phase(root, args, confined, &mut counter)?;
        counter.phase_ended(success);
    }
    let tally = counter.tally();
    if tally.skipped > allowed_skips {
        say(&format!(
            "more tests were skipped than SKIPS={allowed_skips} allows\n"
        ))?;
    }
    say(&format!("{tally}\n"))?;
    Ok(tally.failed == 0 && tally.skipped <= allowed_skips)
}

fn phase(
    root: &Path,
    args: &[&str],
    confined: bool,
    counter: &mut Counter,
) -> Result<bool, Failure> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut child = Command::new(cargo)
        .args(args)
        .envs(confined.then_some((CONFINED, "1")))
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = BufReader::new(stdout);
        let mut line = Vec::new();
        while stdout.read_until(b'\n', &mut line).context("cargo")? > 0 {
            let text = String::from_utf8_lossy(&line);
            say(&text)?;
            counter.line(text.trim_end());
            line.clear();
        }
    }
    Ok(child.wait().context("cargo")?.success())
}

fn say(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("standard output")
}
