//! Finding the tables in physical memory, and what all of them together tell.
//!
//! What is missing or malformed is reported and left out; so is an address that cannot lead to what
//! the table says ([`place`]). Firmware that is wrong without end costs a few seconds and a few lines.

use alloc::vec::Vec;
use core::fmt::Arguments;
use core::ops::Deref;

use acpi::rsdp::Rsdp;
use acpi::sdt::SdtHeader;
use spin::Once;

use super::bytes::{u8_at, u32_at, u64_at};
use super::fadt::{Fadt, s5_sleep_types};
use super::madt::Madt;
use super::mcfg::{self, EcamWindow};
use super::place;
use super::spcr::Spcr;
use super::srat::Srat;
use crate::boot_info::BootInfo;

/// Bytes of the root pointer's first revision.
const RSDP_FIRST: usize = 20;
/// No table is larger. DSDTs of servers are a few hundred KiB.
const TABLE_MAX: usize = 16 << 20;
/// Nor are all of them together.
const TOTAL_MAX: usize = 64 << 20;
/// No root table lists more.
const TABLES_MAX: usize = 512;
/// Lines that are spent on what is wrong.
const LINES_MAX: usize = 16;
/// Registers of I/O APICs and HPETs begin at multiples of this: 82093AA datasheet, 3.1 (APICBASE);
/// IA-PC HPET 1.0a, 2.3.1.
const REGISTERS_ALIGN: u64 = 1 << 10;

/// What all tables together tell, in the form in which the kernel uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// CPUs and interrupt controllers; `None` without a MADT.
    pub madt: Option<Madt>,
    /// Windows of configuration space.
    pub ecam: Vec<EcamWindow>,
    /// What is near to what.
    pub srat: Srat,
    /// Fixed hardware.
    pub fadt: Fadt,
    /// Sleep types of S5.
    pub s5: Option<(u8, u8)>,
    /// Whether firmware's AML names an _OSC anywhere.
    pub has_osc: bool,
    /// Remapping units; `None` without a DMAR.
    pub dmar: Option<vtd::Dmar>,
    /// Firmware's console.
    pub spcr: Option<Spcr>,
    /// Physical address of the HPET.
    pub hpet: Option<u64>,
    /// Signature, address and length of each table.
    pub list: Vec<([u8; 4], u64, usize)>,
}

fn names_osc(aml: &[u8]) -> bool {
    aml.windows(4).any(|name| name == b"_OSC")
}

static PLATFORM: Once<Platform> = Once::new();

/// What the tables told; empty before [`init`].
pub fn platform() -> &'static Platform {
    PLATFORM.call_once(Platform::default)
}

/// Reads the tables of this machine, as [`read`] does.
#[cfg(target_os = "none")]
pub fn init(rsdp: Option<u64>, info: &BootInfo) {
    PLATFORM.call_once(|| read(rsdp, &super::physical::Firmware(info), info));
}

/// Gives `look` the bytes of the table at `phys`, one of those in [`Platform::list`], for people to
/// see.
#[cfg(target_os = "none")]
pub fn look(phys: u64, look: &mut dyn FnMut(&[u8])) {
    let listed = platform().list.iter().find(|listed| listed.1 == phys);
    if let Some(bytes) = listed.and_then(super::physical::Mapped::again) {
        look(&bytes);
    }
}

/// Physical memory, as far as tables may lie in it.
pub trait Memory {
    /// Bytes of it.
    type Bytes: Deref<Target = [u8]>;

    /// `len` bytes at `phys`; `None` where there is no memory, or somebody else's.
    fn bytes(&self, phys: u64, len: usize) -> Option<Self::Bytes>;
}

/// Reads the tables, starting from the root pointer at `rsdp`, or from where a BIOS keeps one. `info`
/// has the memory map.
pub fn read<M: Memory>(rsdp: Option<u64>, memory: &M, info: &BootInfo) -> Platform {
    let mut reader = Reader {
        memory,
        left: TOTAL_MAX,
        wrong: 0,
    };
    let mut platform = Platform::default();
    reader.read_all(rsdp, &mut platform);
    reader.check(&mut platform, info);
    if let Some(more) = reader.wrong.checked_sub(LINES_MAX + 1) {
        log::warn!("ACPI: {} more that make no sense", more + 1);
    }
    platform
}

/// The sum of all bytes, which is 0 where nothing was torn.
fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

struct Reader<'m, M> {
    memory: &'m M,
    /// Bytes of tables that will still be looked at.
    left: usize,
    /// What was wrong so far.
    wrong: usize,
}

impl<M: Memory> Reader<'_, M> {
    fn complain(&mut self, what: Arguments<'_>) {
        self.wrong += 1;
        if self.wrong <= LINES_MAX {
            log::warn!("ACPI: {what}, left out");
        }
    }

    fn read_all(&mut self, rsdp: Option<u64>, platform: &mut Platform) {
        let given = rsdp.and_then(|phys| {
            let roots = self.roots(phys);
            if roots.is_none() {
                self.complain(format_args!("no root pointer at {phys:#x}"));
            }
            roots
        });
        let Some(roots) = given.or_else(|| self.search()) else {
            log::warn!("no ACPI root pointer found");
            return;
        };
        let found = roots.into_iter().flatten().find_map(|(root, width)| {
            let signature = if width == 8 { b"XSDT" } else { b"RSDT" };
            Some((self.table(root, Some(signature))?, width))
        });
        let Some((root, width)) = found else {
            log::warn!("no ACPI root table found");
            return;
        };
        let entries = root.get(size_of::<SdtHeader>()..).unwrap_or_default();
        for entry in entries.chunks_exact(width).take(TABLES_MAX) {
            let address = entry
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u64::from(byte));
            if platform.list.iter().any(|listed| listed.1 == address) {
                self.complain(format_args!("the table at {address:#x}, listed twice"));
            } else if let Some(table) = self.table(address, None) {
                self.take(platform, address, &table);
            }
        }
        if platform.fadt.dsdt != 0
            && let Some(dsdt) = self.table(platform.fadt.dsdt, Some(b"DSDT"))
        {
            platform.s5 = s5_sleep_types(&dsdt);
            platform.has_osc |= names_osc(&dsdt);
        }
    }

    /// The root tables that the pointer at `phys` names, the better one first, each with the bytes of
    /// an entry.
    fn roots(&self, phys: u64) -> Option<[Option<(u64, usize)>; 2]> {
        // What the first revision does not have may be somebody else's already.
        let first = self.memory.bytes(phys, RSDP_FIRST)?;
        let mut bytes = [0; size_of::<Rsdp>()];
        if u8_at(&first, 15)? == 0 {
            bytes[..RSDP_FIRST].copy_from_slice(first.get(..RSDP_FIRST)?);
        } else {
            bytes = *self.memory.bytes(phys, bytes.len())?.first_chunk()?;
        }
        // SAFETY: there are as many bytes, and any make a root pointer.
        let rsdp = unsafe { bytes.as_ptr().cast::<Rsdp>().read_unaligned() };
        // Validation sums as many bytes as the structure claims to have.
        let fits = match rsdp.revision() {
            0 => true,
            1 => (RSDP_FIRST..=size_of::<Rsdp>()).contains(&(rsdp.length() as usize)),
            _ => rsdp.length() as usize == size_of::<Rsdp>(),
        };
        // It has a sum of its own up to where the first revision ended. ACPI 6.5, 5.2.5.3.
        if !fits || sum(&bytes[..RSDP_FIRST]) != 0 || rsdp.validate().is_err() {
            return None;
        }
        let wide = rsdp.revision() >= 2 && rsdp.xsdt_address() != 0;
        Some([
            wide.then(|| (rsdp.xsdt_address(), 8)),
            (rsdp.rsdt_address() != 0).then(|| (rsdp.rsdt_address().into(), 4)),
        ])
    }

    /// Looks where a BIOS keeps the root pointer: on 16-byte boundaries. ACPI 6.5, 5.2.5.1.
    fn search(&self) -> Option<[Option<(u64, usize)>; 2]> {
        const AREA: (u64, usize) = (0xe_0000, 0x2_0000);
        let bytes = self.memory.bytes(AREA.0, AREA.1)?;
        let mut places = bytes.chunks_exact(16).zip((AREA.0..).step_by(16));
        places.find_map(|(chunk, at)| {
            chunk
                .starts_with(b"RSD PTR ")
                .then(|| self.roots(at))
                .flatten()
        })
    }

    /// The table at `phys`, which must have this signature.
    fn table(&mut self, phys: u64, signature: Option<&[u8; 4]>) -> Option<M::Bytes> {
        let header = size_of::<SdtHeader>();
        let Some(start) = self.memory.bytes(phys, header) else {
            self.complain(format_args!("a table at {phys:#x}, where none can be"));
            return None;
        };
        // Registers are not summed up: that takes long, and may do something.
        let name = start.first_chunk().copied().unwrap_or_default();
        let known = match signature {
            Some(wanted) => name == *wanted,
            None => name.iter().all(|byte| (b' '..=b'~').contains(byte)),
        };
        let length = u32_at(&start, 4).unwrap_or(0) as usize;
        if !known || !(header..=TABLE_MAX.min(self.left)).contains(&length) {
            self.complain(format_args!("{length} bytes at {phys:#x}, no table"));
            return None;
        }
        self.left -= length;
        let bytes = self.memory.bytes(phys, length);
        let bytes = bytes.filter(|bytes| sum(bytes) == 0);
        if bytes.is_none() {
            self.complain(format_args!("the table at {phys:#x}, whose sum is wrong"));
        }
        bytes
    }

    fn take(&mut self, platform: &mut Platform, phys: u64, bytes: &[u8]) {
        let signature = bytes.first_chunk().copied().unwrap_or_default();
        let one = [b"APIC", b"MCFG", b"SRAT", b"DMAR", b"SPCR", b"FACP"].contains(&&signature);
        if one && platform.list.iter().any(|listed| listed.0 == signature) {
            let name = signature.escape_ascii();
            self.complain(format_args!("a second table {name} at {phys:#x}"));
            return;
        }
        platform.list.push((signature, phys, bytes.len()));
        match &signature {
            b"APIC" => platform.madt = Some(Madt::parse(bytes)),
            b"MCFG" => platform.ecam = mcfg::parse(bytes),
            b"SRAT" => platform.srat = Srat::parse(bytes),
            b"DMAR" => platform.dmar = Some(vtd::Dmar::parse(bytes)),
            b"SPCR" => platform.spcr = Spcr::parse(bytes),
            b"SSDT" => platform.has_osc |= names_osc(bytes),
            b"FACP" => platform.fadt = Fadt::parse(bytes),
            // IA-PC HPET 1.0a, 3.2.4: a generic address at offset 40, of memory. There may be
            // several; one is enough.
            b"HPET" if platform.hpet.is_none() && u8_at(bytes, 40) == Some(0) => {
                platform.hpet = u64_at(bytes, 44);
            }
            _ => {}
        }
    }

    /// Leaves out what cannot lie where the tables say.
    fn check(&mut self, platform: &mut Platform, info: &BootInfo) {
        let registers = |at: u64| {
            at.is_multiple_of(REGISTERS_ALIGN) && place::holds_registers(info, at, REGISTERS_ALIGN)
        };
        if let Some(at) = platform.hpet.take_if(|at| !registers(*at)) {
            self.complain(format_args!("an HPET at {at:#x}"));
        }
        if let Some(madt) = &mut platform.madt {
            let mut kept: Vec<u64> = Vec::new();
            madt.io_apics.retain(|io_apic| {
                let at = io_apic.address;
                let good = registers(at) && !kept.contains(&at);
                if good {
                    kept.push(at);
                } else {
                    self.complain(format_args!("an I/O APIC at {at:#x}"));
                }
                good
            });
        }
        let mut kept: Vec<EcamWindow> = Vec::new();
        platform.ecam.retain(|window| {
            let (at, len) = window.range();
            let good = place::holds_registers(info, at, len)
                && kept.iter().all(|other| !window.collides(other));
            if good {
                kept.push(*window);
            } else {
                self.complain(format_args!("configuration space at {at:#x}"));
            }
            good
        });
        if let Some(dmar) = &mut platform.dmar {
            dmar.reserved.retain(|range| {
                let good = place::is_firmwares(info, range.base, range.last);
                if !good {
                    let (base, last) = (range.base, range.last);
                    self.complain(format_args!("reserved memory {base:#x}-{last:#x}"));
                }
                good
            });
        }
    }
}
