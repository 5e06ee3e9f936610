//! What a program has printed so far.

use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A program's output.
#[derive(Default)]
pub struct Transcript {
    text: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

impl Transcript {
    /// Reads `source` to its end, in a thread of its own.
    pub fn follow(source: Option<impl Read + Send + 'static>) -> Arc<Self> {
        let transcript = Arc::new(Self::default());
        let Some(mut source) = source else {
            return transcript;
        };
        let writer = transcript.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = source.read(&mut buffer) {
                writer.lock().0.extend_from_slice(&buffer[..len]);
                writer.more.notify_all();
            }
            writer.lock().1 = true;
            writer.more.notify_all();
        });
        transcript
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it, without carriage returns.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().0).replace('\r', "")
    }

    /// Part of it, without carriage returns.
    pub fn part(&self, range: Range<usize>) -> String {
        let text = self.lock();
        let part = text.0.get(range).unwrap_or_default();
        String::from_utf8_lossy(part).replace('\r', "")
    }

    /// How much has been printed so far, in bytes.
    pub fn printed(&self) -> usize {
        self.lock().0.len()
    }

    /// Where `wanted` ends, looked for from `from` on; nothing when time or text ends before.
    pub fn find(&self, wanted: &[u8], from: usize, patience: Duration) -> Option<usize> {
        let deadline = Instant::now() + patience;
        let mut text = self.lock();
        loop {
            let found = text.0[from..]
                .windows(wanted.len())
                .position(|window| window == wanted);
            if let Some(at) = found {
                return Some(from + at + wanted.len());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || text.1 {
                return None;
            }
            text = self
                .more
                .wait_timeout(text, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until the program prints no more.
    pub fn await_end(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut text = self.lock();
        while !text.1 && Instant::now() < deadline {
            let tick = Duration::from_millis(100);
            text = self
                .more
                .wait_timeout(text, tick)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
