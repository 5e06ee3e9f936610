//! Requests to a running launcher about its engines, over a socket in the run directory.
//!
//! An engine belongs to the launcher that runs the machine, so that it cannot outlive it; commands
//! such as `make yank` therefore ask. A request is one line, `VERB ioatN`; the answer is one line,
//! `ok` or `error: WHAT`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::engines::Engines;
use crate::failure::{Context, Failure};
use crate::machine::engine_id;

/// What can be asked about an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Start its process anew.
    Start,
    /// End its process; it writes its statistics.
    End,
    /// Kill its process without warning.
    Kill,
    /// Let it answer all reads with ones from now on, counting accesses (SIGUSR1).
    AllOnes,
    /// Let it stop in the middle of what it does, and answer nothing from now on (SIGUSR2).
    Freeze,
    /// Does its process run?
    Alive,
}

const VERBS: [(Verb, &str); 6] = [
    (Verb::Start, "start"),
    (Verb::End, "end"),
    (Verb::Kill, "kill"),
    (Verb::AllOnes, "allones"),
    (Verb::Freeze, "freeze"),
    (Verb::Alive, "alive"),
];

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(20);

/// `ioatN`, as a number.
pub fn parse_engine(text: &str) -> Option<u32> {
    text.strip_prefix("ioat")?.parse().ok()
}

/// Serves requests until the process ends, on a thread of its own.
pub fn serve(socket: &Path, engines: Arc<Mutex<Engines>>) -> Result<(), Failure> {
    let listener = UnixListener::bind(socket).context(socket.display())?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream, &engines);
        }
    });
    Ok(())
}

fn answer(stream: UnixStream, engines: &Mutex<Engines>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    let mut engines = engines.lock().unwrap_or_else(PoisonError::into_inner);
    let result = obey(line.trim(), &mut engines);
    let mut stream = stream;
    match result {
        Ok(()) => writeln!(stream, "ok"),
        Err(failure) => writeln!(stream, "error: {failure}"),
    }
}

fn obey(request: &str, engines: &mut Engines) -> Result<(), Failure> {
    let unknown = || Failure::usage(format!("unknown request {request:?}"));
    let (verb, engine) = request.split_once(' ').ok_or_else(unknown)?;
    let (verb, _) = VERBS
        .into_iter()
        .find(|(_, name)| *name == verb)
        .ok_or_else(unknown)?;
    let engine = parse_engine(engine)
        .filter(|n| *n < engines.count())
        .ok_or_else(unknown)?;
    match verb {
        Verb::Start => engines.restart(engine),
        Verb::End => {
            engines.end(engine);
            Ok(())
        }
        Verb::Kill => engines.kill(engine),
        Verb::AllOnes | Verb::Freeze | Verb::Alive => {
            let id = engine_id(engine);
            let pid = engines.pid(engine).and_then(|pid| i32::try_from(pid).ok());
            let pid = pid.and_then(Pid::from_raw);
            let pid = pid.ok_or_else(|| Failure::run(format!("{id} does not run")))?;
            let signal = match verb {
                Verb::AllOnes => Signal::USR1,
                Verb::Freeze => Signal::USR2,
                _ => return Ok(()),
            };
            kill_process(pid, signal).context(id)
        }
    }
}

/// Asks the launcher that runs a machine.
pub fn ask(socket: &Path, verb: Verb, engine: u32) -> Result<(), Failure> {
    let stream = UnixStream::connect(socket).context(socket.display())?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("launcher")?;
    let name = VERBS
        .into_iter()
        .find(|(known, _)| *known == verb)
        .map_or("", |(_, name)| name);
    writeln!(&stream, "{name} {}", engine_id(engine)).context("launcher")?;
    let mut line = String::new();
    BufReader::new(&stream)
        .read_line(&mut line)
        .context("launcher")?;
    match line.trim() {
        "ok" => Ok(()),
        other => Err(Failure::run(
            other
                .strip_prefix("error: ")
                .unwrap_or("the launcher is gone"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::Spawner;
    use crate::run_dir::RunDir;
    use crate::settings::Settings;

    #[test]
    fn requests_are_answered_and_nonsense_is_refused() {
        let path = std::env::temp_dir().join(format!("longshore-control-{}", std::process::id()));
        let run_dir = RunDir::new(&path);
        run_dir.prepare().unwrap();
        let engines = Engines::new(
            Spawner::new("/nonexistent"),
            Path::new("/nonexistent"),
            &Settings::default(),
            &run_dir,
        );
        serve(&run_dir.control(), Arc::new(Mutex::new(engines))).unwrap();
        let ask = |verb, engine| ask(&run_dir.control(), verb, engine);
        assert_eq!(
            ask(Verb::Alive, 0).unwrap_err().message,
            "ioat0 does not run"
        );
        assert_eq!(
            ask(Verb::Kill, 1).unwrap_err().message,
            "ioat1 does not run"
        );
        assert!(
            ask(Verb::AllOnes, 2)
                .unwrap_err()
                .message
                .contains("unknown request")
        );
        assert!(
            ask(Verb::Start, 0)
                .unwrap_err()
                .message
                .contains("no engine program")
        );
        assert_eq!(ask(Verb::End, 0), Ok(()));
        std::fs::remove_dir_all(&path).unwrap();
    }
}
