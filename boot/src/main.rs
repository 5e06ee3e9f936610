//! The image: how firmware and boot loaders enter Longshore.
//!
//! [`pvh`] is the entry for `qemu -kernel` and other loaders of PVH images. Each entry turns what
//! its loader left into a [`longshore::BootInfo`] and hands the machine to the kernel library.

#![no_std]
#![no_main]

mod long_mode;
mod pvh;
