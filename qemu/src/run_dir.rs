//! The directory of a running machine: sockets, logs and statistics, by the contract's names.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Context, Failure};

/// A run directory, `build/run` for `make run`.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

/// Longest path of a socket: `sun_path` of unix(7) less the zero byte.
const SOCKET_PATH_LIMIT: usize = 107;

impl RunDir {
    /// Names a directory; makes nothing.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory and removes what an earlier run left that could mislead.
    pub fn prepare(&self) -> Result<(), Failure> {
        fs::create_dir_all(&self.path).context(format!("cannot make {}", self.path.display()))?;
        if self.engine_socket(10).as_os_str().len() > SOCKET_PATH_LIMIT {
            return Err(Failure::run(format!(
                "{}: too long a path for sockets in it",
                self.path.display()
            )));
        }
        let entries = fs::read_dir(&self.path).context(self.path.display())?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if [".sock", ".json", ".log", ".iovas"]
                .iter()
                .any(|end| name.ends_with(end))
            {
                fs::remove_file(entry.path())
                    .context(format!("cannot remove {}", entry.path().display()))?;
            }
        }
        Ok(())
    }

    /// An engine's vfio-user socket.
    pub fn engine_socket(&self, engine: u32) -> PathBuf {
        self.path.join(format!("ioat{engine}.sock"))
    }

    /// An engine's statistics.
    pub fn engine_stats(&self, engine: u32) -> PathBuf {
        self.path.join(format!("ioat{engine}.json"))
    }

    /// What an engine may reach, where others want to know.
    pub fn engine_iovas(&self, engine: u32) -> PathBuf {
        self.path.join(format!("ioat{engine}.iovas"))
    }

    /// What an engine says.
    pub fn engine_log(&self, engine: u32) -> PathBuf {
        self.path.join(format!("ioat{engine}.log"))
    }

    /// QEMU's QMP socket.
    pub fn qmp(&self) -> PathBuf {
        self.path.join("qmp.sock")
    }

    /// The first serial port, where it is a socket.
    pub fn serial(&self) -> PathBuf {
        self.path.join("serial.sock")
    }

    /// The second serial port: machine-read lines.
    pub fn machine(&self) -> PathBuf {
        self.path.join("machine.sock")
    }

    /// Where the launcher takes requests about its engines.
    pub fn control(&self) -> PathBuf {
        self.path.join("launcher.sock")
    }

    /// UEFI's variables, which the machine may write.
    pub fn variables(&self) -> PathBuf {
        self.path.join("variables.fd")
    }

    /// The settings of the running machine.
    pub fn settings(&self) -> PathBuf {
        self.path.join("settings.json")
    }

    /// Held while a machine runs.
    pub fn lock(&self) -> PathBuf {
        self.path.join("lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preparing_removes_leftovers_and_nothing_else() {
        let path = std::env::temp_dir().join(format!("longshore-run-dir-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        for name in ["qmp.sock", "ioat0.json", "ioat0.log", "lock", "notes.txt"] {
            fs::write(path.join(name), "old").unwrap();
        }
        RunDir::new(&path).prepare().unwrap();
        let mut left: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["lock", "notes.txt"]);
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn a_path_too_long_for_sockets_is_said() {
        let path = std::env::temp_dir().join("x".repeat(120));
        let failure = RunDir::new(&path).prepare().unwrap_err();
        assert!(failure.message.contains("too long"), "{failure}");
        let _ = fs::remove_dir(&path);
    }
}
