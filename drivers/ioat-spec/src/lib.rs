//! Registers, descriptors and identities of Intel I/OAT (QuickData, CBDMA) 3.2 to 3.4.
//!
//! Numbers only, no logic: the driver and the engine in software both read this crate, and neither
//! finds behaviour here. No memory is owned and nothing is accessed; every item may be used in any
//! context. Offsets are in bytes and are `usize`, as the accessors of the HAL take them. Values are
//! little-endian on the bus and in memory.
//!
//! Names are the datasheet's mnemonics (CHANCTRL, CHANSTS, …). Where Intel's public datasheets for
//! the Xeon E5/E7 families do not describe a field, its source is named beside it: the headers of
//! SPDK (`ioat_spec.h`), FreeBSD (`ioat_hw.h`), DPDK (`ioat_hw_defs.h`) and Linux (`registers.h`,
//! `hw.h` of ioatdma) agree unless a line says otherwise. A shared specification can hide a shared
//! mistake: `tests/facts.rs` states every number a second time, typed by hand.
//!
//! | Module | Describes |
//! |---|---|
//! | [`pci`] | identities, BAR, configuration registers |
//! | [`device`] | registers common to all channels, BAR0 + 0 |
//! | [`channel`] | the 128 bytes of each channel, BAR0 + 80h·(n+1) |
//! | [`descriptor`] | the 64-byte descriptors and the completion word |

#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

pub mod channel;
pub mod descriptor;
pub mod device;
pub mod pci;

pub use channel::{ChanCmd, ChanCtrl, ChanErr, ChanSts, State};
pub use descriptor::{Control, Descriptor, Op};
pub use device::{CbVer, DmaCap, IntrCtrl};
