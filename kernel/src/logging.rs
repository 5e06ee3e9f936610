//! The log: printed as far as `loglevel=` says, and kept for `dmesg`.

use alloc::string::String;
use core::fmt::Write;

use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;

use crate::time::clock;

/// What is kept for `dmesg`: the newest this many bytes.
const KEPT: usize = 32 << 10;
/// Few lines are longer.
const LINE: usize = 1 << 10;

struct Logger {
    /// Set at boot, before other CPUs run.
    printed: Mutex<LevelFilter>,
    kept: Mutex<String>,
}

static LOGGER: Logger = Logger {
    printed: Mutex::new(LevelFilter::Info),
    kept: Mutex::new(String::new()),
};

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= LevelFilter::Debug || metadata.level() <= *self.printed.lock()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let micros = clock::now_ns() / 1000;
        let level = match record.level() {
            log::Level::Error => "error",
            log::Level::Warn => "warn",
            log::Level::Info => "info",
            log::Level::Debug => "debug",
            log::Level::Trace => "trace",
        };
        let mut line = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            line,
            "[{:5}.{:06}] {level} {}: {}",
            micros / 1_000_000,
            micros % 1_000_000,
            record.target(),
            record.args()
        );
        if record.level() <= *self.printed.lock() {
            // Whoever tests for the absence of warnings looks at the start of lines.
            if let Some((_, warning)) = line.split_once(": WARN ") {
                crate::print!("WARN {warning}");
            }
            crate::print!("{line}");
        }
        let mut kept = self.kept.lock();
        kept.push_str(&line);
        if kept.len() > KEPT {
            let excess = kept.len() - KEPT;
            let cut = kept.as_bytes()[excess..]
                .iter()
                .position(|&byte| byte == b'\n')
                .map_or(kept.len(), |end| excess + end + 1);
            kept.drain(..cut);
        }
    }

    fn flush(&self) {}
}

/// Starts logging. Once the heap is there.
pub fn init(printed: LevelFilter) {
    *LOGGER.printed.lock() = printed;
    // At once: what grows by and by looks like a leak.
    LOGGER.kept.lock().reserve(KEPT + LINE);
    // A second call, which there is not, would find the logger set.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(printed.max(LevelFilter::Debug));
}

/// What is kept.
pub fn kept() -> String {
    LOGGER.kept.lock().clone()
}
