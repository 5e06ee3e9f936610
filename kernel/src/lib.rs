//! Longshore: a small kernel whose DMA engines can be pulled out while they work.
//!
//! The image in `boot/` calls [`start()`] with what its loader told. Whatever touches the machine
//! lives in [`arch`] and is compiled for the bare target alone; the rest is plain logic that the
//! host tests as well.
//!
//! | room | what |
//! |---|---|
//! | [`arch`] | the CPU: entry, descriptor tables, traps, APICs, starting CPUs, per-CPU data |
//! | [`mm`] | frames, page tables, kernel addresses, heap |
//! | [`acpi`], [`pci`], [`irq`], [`time`], [`task`] | the machine's services |
//! | [`boot_info`], [`multiboot2`], [`command_line`] | what the loader tells |
//! | [`drivers`] | which driver gets which device; the `hal` of this kernel |
//! | [`console`], [`logging`] | what people see |
//! | [`prelude`] | what tasks use of all that |
//! | [`bench`], [`stepping`] | benchmarks; counting instructions |
//!
//! Two contexts: an interrupt handler records that it ran, in an atomic of its CPU, and nothing
//! else (no lock, no allocation, no wake-up). Everything else runs in tasks, which on one CPU
//! never preempt each other, so that plain spin locks serve all of them.

#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod acpi;
#[cfg(target_os = "none")]
pub mod arch;
pub mod bench;
pub mod boot_info;
pub mod command_line;
pub mod console;
#[cfg(target_os = "none")]
pub mod cpus;
pub mod drivers;
#[cfg(target_os = "none")]
pub mod events;
#[cfg(target_os = "none")]
pub mod iommu;
pub mod irq;
pub mod keyboard;
#[cfg(all(target_os = "none", feature = "ktest"))]
pub mod ktest;
#[cfg(target_os = "none")]
pub mod logging;
pub mod machine_check;
pub mod mm;
pub mod multiboot2;
#[cfg(target_os = "none")]
pub mod numa;
#[cfg(target_os = "none")]
pub mod output;
#[cfg(target_os = "none")]
pub mod panic;
pub mod pci;
#[cfg(target_os = "none")]
pub mod power;
pub mod prelude;
pub mod screen;
pub mod serial;
#[cfg(target_os = "none")]
pub mod stages;
#[cfg(target_os = "none")]
mod start;
pub mod stepping;
pub mod symbols;
#[cfg(target_os = "none")]
pub mod task;
pub mod time;

pub use boot_info::BootInfo;
#[cfg(target_os = "none")]
pub use start::{boot_info, boot_protocol, start, usable_memory};
