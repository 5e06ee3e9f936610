//! All registers of an engine by their names, for people: [`Engine::registers`].
//!
//! Whatever the engine is doing, reading them changes nothing. What a read would change is named and
//! left alone: INTRCTRL loses its enable bit, ATTNSTATUS its contents, the high byte of CHANCTRL
//! takes IN_USE. Every register is read once, none of an engine that is gone. Task context.

use alloc::sync::Arc;
use core::fmt;

use hal::mmio::Width::{self, B1, B2, B4, B8};
use ioat_spec::pci::{CHANERR_INT, CHANERRMSK_INT, DMAUNCERRSTS};
use ioat_spec::{CbVer, channel, device};

use crate::device::Device;
use crate::probe::Engine;

/// Name, offset, width.
type Register = (&'static str, usize, Option<Width>);

/// Registers, and how one of them is read.
type Block<'a> = (&'a [Register], &'a dyn Fn(usize, Width) -> u64);

/// In the order of their addresses; those without a width are read by nobody.
const DEVICE: &[Register] = &[
    ("CHANCNT", device::CHANCNT, Some(B1)),
    ("XFERCAP", device::XFERCAP, Some(B1)),
    ("GENCTRL", device::GENCTRL, Some(B1)),
    ("INTRCTRL", device::INTRCTRL, None),
    ("ATTNSTATUS", device::ATTNSTATUS, None),
    ("CBVER", device::CBVER, Some(B1)),
    ("PERPORTOFFSET", device::PERPORTOFFSET, Some(B2)),
    ("INTRDELAY", device::INTRDELAY, Some(B2)),
    ("CS_STATUS", device::CS_STATUS, Some(B2)),
    ("DMACAPABILITY", device::DMACAPABILITY, Some(B4)),
    ("DCAOFFSET", device::DCAOFFSET, Some(B2)),
    ("CBPRIO", device::CBPRIO, Some(B1)),
    // Version 3.4.
    ("CHWPREFLMT", device::CHWPREFLMT, Some(B1)),
];

const CONFIG: &[Register] = &[
    ("DMAUNCERRSTS", DMAUNCERRSTS, Some(B4)),
    ("CHANERR_INT", CHANERR_INT, Some(B4)),
    ("CHANERRMSK_INT", CHANERRMSK_INT, Some(B4)),
];

const CHANNEL: &[Register] = &[
    ("CHANCTRL", channel::CHANCTRL, Some(B1)),
    ("DMA_COMP", channel::DMA_COMP, Some(B2)),
    ("CHANCMD", channel::CHANCMD, Some(B1)),
    ("DMACOUNT", channel::DMACOUNT, Some(B2)),
    ("CHANSTS", channel::CHANSTS, Some(B8)),
    ("CHAINADDR", channel::CHAINADDR, Some(B8)),
    ("CHANCMP", channel::CHANCMP, Some(B8)),
    ("CDAR", channel::CDAR, Some(B8)),
    ("CHANERR", channel::CHANERR, Some(B4)),
    ("CHANERRMSK", channel::CHANERRMSK, Some(B4)),
    ("DCACTRL", channel::DCACTRL, Some(B4)),
];

/// The registers of an engine, which may leave meanwhile: a line for what all channels share, and one
/// for each channel.
pub struct Registers(Arc<Device>);

impl Engine {
    /// Its registers, read as they are printed.
    pub fn registers(&self) -> Registers {
        Registers(self.device.clone())
    }
}

impl Registers {
    /// A line: `what`, then registers behind `base`, if channel `index` answers. By the same read its
    /// driver finds out, and tells.
    #[inline(never)]
    fn line(&self, f: &mut fmt::Formatter<'_>, index: usize, blocks: &[Block<'_>]) -> fmt::Result {
        if self.0.regs(index).status().is_none() {
            return f.write_str(" gone: not read");
        }
        for (registers, read) in blocks {
            for &(name, offset, width) in *registers {
                match width {
                    Some(width) => write!(f, " {name}={:#x}", read(offset, width))?,
                    None => write!(f, " {name}=unread")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.0;
        let at = device.address;
        let shared = match device.version {
            CbVer::V3_4 => DEVICE,
            _ => &DEVICE[..DEVICE.len() - 1],
        };
        write!(f, "regs: {at}")?;
        let config = |offset, _| device.config.read32(offset).into();
        let memory = |offset, width| device.region.read(offset, width);
        self.line(f, 0, &[(shared, &memory), (CONFIG, &config)])?;
        for index in 0..device.channels {
            write!(f, "\nregs: {at} channel={index}")?;
            let base = channel::base(index);
            let memory = |offset, width| device.region.read(base + offset, width);
            self.line(f, index, &[(CHANNEL, &memory)])?;
        }
        Ok(())
    }
}
