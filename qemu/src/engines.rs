//! The engines of a machine: processes of `build/ioat-model`, one per vfio-user socket.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::child::{self, Spawner};
use crate::failure::{Context, Failure};
use crate::machine::{engine_id, shell_line};
use crate::run_dir::RunDir;
use crate::settings::Settings;

/// How long an engine may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long an engine may take to write its statistics and end.
const END_LIMIT: Duration = Duration::from_secs(3);

/// All engines of one machine.
pub struct Engines {
    spawner: Spawner,
    program: PathBuf,
    settings: Settings,
    run_dir: RunDir,
    running: Vec<Option<Child>>,
}

impl Engines {
    /// Starts nothing yet. `program` is the engine's, `ENGINE=` in the settings goes before it.
    pub fn new(spawner: Spawner, program: &Path, settings: &Settings, run_dir: &RunDir) -> Self {
        let program = settings
            .engine
            .as_ref()
            .map_or(program.to_path_buf(), PathBuf::from);
        Self {
            spawner,
            program,
            settings: settings.clone(),
            run_dir: run_dir.clone(),
            running: (0..settings.engines).map(|_| None).collect(),
        }
    }

    /// How many engines the machine has.
    pub fn count(&self) -> u32 {
        self.settings.engines
    }

    /// Arguments of one engine.
    pub fn arguments(&self, engine: u32) -> Vec<String> {
        let settings = &self.settings;
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut args = vec!["--socket".into(), text(self.run_dir.engine_socket(engine))];
        args.extend(["--channels".into(), settings.channels.to_string()]);
        args.extend(["--cbver".into(), settings.cbver.clone()]);
        args.extend(["--irq".into(), settings.irq.name().into()]);
        args.extend(["--stats".into(), text(self.run_dir.engine_stats(engine))]);
        // Each knows of the next what that may reach, where one is to go astray there.
        let iovas = |engine| text(self.run_dir.engine_iovas(engine));
        if settings
            .faults
            .iter()
            .any(|(_, spec)| spec.contains(":foreign"))
        {
            args.extend(["--iovas".into(), iovas(engine)]);
            let next = (engine + 1) % settings.engines;
            args.extend(["--foreign".into(), iovas(next)]);
        }
        for fault in settings.faults_of(engine) {
            args.extend(["--fault".into(), fault.into()]);
        }
        args
    }

    /// The command line of one engine, for people.
    pub fn shell_line(&self, engine: u32) -> String {
        shell_line(&self.program.to_string_lossy(), &self.arguments(engine))
    }

    /// Starts all engines and waits until each listens.
    pub fn start_all(&mut self) -> Result<(), Failure> {
        for engine in 0..self.settings.engines {
            self.spawn(engine)?;
        }
        (0..self.settings.engines).try_for_each(|engine| self.await_socket(engine))
    }

    /// Starts one engine anew, ending what is left of its predecessor.
    pub fn restart(&mut self, engine: u32) -> Result<(), Failure> {
        self.end(engine);
        self.spawn(engine)?;
        self.await_socket(engine)
    }

    fn spawn(&mut self, engine: u32) -> Result<(), Failure> {
        let (id, socket) = (engine_id(engine), self.run_dir.engine_socket(engine));
        if !self.program.is_file() {
            return Err(Failure::run(format!(
                "{id}: no engine program {}: run `make build`",
                self.program.display()
            )));
        }
        let _ = fs::remove_file(&socket);
        let log = File::create(self.run_dir.engine_log(engine)).context(&id)?;
        let child = self
            .spawner
            .command(&self.program)
            .args(self.arguments(engine))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context(&id)?)
            .stderr(log)
            .spawn()
            .context(format!("cannot start {id}"))?;
        self.running[engine as usize] = Some(child);
        Ok(())
    }

    fn await_socket(&mut self, engine: u32) -> Result<(), Failure> {
        let (id, socket) = (engine_id(engine), self.run_dir.engine_socket(engine));
        let deadline = Instant::now() + START_LIMIT;
        while !is_listening(&socket) {
            if let Some(status) = self.ended(engine) {
                let said = self.last_words(engine);
                let message = format!("{id} ended with {}: {said}", child::describe(status));
                // The engine's own verdict on its arguments is the verdict on the settings.
                let usage = status.code() == Some(2);
                return Err(if usage {
                    Failure::usage(message)
                } else {
                    Failure::run(message)
                });
            }
            if Instant::now() >= deadline {
                return Err(Failure::run(format!(
                    "{id} does not listen on {} after {} s",
                    socket.display(),
                    START_LIMIT.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The status of an engine that ended by itself.
    pub fn ended(&mut self, engine: u32) -> Option<std::process::ExitStatus> {
        let child = self.running.get_mut(engine as usize)?.as_mut()?;
        child.try_wait().ok().flatten()
    }

    /// The process id of an engine that runs.
    pub fn pid(&mut self, engine: u32) -> Option<u32> {
        if self.ended(engine).is_some() {
            return None;
        }
        self.running.get(engine as usize)?.as_ref().map(Child::id)
    }

    /// Kills an engine without warning: nothing is written, nothing said. It has read all messages
    /// then, if nobody sends more meanwhile.
    pub fn kill(&mut self, engine: u32) -> Result<(), Failure> {
        let id = engine_id(engine);
        let Some(pid) = self.pid(engine) else {
            return Err(Failure::run(format!("{id} does not run")));
        };
        await_sleep(pid);
        if let Some(mut child) = self.running[engine as usize].take() {
            child.kill().context(&id)?;
            child.wait().context(&id)?;
        }
        Ok(())
    }

    /// Ends an engine; it writes its statistics first.
    pub fn end(&mut self, engine: u32) {
        if let Some(mut child) = self.running.get_mut(engine as usize).and_then(Option::take) {
            let _ = child::end(&mut child, END_LIMIT);
        }
    }

    /// Ends all engines; each writes its statistics first.
    pub fn end_all(&mut self) {
        (0..self.settings.engines).for_each(|engine| self.end(engine));
    }

    /// Why an engine ended, by its log: its last `error` line, else its last line.
    pub fn last_words(&self, engine: u32) -> String {
        let log = fs::read(self.run_dir.engine_log(engine)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let mut lines = log
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .rev();
        let error = lines.clone().find(|line| line.starts_with("error"));
        error.or(lines.next()).unwrap_or("no message").into()
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        self.end_all();
    }
}

/// Does some process listen on this socket? Asks the kernel's table, because a connection would use
/// up the one client that an engine serves.
/// Waits until the main thread of a process has been seen asleep several times in a row, for a second
/// at most. An engine's reads messages, and sleeps when there are none.
fn await_sleep(pid: u32) {
    const LOOKS: u32 = 5;
    const STEP: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + Duration::from_secs(1);
    let mut asleep = 0;
    while asleep < LOOKS && Instant::now() < deadline {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat"));
        // proc_pid_stat(5): the state follows the name, which is in parentheses.
        let sleeps = stat.is_ok_and(|stat| {
            let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
            state.is_some_and(|state| state.starts_with('S'))
        });
        asleep = if sleeps { asleep + 1 } else { 0 };
        std::thread::sleep(STEP);
    }
}

fn is_listening(socket: &Path) -> bool {
    fs::read_to_string("/proc/net/unix")
        .is_ok_and(|table| table.lines().any(|line| names_listener(line, socket)))
}

/// A line of /proc/net/unix: `Num RefCount Protocol Flags Type St Inode Path`; a listener has
/// `__SO_ACCEPTCON` (0x10000) in its flags.
fn names_listener(line: &str, socket: &Path) -> bool {
    let mut rest = line;
    let mut field = || {
        let (field, tail) = rest.trim_start().split_once(' ')?;
        rest = tail;
        Some(field)
    };
    let Some(flags) = field().and(field()).and(field()).and_then(|_| field()) else {
        return false;
    };
    let listens = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x10000 != 0);
    let path = field().and(field()).and(field()).map(|_| rest);
    listens && path.is_some_and(|path| Path::new(path) == socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn listening_is_seen_without_connecting() {
        let socket = std::env::temp_dir().join(format!("longshore listen {}", std::process::id()));
        assert!(!is_listening(&socket));
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(is_listening(&socket));
        drop(listener);
        assert!(!is_listening(&socket));
        fs::remove_file(&socket).unwrap();
    }

    #[test]
    fn arguments_follow_the_contract() {
        let settings = Settings {
            faults: vec![(Some(1), "hang@5".into())],
            cbver: "3.3".into(),
            ..Settings::default()
        };
        let run_dir = RunDir::new("build/run");
        let spawner = Spawner::new("longshore-qemu");
        let engines = Engines::new(spawner, Path::new("build/ioat-model"), &settings, &run_dir);
        assert_eq!(
            engines.shell_line(1),
            "build/ioat-model --socket build/run/ioat1.sock --channels 4 --cbver 3.3 --irq msi \
             --stats build/run/ioat1.json --fault hang@5"
        );
        assert!(!engines.shell_line(0).contains("--fault"));
        let settings = Settings {
            faults: vec![(Some(1), "stray@1:foreign".into())],
            ..settings
        };
        let spawner = Spawner::new("longshore-qemu");
        let engines = Engines::new(spawner, Path::new("build/ioat-model"), &settings, &run_dir);
        let lines = [0, 1].map(|engine| engines.shell_line(engine));
        assert!(
            lines[0].ends_with("--iovas build/run/ioat0.iovas --foreign build/run/ioat1.iovas")
        );
        assert!(lines[1].contains("--iovas build/run/ioat1.iovas --foreign build/run/ioat0.iovas"));
    }
}
