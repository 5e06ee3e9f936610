//! `make bench`: Longshore's benchmarks, and Linux's dmatest on the same engine beside them.
//!
//! | module | what |
//! |---|---|
//! | [`plan`] | what is run, and how often |
//! | [`line`] | the lines that machines print, read strictly |
//! | [`longshore`], [`linux`] | a boot of either, and what it measured |
//! | [`detection`] | engines that vanish, and when that is known |
//! | [`statistics`] | medians and their spread |
//! | [`check`] | counts that must agree, and rates that are aimed at |
//! | [`report`] | the table, and `results.json` |
//!
//! Machines share their host with whatever else runs there. So nothing is compared over runs:
//! rounds of both systems alternate, each repeats its cases in turn, and a ratio is taken within
//! its round.

pub mod check;
pub mod detection;
pub mod line;
pub mod linux;
pub mod longshore;
pub mod plan;
pub mod report;
pub mod statistics;

use std::fs;
use std::path::{Path, PathBuf};

use crate::bench::check::{Check, Target};
use crate::bench::linux::Peer;
use crate::bench::plan::Plan;
use crate::bench::report::{Results, System};
use crate::child::Spawner;
use crate::failure::{Context, Failure};
use crate::qemu;
use crate::settings::Settings;

/// Where things are.
#[derive(Clone, Debug)]
pub struct Place {
    /// The repository.
    pub root: PathBuf,
    /// The launcher's own program.
    pub launcher: PathBuf,
    /// The engine's program.
    pub engine: PathBuf,
    /// Where runs and results go, `build/bench`.
    pub out: PathBuf,
}

impl Place {
    /// Starts children.
    fn spawner(&self) -> Spawner {
        Spawner::new(&self.launcher)
    }

    /// The machine-readable results.
    pub fn results(&self) -> PathBuf {
        self.out.join("results.json")
    }
}

/// What one boot of one system has measured.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// Which round it belongs to.
    pub round: usize,
    /// Lines that were measured, in their order.
    pub lines: Vec<line::Line>,
    /// What was compared.
    pub checks: Vec<Check>,
}

/// Runs `plan`, prints the tables, writes the results. The exit status: 0 where all counts agree,
/// whether the rates that are aimed at were reached or not.
pub fn run(place: &Place, settings: &Settings, plan: &Plan) -> Result<u8, Failure> {
    let results = measure(place, settings, plan)?;
    print!("{results}");
    results.write(&place.results())?;
    println!("{}", place.results().display());
    Ok(u8::from(!results.all_counts_agree()))
}

/// Runs `plan`.
pub fn measure(place: &Place, settings: &Settings, plan: &Plan) -> Result<Results, Failure> {
    if settings.engines == 0 {
        return Err(Failure::usage("IOAT=0: the benchmark needs an engine"));
    }
    fs::create_dir_all(&place.out).context(place.out.display())?;
    let qemu = qemu::find(&place.root, settings.qemu.as_deref())?;
    let peer = if plan.linux {
        Peer::find(&place.root)
    } else {
        Err("left out".into())
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        eprintln!("bench: round {} of {}", round + 1, plan.rounds);
        let mut longshore = || {
            ours.push(longshore::boot(place, settings, plan, round)?);
            Ok::<_, Failure>(())
        };
        let mut linux = || {
            if let Ok(peer) = &peer {
                theirs.push(peer.boot(place, &qemu, settings, plan, round)?);
            }
            Ok::<_, Failure>(())
        };
        // Who goes first takes turns.
        if round % 2 == 0 {
            longshore()?;
            linux()?;
        } else {
            linux()?;
            longshore()?;
        }
    }
    let system = |name: &str, version: Result<String, String>, boots| System {
        name: name.into(),
        version,
        boots,
    };
    let ours = system("longshore", Ok(env!("CARGO_PKG_VERSION").into()), ours);
    let theirs = system("linux", peer.map(|peer| peer.version()), theirs);
    let targets = Target::all(&ours, &theirs);
    Ok(Results::new(plan, settings, [ours, theirs], targets))
}

/// An engine's statistics after its end.
fn engine_statistics(path: &Path) -> Result<serde_json::Value, Failure> {
    let text = fs::read(path).context(path.display())?;
    serde_json::from_slice(&text).context(path.display())
}
