//! Printing in pages, where the screen is all that people have: what has left it can be looked for,
//! but not be photographed in one piece, and without a keyboard it is gone.

use core::future::{Future, poll_fn};
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;

use atomic_waker::AtomicWaker;
use hal::time::{Duration, timeout};

use crate::{output, screen, serial};

/// How long a page stays where no key is pressed: time for a photograph.
const STAYS: Duration = Duration::from_secs(15);

/// Somebody waits for a key.
static WAITING: AtomicBool = AtomicBool::new(false);
static WAKER: AtomicWaker = AtomicWaker::new();

/// Output page by page, as large as the screen. Where there is a serial port, or no screen, all of
/// it at once.
pub struct Pages {
    columns: usize,
    /// Lines of a page; 0 for no pages.
    rows: usize,
    printed: usize,
}

impl Pages {
    /// Begins a page.
    pub fn new() -> Self {
        let (columns, rows) = match serial::console().is_there() {
            true => (0, 0),
            false => screen::console::size(),
        };
        let pages = Self {
            columns: columns.max(1),
            // The last one says that there is more; others may print some lines in between.
            rows: rows.saturating_sub(3),
            printed: 0,
        };
        pages.clear();
        pages
    }

    /// A page begins at the top.
    fn clear(&self) {
        if self.rows > 0 {
            crate::print!("\x1b[2J\x1b[H");
        }
    }

    /// Prints lines. After each full page a key is awaited, for a while.
    pub async fn print(&mut self, text: &str) {
        for line in text.lines() {
            // A line that is longer than the screen is wide takes several.
            let takes = line.len().div_ceil(self.columns).max(1);
            if self.rows > 0 && self.printed > 0 && self.printed + takes > self.rows {
                crate::print!("-- more: press a key, or wait --");
                // Late is as good as never.
                let _ = timeout(STAYS, key()).await;
                WAITING.store(false, Ordering::Release);
                crate::print!("\r\x1b[K");
                self.clear();
                self.printed = 0;
            }
            crate::println!("{line}");
            self.printed += takes;
        }
    }

    /// Runs something that prints; what it prints appears afterwards, page by page.
    pub async fn run<T>(&mut self, work: impl Future<Output = T>) -> T {
        if self.rows == 0 {
            return work.await;
        }
        let held = output::hold();
        let result = work.await;
        self.print(&held.take()).await;
        result
    }
}

impl Default for Pages {
    fn default() -> Self {
        Self::new()
    }
}

async fn key() {
    WAITING.store(true, Ordering::Release);
    poll_fn(|cx| {
        WAKER.register(cx.waker());
        if WAITING.load(Ordering::Acquire) {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
}

/// A key was pressed while a command runs: whether it turns a page.
pub(super) fn turn() -> bool {
    let turned = WAITING.swap(false, Ordering::AcqRel);
    WAKER.wake();
    turned
}
