//! Which QEMU: the work is done by `qemu/get-qemu.sh`, which people can use by itself too, as the
//! other scripts that find or fetch what a machine has not.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::{Context, Failure};

/// Finds, or fetches, a QEMU that has vfio-user; `chosen` is `QEMU=`.
pub fn find(root: &Path, chosen: Option<&str>) -> Result<PathBuf, Failure> {
    let chosen = ("QEMU", chosen.unwrap_or_default());
    let path = script_output(&root.join("qemu/get-qemu.sh"), &[chosen])?;
    Ok(PathBuf::from(path.trim_end()))
}

/// What a script prints; where it fails it has said why.
pub(crate) fn script_output(script: &Path, variables: &[(&str, &str)]) -> Result<String, Failure> {
    let output = Command::new(script)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context(script.display())?;
    if !output.status.success() {
        return Err(Failure::told(
            output
                .status
                .code()
                .and_then(|n| u8::try_from(n).ok())
                .unwrap_or(1),
        ));
    }
    String::from_utf8(output.stdout).context(script.display())
}

/// Refuses a CPU model that this QEMU does not have.
pub(crate) fn check_cpu(qemu: &Path, model: &str) -> Result<(), Failure> {
    let output = Command::new(qemu)
        .args(["-cpu", "help"])
        .stdin(Stdio::null())
        .output()
        .context(qemu.display())?;
    let known = String::from_utf8_lossy(&output.stdout);
    // Models come first, one a line; the flags behind them are no models.
    let models = known.split("CPUID flags").next().unwrap_or_default();
    let mut names = models.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let first = words.next()?;
        if first == "x86" {
            words.next()
        } else {
            Some(first)
        }
    });
    if names.any(|name| name == model) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "CPU={model}: QEMU knows no such model, see `{} -cpu help`",
        qemu.display()
    )))
}
