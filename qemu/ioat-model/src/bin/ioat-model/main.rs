//! `ioat-model`: one I/OAT engine, served over vfio-user to one client.
//!
//! The engine is the library of this package; here it gets a transport. The main thread answers
//! the client, the engine's channels copy in threads of their own, and one thread waits for
//! signals.

#![forbid(unsafe_code)]

mod backend;
mod dma_messages;
mod guest_ram;
mod interrupts;
mod neighbours;
mod options;
mod remote_ram;
mod report;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ioat_model::{Engine, GuestMemory, Irq};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use vfio_user::Server;

use crate::backend::Backend;
use crate::dma_messages::interpose;
use crate::guest_ram::GuestRam;
use crate::interrupts::Interrupts;
use crate::options::Options;
use crate::remote_ram::RemoteRam;

/// For how long an engine whose client is gone goes on straying.
const STRAYS_LIMIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let options = Options::from_command_line();
    report::start_log(options.log);
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ioat-model: {message}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options) -> Result<(), String> {
    let socket = options.socket.clone();
    clear_socket(&socket)?;
    let config = options.engine();
    let vectors = match config.irq {
        Irq::Msi => 1,
        Irq::MsiX => config.channels,
        Irq::Intx => 0,
    };
    let irq = config.irq;
    let silent = options.silent();
    let sends_messages = options.sends_messages();
    let ram = Arc::new(GuestRam::default());
    let remote = options.dma_by_messages().then(Arc::<RemoteRam>::default);
    let memory: Arc<dyn GuestMemory> = match &remote {
        Some(remote) => remote.clone(),
        None => ram.clone(),
    };
    let interrupts = Arc::new(Interrupts::new(irq, vectors));
    let engine =
        Engine::new(config, memory, interrupts.clone()).map_err(|error| error.to_string())?;
    if let Some(path) = options.iovas.clone() {
        neighbours::tell(path, ram.clone()).map_err(|error| error.to_string())?;
    }
    if let Some(path) = options.foreign.clone() {
        neighbours::listen(path, engine.clone()).map_err(|error| error.to_string())?;
    }
    let ending = Ending {
        engine: engine.clone(),
        options: Arc::new(options),
    };
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", socket.display());
    if silent {
        let listener = UnixListener::bind(&socket).map_err(|error| failed(&error))?;
        watch_signals(ending.clone())?;
        let held = hold(&listener).map_err(|error| failed(&error));
        ending.finish();
        return held;
    }
    let regions = backend::regions(engine.bar_len());
    let irqs = backend::irqs(irq, vectors);
    let server = if sends_messages {
        let listener = UnixListener::bind(&socket).map_err(|error| failed(&error))?;
        watch_signals(ending.clone())?;
        let (requester, commands) = listener
            .accept()
            .and_then(|(client, _)| interpose(client))
            .map_err(|error| failed(&error))?;
        engine.set_requests(Arc::new(requester.clone()));
        if let Some(remote) = &remote {
            remote.connect(requester);
        }
        Server::from_owned_fd(commands, true, irqs, regions)
    } else {
        let server = Server::new(&socket, true, irqs, regions).map_err(|error| failed(&error))?;
        watch_signals(ending.clone())?;
        server
    };
    let mut backend = Backend {
        engine,
        ram,
        interrupts,
    };
    // The crate takes some malformed requests for its own mistakes and panics.
    let served = catch_unwind(AssertUnwindSafe(|| server.run(&mut backend)));
    match served {
        Ok(Ok(())) => log::info!("the client has disconnected"),
        Ok(Err(error)) => log::info!("the connection broke: {error}"),
        Err(_) => log::error!("the client does not speak vfio-user"),
    }
    // What was lent is given back, whether it was asked for or not.
    backend.ram.withdraw_all();
    backend.engine.withdraw_all();
    backend.engine.unplug(STRAYS_LIMIT);
    ending.finish();
    Ok(())
}

/// Removes a socket that nobody serves any more.
fn clear_socket(path: &Path) -> Result<(), String> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{shown}: {error}")),
        Ok(found) if !found.file_type().is_socket() => {
            Err(format!("{shown}: exists, and is not a socket"))
        }
        Ok(_) if is_served(path) => Err(format!("{shown}: another process serves it")),
        Ok(_) => fs::remove_file(path).map_err(|error| format!("{shown}: {error}")),
    }
}

/// Whether a process has a socket by this path. Asks the kernel's table: a connection would use up
/// the one client that an engine serves.
fn is_served(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let path = path.to_string_lossy();
    // A line ends in the path, after the inode number and a space.
    table
        .lines()
        .filter_map(|line| line.strip_suffix(&*path))
        .any(|before| before.ends_with(' '))
}

/// Takes one connection and answers nothing, until it closes.
fn hold(listener: &UnixListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes)? > 0 {}
    Ok(())
}

/// What is left to do at the end, whoever brings it about.
#[derive(Clone)]
struct Ending {
    engine: Arc<Engine>,
    options: Arc<Options>,
}

impl Ending {
    fn finish(&self) {
        self.engine.shutdown();
        if let Some(path) = &self.options.stats
            && let Err(error) = report::write_statistics(&self.engine, path)
        {
            eprintln!("ioat-model: {}: {error}", path.display());
        }
        // It may be gone already, and that is as well.
        let _ = fs::remove_file(&self.options.socket);
    }
}

fn watch_signals(ending: Ending) -> Result<(), String> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGUSR2])
        .map_err(|error| format!("signals: {error}"))?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                match signal {
                    SIGUSR1 => {
                        ending.engine.vanish();
                        log::info!("the engine is gone");
                    }
                    SIGUSR2 => {
                        ending.engine.freeze();
                        log::info!("the engine freezes");
                    }
                    _ => {
                        ending.finish();
                        std::process::exit(0);
                    }
                }
            }
        })
        .map(drop)
        .map_err(|error| format!("signals: {error}"))
}
