//! What the program says: log lines on standard error, statistics in a file.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ioat_model::{Engine, StrayCount};
use log::{LevelFilter, Log, Metadata, Record};

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = record.level().as_str().to_ascii_lowercase();
        // Standard error may be gone, and then there is nobody to tell.
        let _ = writeln!(io::stderr(), "ioat-model: {level}: {}", record.args());
    }

    fn flush(&self) {}
}

/// Lets log lines up to `level` through.
pub(crate) fn start_log(level: LevelFilter) {
    static LOGGER: Logger = Logger;
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

/// Writes what `engine` has counted to `path` as one JSON object, also where the client's leaving and
/// a signal are reported at once: the new file has one writer at a time.
pub(crate) fn write_statistics(engine: &Engine, path: &Path) -> io::Result<()> {
    static WRITER: Mutex<()> = Mutex::new(());
    let _writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner);
    let statistics = engine.statistics();
    let strays = engine.strays();
    let object: serde_json::Map<String, serde_json::Value> = statistics
        .iter()
        .map(|(name, value)| (name.to_string(), value))
        .chain(strays.iter().flat_map(StrayCount::iter))
        .map(|(name, value)| (name, value.into()))
        .collect();
    let mut text = serde_json::to_string_pretty(&object)?;
    text.push('\n');
    replace(path, &text)
}

/// Writes a file that is whole at every moment.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}
