//! Which QEMU: the work is done by `qemu/get-qemu.sh`, which people can use by itself too.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::{Context, Failure};

/// Finds, or fetches, a QEMU that has vfio-user; `chosen` is `QEMU=`.
pub fn find(root: &Path, chosen: Option<&str>) -> Result<PathBuf, Failure> {
    let script = root.join("qemu/get-qemu.sh");
    let output = Command::new(&script)
        .env("QEMU", chosen.unwrap_or_default())
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
    let path = String::from_utf8(output.stdout).context(script.display())?;
    Ok(PathBuf::from(path.trim_end()))
}
