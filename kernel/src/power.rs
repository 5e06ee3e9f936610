//! Turning the machine off and restarting it.

use core::time::Duration;

use x86_64::instructions::port::Port;

use crate::acpi::tables::platform;
use crate::arch::x86_64::halt_forever;
use crate::time::clock;

const SLEEP_ENABLE: u16 = 1 << 13;

/// Enters S5 (ACPI 6.5, 4.8.3.2): the sleep type comes from the firmware, 0 where it says none.
pub fn off() -> ! {
    let platform = platform();
    let types = platform.s5.unwrap_or((0, 0));
    for (port, kind) in platform
        .fadt
        .pm1_control
        .into_iter()
        .zip([types.0, types.1])
    {
        if let Some(port) = port {
            // SAFETY: the control register that the FADT names.
            unsafe { Port::<u16>::new(port).write(SLEEP_ENABLE | u16::from(kind & 7) << 10) };
        }
    }
    clock::spin_for(Duration::from_secs(2));
    crate::println!("this machine cannot be powered off by software");
    halt_forever()
}

/// Restarts: by the FADT's reset register, the chipset's, the keyboard controller's, whichever
/// works first.
pub fn restart() -> ! {
    let fadt = &platform().fadt;
    let ways = [
        (fadt.reset_port, fadt.reset_value),
        (Some(0xcf9), 0x06),
        (Some(0x64), 0xfe),
    ];
    for (port, value) in ways {
        if let Some(port) = port {
            // SAFETY: a reset register: nothing runs afterwards.
            unsafe { Port::<u8>::new(port).write(value) };
            clock::spin_for(Duration::from_millis(100));
        }
    }
    crate::println!("this machine cannot be restarted by software");
    halt_forever()
}
