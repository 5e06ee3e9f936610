//! The image: how firmware and boot loaders enter Longshore.
//!
//! [`pvh`] is the entry for `qemu -kernel` and other loaders of PVH images, [`multiboot2`] that for
//! GRUB. Each turns what its loader left into a [`longshore::BootInfo`], with which the machine goes
//! to the kernel library.

#![no_std]
#![no_main]

use longshore::multiboot2::LOADER_MAGIC;

mod long_mode;
mod multiboot2;
mod pvh;

/// Comes from `long_mode`: where the loader left what it tells, and what it left in EAX, or 0 by PVH.
#[unsafe(no_mangle)]
extern "C" fn longshore_entry_64(left_at: u64, loader: u32) -> ! {
    longshore::start(match loader {
        LOADER_MAGIC => multiboot2::boot_info(left_at),
        _ => pvh::boot_info(left_at),
    })
}
