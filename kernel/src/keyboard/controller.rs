//! The keyboard controller of a PC: an 8042, or what looks like one. IBM PS/2 Hardware Interface
//! Technical Reference, "Keyboard and Auxiliary Device Controller".

use core::time::Duration;

use spin::Mutex;
use x86_64::instructions::port::Port;

use super::keys::{Key, Keys};
use crate::acpi::tables::platform;
use crate::time::clock;

const DATA: u16 = 0x60;
/// Status when read, commands when written.
const COMMAND: u16 = 0x64;

const OUTPUT_FULL: u8 = 1;
const INPUT_FULL: u8 = 1 << 1;
const FROM_MOUSE: u8 = 1 << 5;

const READ_CONFIG: u8 = 0x20;
const WRITE_CONFIG: u8 = 0x60;
const DISABLE_MOUSE: u8 = 0xa7;
const DISABLE_KEYBOARD: u8 = 0xad;
const ENABLE_KEYBOARD: u8 = 0xae;

const CONFIG_INTERRUPT: u8 = 1;
const CONFIG_MOUSE_INTERRUPT: u8 = 1 << 1;
const CONFIG_KEYBOARD_OFF: u8 = 1 << 4;
const CONFIG_MOUSE_OFF: u8 = 1 << 5;
const CONFIG_TRANSLATE: u8 = 1 << 6;

/// To the keyboard: send what is typed. And its answer.
const ENABLE: u8 = 0xf4;
const ACKNOWLEDGE: u8 = 0xfa;

/// How long the controller may take for a byte, and the keyboard for its answer.
const PATIENCE: Duration = Duration::from_millis(50);
/// Bytes that may wait where nobody has read for long; a controller that has more has none.
const WAITING_MAX: usize = 64;

/// The legacy interrupt.
pub const ISA: u8 = 1;

static KEYS: Mutex<Keys> = Mutex::new(Keys::new());

fn read(port: u16) -> u8 {
    // SAFETY: the controller's ports on a PC, which only this module uses.
    unsafe { Port::new(port).read() }
}

fn status(mask: u8) -> u8 {
    read(COMMAND) & mask
}

fn wait(mask: u8, value: u8) -> Option<()> {
    let deadline = clock::now_ns() + PATIENCE.as_nanos() as u64;
    while status(mask) != value {
        if clock::now_ns() > deadline {
            return None;
        }
        core::hint::spin_loop();
    }
    Some(())
}

fn write(port: u16, value: u8) -> Option<()> {
    wait(INPUT_FULL, 0)?;
    // SAFETY: as in `read`; the bytes written are those named above.
    unsafe { Port::new(port).write(value) };
    Some(())
}

/// The next byte, which somebody waits for.
fn answer() -> Option<u8> {
    wait(OUTPUT_FULL, OUTPUT_FULL)?;
    Some(read(DATA))
}

/// Throws away what waits.
fn empty() -> Option<()> {
    for _ in 0..WAITING_MAX {
        if status(OUTPUT_FULL) == 0 {
            return Some(());
        }
        read(DATA);
    }
    None
}

/// Sets controller and keyboard up; says whether a keyboard answers.
pub fn init() -> bool {
    // All ones: nobody there.
    !platform().fadt.no_keyboard && status(0xff) != 0xff && set_up() == Some(true)
}

fn set_up() -> Option<bool> {
    write(COMMAND, DISABLE_KEYBOARD)?;
    write(COMMAND, DISABLE_MOUSE)?;
    empty()?;
    write(COMMAND, READ_CONFIG)?;
    let config = answer()? & !(CONFIG_MOUSE_INTERRUPT | CONFIG_KEYBOARD_OFF);
    write(COMMAND, WRITE_CONFIG)?;
    write(
        DATA,
        config | CONFIG_INTERRUPT | CONFIG_MOUSE_OFF | CONFIG_TRANSLATE,
    )?;
    write(COMMAND, ENABLE_KEYBOARD)?;
    write(DATA, ENABLE)?;
    // What was typed meanwhile may come before the answer.
    Some(
        (0..WAITING_MAX)
            .map_while(|_| answer())
            .any(|byte| byte == ACKNOWLEDGE),
    )
}

/// The next key that was typed, if any waits. Bytes that mean no key are read over.
pub fn key() -> Option<Key> {
    for _ in 0..WAITING_MAX {
        let status = status(0xff);
        if status == 0xff || status & OUTPUT_FULL == 0 {
            return None;
        }
        let code = read(DATA);
        if status & FROM_MOUSE == 0
            && let Some(key) = KEYS.lock().take(code)
        {
            return Some(key);
        }
    }
    None
}
