//! The screen that people look at: the one that the loader left, where it left one.

use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use super::Screen;
use super::pixels::{self, Pixels, Refused};
use crate::boot_info::BootInfo;
use crate::mm::paging::Access;
use crate::mm::virt::PhysicalMapping;
use crate::time::clock;

/// Who prints again within so many nanoseconds prints faster than people read: the screen moves by
/// a quarter then, so that a line's price stays that of some lines' pixels.
const HURRY: u64 = 20_000_000;

struct Console {
    screen: Screen,
    /// When it was drawn last.
    drawn: u64,
}

static CONSOLE: Mutex<Option<Console>> = Mutex::new(None);
static THERE: AtomicBool = AtomicBool::new(false);
/// A report is being drawn; if it comes here again, drawing has failed.
static REPORTING: AtomicBool = AtomicBool::new(false);
static REPORTED: AtomicBool = AtomicBool::new(false);

/// Takes the screen over, and clears it. Says so, or why not, where the loader left one.
pub fn init(info: &BootInfo) {
    let Some(told) = &info.framebuffer else {
        return;
    };
    let pixels = pixels::check(told, info).and_then(|geometry| {
        let mapping = PhysicalMapping::new(told.address, geometry.bytes(), Access::Combine)
            .map_err(|_| Refused::Address)?;
        let base = mapping.addr() as *mut u8;
        core::mem::forget(mapping);
        // SAFETY: mapped for good, and no memory of ours, by the loader's own map.
        Ok(unsafe { Pixels::new(geometry, base) })
    });
    match pixels {
        Ok(pixels) => {
            let mut screen = Screen::new(pixels);
            let (columns, rows) = (screen.text().columns(), screen.text().rows());
            *CONSOLE.lock() = Some(Console { screen, drawn: 0 });
            THERE.store(true, Ordering::Relaxed);
            log::info!(
                "screen {}x{}, {} bits a pixel: {columns}x{rows} letters",
                told.width,
                told.height,
                told.bits
            );
        }
        Err(why) => log::warn!("the framebuffer is not used: {why}: {told:x?}"),
    }
}

/// Whether there is one.
pub fn is_there() -> bool {
    THERE.load(Ordering::Relaxed)
}

fn with(change: impl FnOnce(&mut Console)) {
    if is_there()
        && let Some(console) = CONSOLE.lock().as_mut()
    {
        change(console);
    }
}

/// Takes text; [`draw`] shows it.
pub fn write(bytes: &[u8]) {
    with(|console| {
        let hurry = clock::now_ns().saturating_sub(console.drawn) < HURRY;
        let text = console.screen.text();
        text.set_step(if hurry { text.rows() / 4 } else { 1 });
        text.write(bytes);
    });
}

/// Draws what has changed.
pub fn draw() {
    with(|console| {
        console.screen.draw();
        console.drawn = clock::now_ns();
    });
}

/// Looks back at what has left the screen, or forward again.
pub fn look(back: bool) {
    with(|console| {
        if console.screen.text().look(back) {
            console.screen.draw();
        }
    });
}

/// Looks at the newest lines, for somebody types.
pub fn look_ahead() {
    with(|console| {
        if console.screen.text().look_ahead() {
            console.screen.draw();
        }
    });
}

/// Columns and lines of letters on the screen; 0 where there is none.
pub fn size() -> (usize, usize) {
    let mut size = (0, 0);
    with(|console| {
        let text = console.screen.text();
        size = (text.columns(), text.rows());
    });
    size
}

/// As [`write()`] and [`draw`], from a report of a panic: does not wait for whoever holds the screen.
pub fn write_now(bytes: &[u8]) {
    if !is_there() || REPORTING.swap(true, Ordering::Relaxed) {
        return;
    }
    if let Some(console) = CONSOLE.try_lock().as_deref_mut().and_then(Option::as_mut) {
        let screen = &mut console.screen;
        // Its holder may have been stopped between noting a letter and drawing it.
        if !REPORTED.swap(true, Ordering::Relaxed) {
            screen.forget();
        }
        screen.text().look_ahead();
        screen.text().write(bytes);
        screen.draw();
    }
    REPORTING.store(false, Ordering::Relaxed);
}

/// Lets go of the screen where its holder was stopped.
///
/// # Safety
/// No other CPU runs any more.
pub unsafe fn force_unlock() {
    // SAFETY: by the contract, the holder will not go on.
    unsafe { CONSOLE.force_unlock() };
}
