//! Child processes that never outlive the launcher.
//!
//! A child is started through the launcher's own program, which asks the kernel for a SIGTERM when
//! its parent dies and then becomes the child's program ([`exec`]): that request survives execve(2).
//! So nothing is left behind even if the launcher is killed.

use std::ffi::OsStr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

use crate::failure::Failure;

/// The launcher's subcommand behind [`Spawner::command`].
pub const EXEC: &str = "exec-with-parent";

/// Starts children that die with this process.
///
/// The signal is tied to the thread that starts a child: start children from a thread that lives as
/// long as they shall.
#[derive(Clone, Debug)]
pub struct Spawner {
    launcher: PathBuf,
}

impl Spawner {
    /// With the launcher's own program, `longshore-qemu`.
    pub fn new(launcher: impl Into<PathBuf>) -> Self {
        Self {
            launcher: launcher.into(),
        }
    }

    /// A command that will run `program`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.launcher);
        command
            .arg(EXEC)
            .arg(std::process::id().to_string())
            .arg(program);
        command
    }
}

/// The launcher's subcommand: `PARENT PROGRAM ARGUMENTS…`. Returns only on failure.
pub fn exec(args: &[String]) -> Failure {
    let [parent, program, rest @ ..] = args else {
        return Failure::usage(format!("{EXEC} is for the launcher itself"));
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        return Failure::run(format!("cannot tie {program} to the launcher: {error}"));
    }
    // The parent may have died before the request was made.
    if getppid()
        .map(|pid| pid.as_raw_nonzero().get().to_string())
        .as_deref()
        != Some(parent)
    {
        return Failure::run(format!("{program}: the launcher is gone"));
    }
    let error = Command::new(program).args(rest).exec();
    Failure::run(format!("cannot start {program}: {error}"))
}

/// Ends a child: SIGTERM, and SIGKILL if it is still there after `patience`.
pub fn end(child: &mut Child, patience: Duration) -> std::io::Result<ExitStatus> {
    if child.try_wait()?.is_none() {
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if let Some(status) = wait_for(child, patience)? {
            return Ok(status);
        }
        child.kill()?;
    }
    child.wait()
}

/// Waits for a child's end, at most `patience`.
pub fn wait_for(child: &mut Child, patience: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= deadline {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `status 3` or `signal 9`.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_ignores_sigterm_is_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo; while :; do sleep 0.05; done"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Its first output says that the trap is set.
        let mut line = [0u8; 1];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let status = end(&mut child, Duration::from_millis(200)).unwrap();
        assert_eq!(describe(status), "signal 9");
    }

    #[test]
    fn a_child_that_has_ended_keeps_its_status() {
        let mut child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        assert!(
            wait_for(&mut child, Duration::from_secs(10))
                .unwrap()
                .is_some()
        );
        assert_eq!(
            describe(end(&mut child, Duration::ZERO).unwrap()),
            "status 3"
        );
    }

    #[test]
    fn the_subcommand_refuses_strange_parents_and_programs() {
        assert_eq!(exec(&[]).status, 2);
        assert_eq!(exec(&["1x".into(), "true".into()]).status, 1);
    }
}
