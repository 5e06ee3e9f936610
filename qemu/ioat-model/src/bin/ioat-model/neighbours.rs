//! Engines that know of each other what they may reach: one writes it to a file, another aims there.
//!
//! A line of the file is a range, its start and its end in hex.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use ioat_model::Engine;

use crate::guest_ram::GuestRam;
use crate::report::replace;

/// How often a file is written, if there is something new, and read.
const STEP: Duration = Duration::from_millis(10);

/// Writes what `ram` holds to `path`, for as long as the program runs.
pub(crate) fn tell(path: PathBuf, ram: Arc<GuestRam>) -> io::Result<()> {
    let mut told = None;
    every_step("tell", move || {
        let now = ram.ranges();
        if told.as_ref() != Some(&now) {
            let written = replace(&path, &text(&now));
            written.unwrap_or_else(|error| log::warn!("{}: {error}", path.display()));
            told = Some(now);
        }
    })
}

/// Tells `engine` of the ranges in `path`, for as long as the program runs. There may be no file yet.
pub(crate) fn listen(path: PathBuf, engine: Arc<Engine>) -> io::Result<()> {
    every_step("listen", move || engine.set_foreign(read(&path)))
}

fn every_step(name: &str, mut work: impl FnMut() + Send + 'static) -> io::Result<()> {
    let forever = move || {
        loop {
            work();
            thread::sleep(STEP);
        }
    };
    let thread = thread::Builder::new().name(name.into()).spawn(forever);
    thread.map(drop)
}

fn text(ranges: &[Range<u64>]) -> String {
    let line = |range: &Range<u64>| format!("{:x} {:x}\n", range.start, range.end);
    ranges.iter().map(line).collect()
}

fn read(path: &Path) -> Vec<Range<u64>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(range).collect()
}

fn range(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_once(' ')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    let range = number(start)?..number(end)?;
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_writes_another_reads() {
        let path = std::env::temp_dir().join(format!("ioat-model-iovas-{}", std::process::id()));
        assert_eq!(read(&path), []);
        let ranges = [0x1000..0x3000, 0xffff_f000..u64::MAX];
        replace(&path, &text(&ranges)).unwrap();
        assert_eq!(read(&path), ranges);
        fs::write(&path, "5\n2000 1000\n1 x\n10 20\n30 31").unwrap();
        assert_eq!(read(&path), [0x10..0x20, 0x30..0x31]);
        fs::remove_file(path).unwrap();
    }
}
