//! A boot of Longshore: the launcher's own `run`, as people use it, with the benchmarks as `CMD`.

use std::process::Stdio;

use crate::bench::check::Check;
use crate::bench::detection;
use crate::bench::line::Line;
use crate::bench::plan::Plan;
use crate::bench::{Boot, Place, engine_statistics};
use crate::failure::{Context, Failure};
use crate::run_dir::RunDir;
use crate::settings::Settings;

/// Boots and measures: with engines that stay, with engines that leave, with engines that are confined
/// and not, with engines that vanish. What the machine
/// said is kept where a run that failed is looked for.
pub fn boot(
    place: &Place,
    settings: &Settings,
    plan: &Plan,
    round: usize,
) -> Result<Boot, Failure> {
    let run_dir = RunDir::new(place.out.join("longshore"));
    let mut lines = run(place, &run_dir, &plan.commands(), "off", round)?;
    let engines = (0..settings.engines)
        .map(|engine| engine_statistics(&run_dir.engine_stats(engine)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut checks = Check::all(&lines, &engines);
    let removals = run(place, &run_dir, &plan.removal_commands(), "off", round)?;
    checks.extend(Check::removals(&removals));
    lines.extend(removals);
    for iommu in ["off", "on"] {
        lines.extend(run(place, &run_dir, &plan.iommu_commands(), iommu, round)?);
    }
    let vanished = detection::measure(place)?;
    checks.extend(Check::detections(&vanished));
    lines.extend(vanished);
    Ok(Boot {
        round,
        checks,
        lines,
    })
}

/// What a machine measures with these console commands, its `IOMMU` on or off.
fn run(
    place: &Place,
    run_dir: &RunDir,
    commands: &str,
    iommu: &str,
    round: usize,
) -> Result<Vec<Line>, Failure> {
    let output = place
        .spawner()
        .command(&place.launcher)
        .arg("run")
        .current_dir(&place.root)
        .env("CMD", commands)
        .env("IOMMU", iommu)
        .env("RUN_DIR", run_dir.path())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context("the launcher")?;
    let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Failure::run(format!(
            "round {}: Longshore failed: {said}\n{console}",
            round + 1
        )));
    }
    console
        .lines()
        .filter_map(Line::read)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|bad| Failure::run(bad.to_string()))
}
