//! The last report: what happened, the registers, the way there.
//!
//! Nothing here allocates or waits for a lock: other CPUs are stopped first, then their locks on
//! the ports are broken.

use core::arch::asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;

use crate::arch::x86_64::traps::TrapFrame;
use crate::arch::x86_64::{halt_forever, percpu, smp};
use crate::mm::{self, stack};
use crate::time::clock;
use crate::{screen, serial, symbols};

/// 0, or one more than the CPU that reports.
static REPORTER: AtomicUsize = AtomicUsize::new(0);
const FRAMES_MAX: usize = 32;

/// Whether a report is being made, so that this CPU should stop.
pub fn in_progress() -> bool {
    REPORTER.load(Ordering::Acquire) != 0
}

struct Report;

impl Write for Report {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        serial::console().write_now(text.as_bytes());
        screen::console::write_now(text.as_bytes());
        Ok(())
    }
}

/// Begins a report, or stops this CPU where one is being made already.
fn begin() -> usize {
    x86_64::instructions::interrupts::disable();
    let this = percpu::current().index();
    match REPORTER.compare_exchange(0, this + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        // The report itself failed: say so, and no more.
        Err(reporter) if reporter == this + 1 => {
            let _ = Report.write_str("\nPANIC within the report\n");
            halt_forever();
        }
        Err(_) => halt_forever(),
    }
    smp::stop_others();
    clock::spin_for(Duration::from_millis(20));
    // SAFETY: the other CPUs halt in their NMI handlers, or are beyond help.
    unsafe {
        serial::console().force_unlock();
        screen::console::force_unlock();
    }
    this
}

#[cfg_attr(target_os = "none", panic_handler)]
fn panic(info: &PanicInfo<'_>) -> ! {
    let cpu = begin();
    let mut report = Report;
    let _ = write!(report, "\nPANIC cpu={cpu} {}", info.message());
    if let Some(location) = info.location() {
        let _ = write!(report, " at {location}");
    }
    let _ = writeln!(report);
    let (rbp, rsp): (u64, u64);
    // SAFETY: reads two registers.
    unsafe {
        asm!("mov {}, rbp", "mov {}, rsp", out(reg) rbp, out(reg) rsp,
            options(nomem, nostack, preserves_flags));
    }
    let _ = writeln!(report, "  rsp {rsp:016x}  rbp {rbp:016x}");
    backtrace(None, rbp);
    end()
}

/// Reports an exception that the kernel caused. Does not return.
pub fn exception(frame: &TrapFrame, what: fmt::Arguments<'_>) {
    let cpu = begin();
    let _ = writeln!(Report, "\nPANIC cpu={cpu} {what}");
    let _ = write!(Report, "{frame}");
    backtrace(Some(frame.rip), frame.rbp);
    end()
}

/// Says something of what `frame` interrupted, with a backtrace, and returns. From an interrupt
/// handler: what others print at the time may be torn, or this lost.
pub fn in_passing(frame: &TrapFrame, what: fmt::Arguments<'_>) {
    let _ = writeln!(Report, "\n{what}");
    backtrace(Some(frame.rip), frame.rbp);
}

fn end() -> ! {
    let _ = writeln!(Report, "  halted");
    halt_forever()
}

/// Prints the chain of frames: `#N address symbol+offset`. Each frame lies above the one before,
/// within a stack's size, so that a torn chain ends soon.
fn backtrace(rip: Option<u64>, mut rbp: u64) {
    let symbols = symbols::kernel();
    let mut index = 0;
    // A return address belongs to the instruction before it: behind a call that does not return
    // another function may begin.
    let mut line = |address: u64, back: u64| {
        let found = symbols.and_then(|symbols| symbols.find(address.wrapping_sub(back)));
        let _ = match found {
            Some((name, offset)) => {
                let offset = offset + back;
                writeln!(Report, "  #{index} {address:#x} {name}+{offset:#x}")
            }
            None => writeln!(Report, "  #{index} {address:#x}"),
        };
        index += 1;
    };
    if let Some(rip) = rip {
        line(rip, 0);
    }
    for _ in 0..FRAMES_MAX {
        if !rbp.is_multiple_of(8) || !on_a_stack(rbp) || !on_a_stack(rbp + 8) {
            return;
        }
        // SAFETY: aligned, and two mapped words of this CPU's stack.
        let [next, address] = unsafe { (rbp as *const [u64; 2]).read_volatile() };
        if address == 0 {
            return;
        }
        line(address, 1);
        if next <= rbp || next - rbp > 64 << 10 {
            return;
        }
        rbp = next;
    }
}

/// Whether an address lies on the stack that this CPU runs tasks on, or, early, in the image.
fn on_a_stack(address: u64) -> bool {
    let bottom = percpu::current().stack_bottom.load(Ordering::Relaxed) as u64;
    let on_stack = bottom != 0 && (bottom..bottom + stack::SIZE).contains(&address);
    (on_stack || address >= mm::IMAGE) && mm::paging::is_mapped(address)
}
