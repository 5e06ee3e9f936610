//! This terminal: written to although QEMU has made it non-blocking, and put back as it was.

use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Remembers the terminal on standard input; puts it back when dropped. QEMU does so itself, unless
/// it is killed.
pub struct TerminalState {
    flags: Option<OFlags>,
    termios: Option<Termios>,
}

impl TerminalState {
    /// Takes note of how things are.
    pub fn remember() -> Self {
        let stdin = io::stdin();
        let termios = if isatty(stdin.as_fd()) {
            tcgetattr(stdin.as_fd()).ok()
        } else {
            None
        };
        Self {
            flags: fcntl_getfl(stdin.as_fd()).ok(),
            termios,
        }
    }
}

impl Drop for TerminalState {
    fn drop(&mut self) {
        let stdin = io::stdin();
        if let Some(flags) = self.flags {
            let _ = fcntl_setfl(stdin.as_fd(), flags);
        }
        if let Some(termios) = &self.termios {
            let _ = tcsetattr(stdin.as_fd(), OptionalActions::Now, termios);
        }
    }
}

/// Writes everything at once, also where QEMU has made the terminal that it shares with us
/// non-blocking.
pub fn write_through<W: Write + AsFd>(out: &mut W, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => await_room(out)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    loop {
        match out.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => await_room(out)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn await_room(out: &impl AsFd) -> io::Result<()> {
    poll(&mut [PollFd::new(out, PollFlags::OUT)], None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_full_nonblocking_sink_is_waited_for() {
        let (mut sink, mut source) = UnixStream::pair().unwrap();
        sink.set_nonblocking(true).unwrap();
        let bytes: Vec<u8> = (0..4_000_000u32).map(|n| n as u8).collect();
        let copy = bytes.clone();
        let writer = std::thread::spawn(move || write_through(&mut sink, &copy).unwrap());
        let mut got = Vec::new();
        source.read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        assert!(got == bytes);
    }

    #[test]
    fn a_closed_sink_is_an_error() {
        let (mut sink, source) = UnixStream::pair().unwrap();
        drop(source);
        assert!(write_through(&mut sink, b"x").is_err());
    }
}
