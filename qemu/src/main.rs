//! The launcher's subcommands. Variables come from the environment, as make exports them.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use longshore_qemu::bench::{self, plan::Plan};
use longshore_qemu::child::{self, Spawner};
use longshore_qemu::demo;
use longshore_qemu::failure::{Context, Failure};
use longshore_qemu::hotplug::{How, Running};
use longshore_qemu::iso;
use longshore_qemu::run::{self, Place};
use longshore_qemu::run_dir::RunDir;
use longshore_qemu::session;
use longshore_qemu::settings::Settings;
use longshore_qemu::source_lines::SourceLines;
use longshore_qemu::{suite, symbols};

const USAGE: &str = "\
longshore-qemu COMMAND, variables as for make (see `make help`):
  settings             checks the variables
  run                  starts engines and QEMU; RUN_DIR=build/run
  debug                as run, stopped for gdb on port GDB=1234
  hot-remove           DEV=ioat0: presses the attention button
  hot-add              DEV=ioat0: a new engine in the same slot
  yank                 DEV=ioat0 HOW=kill|power|allones|freeze: the engine vanishes
  iso                  makes build/longshore.iso of KERNEL=build/longshore.elf
  symbols ELF          puts the symbol table into a linked kernel
  symbolise ADDRESS…   names functions and source lines; KERNEL=build/longshore.elf
  bench                measures, Linux beside it; SHORT=1: less than two minutes
  demo                 engines leave while they copy, told as it happens; RUN_DIR=build/run
  test                 runs all tests; SKIPS=0 of them may be skipped";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("longshore: {failure}");
            }
            ExitCode::from(failure.status)
        }
    }
}

fn dispatch(args: &[String]) -> Result<u8, Failure> {
    let (command, rest) = args.split_first().ok_or_else(|| Failure::usage(USAGE))?;
    match (command.as_str(), rest) {
        (child::EXEC, rest) => Err(child::exec(rest)),
        ("settings", []) => read_settings().map(|_| 0),
        ("run" | "debug", []) => start(command == "debug"),
        ("hot-remove", []) => {
            let seconds = running()?.remove()?;
            println!("{} removed after {seconds:.1} s", device());
            Ok(0)
        }
        ("hot-add", []) => {
            running()?.add()?;
            println!("{} added", device());
            Ok(0)
        }
        ("yank", []) => yank(),
        ("iso", []) => {
            let root = enter_root()?;
            println!("{}", iso::make(&root, &kernel())?);
            Ok(0)
        }
        ("symbols", [elf]) => {
            println!("{}", symbols::embed(Path::new(elf))?);
            Ok(0)
        }
        ("symbolise", addresses) if !addresses.is_empty() => symbolise(addresses),
        ("bench", []) => benchmark(),
        ("demo", []) => tour(),
        ("test", []) => test(),
        ("help" | "--help" | "-h", _) => {
            println!("{USAGE}");
            Ok(0)
        }
        _ => Err(Failure::usage(format!(
            "unknown command {:?}, see `longshore-qemu help`",
            args.join(" ")
        ))),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn variable_or(name: &str, default: &str) -> String {
    variable(name)
        .filter(|value| !value.is_empty())
        .unwrap_or_else(|| default.into())
}

fn read_settings() -> Result<Settings, Failure> {
    Settings::from_variables(variable)
}

/// The repository that we stand in, or the one that this program was built from.
fn root() -> PathBuf {
    let marks =
        |dir: &&Path| dir.join("linker.ld").is_file() && dir.join("qemu/get-qemu.sh").is_file();
    let here = std::env::current_dir().unwrap_or_default();
    let built = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."));
    here.ancestors().find(marks).unwrap_or(built).to_path_buf()
}

/// Goes to the repository: paths of images, engines and the run directory are relative to it.
fn enter_root() -> Result<PathBuf, Failure> {
    let root = root();
    std::env::set_current_dir(&root).context(root.display())?;
    Ok(root)
}

fn run_dir() -> RunDir {
    RunDir::new(variable_or("RUN_DIR", "build/run"))
}

fn start(for_gdb: bool) -> Result<u8, Failure> {
    let settings = read_settings()?;
    let root = enter_root()?;
    let launcher = std::env::current_exe().context("this program's path")?;
    let place = Place {
        root: &root,
        run_dir: run_dir(),
        spawner: Spawner::new(launcher),
        engine: Path::new("build/ioat-model"),
    };
    run::run(&place, &settings, for_gdb)
}

fn device() -> String {
    variable_or("DEV", "ioat0")
}

fn running() -> Result<Running, Failure> {
    enter_root()?;
    Running::find(&run_dir(), &device())
}

fn yank() -> Result<u8, Failure> {
    let name = variable_or("HOW", "kill");
    let how = match name.as_str() {
        "kill" => How::Kill,
        "power" => How::Power,
        "allones" => How::AllOnes,
        "freeze" => How::Freeze,
        _ => {
            return Err(Failure::usage(format!(
                "HOW={name}: wants kill, power, allones, freeze"
            )));
        }
    };
    running()?.yank(how)?;
    println!("{} yanked ({name})", device());
    Ok(0)
}

fn kernel() -> String {
    variable_or("KERNEL", "build/longshore.elf")
}

fn symbolise(addresses: &[String]) -> Result<u8, Failure> {
    let root = enter_root()?;
    let lines = SourceLines::load(Path::new(&kernel()), &root)?;
    for text in addresses {
        let hex = text.strip_prefix("0x").unwrap_or(text);
        let address = u64::from_str_radix(hex, 16)
            .map_err(|_| Failure::usage(format!("{text:?} is no hexadecimal address")))?;
        let function = lines.function(address).unwrap_or_else(|| "?".into());
        let place = lines.find(address).unwrap_or_else(|| "?".into());
        println!("{address:#018x} {function}  ({place})");
    }
    Ok(0)
}

fn benchmark() -> Result<u8, Failure> {
    let settings = read_settings()?;
    if settings.commands.is_some() {
        return Err(Failure::usage("CMD=…: bench has commands of its own"));
    }
    let plan = match variable_or("SHORT", "0").as_str() {
        "0" => Plan::full(),
        "1" => Plan::short(),
        other => return Err(Failure::usage(format!("SHORT={other}: wants 0, 1"))),
    };
    let place = bench::Place {
        root: enter_root()?,
        launcher: std::env::current_exe().context("this program's path")?,
        engine: "build/ioat-model".into(),
        out: "build/bench".into(),
    };
    bench::run(&place, &settings, &plan)
}

fn tour() -> Result<u8, Failure> {
    let settings = read_settings()?;
    let place = session::Place {
        root: enter_root()?,
        launcher: std::env::current_exe().context("this program's path")?,
        run_dir: run_dir(),
    };
    demo::run(&place, &settings)
}

fn test() -> Result<u8, Failure> {
    let skips = variable_or("SKIPS", "0");
    let skips = skips
        .parse()
        .map_err(|_| Failure::usage(format!("SKIPS={skips}: wants a number")))?;
    let root = enter_root()?;
    Ok(if suite::run(&root, skips)? { 0 } else { 1 })
}
