//! Finding the tables in physical memory.

use alloc::vec::Vec;

use acpi::rsdp::Rsdp;
use acpi::sdt::SdtHeader;
use spin::Once;

use super::fadt::{Fadt, s5_sleep_types};
use super::madt::Madt;
use super::mcfg::{self, EcamWindow};
use super::spcr::Spcr;
use super::srat::Srat;
use crate::mm::paging::Access;
use crate::mm::virt::PhysicalMapping;

/// No table is larger. DSDTs of servers are a few hundred KiB.
const TABLE_MAX: usize = 16 << 20;
/// No root table lists more.
const TABLES_MAX: usize = 512;

/// What all tables together tell, in the form in which the kernel uses it.
#[derive(Clone, Debug, Default)]
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
    /// Remapping units; `None` without a DMAR.
    pub dmar: Option<vtd::Dmar>,
    /// Firmware's console.
    pub spcr: Option<Spcr>,
    /// Physical address of the HPET.
    pub hpet: Option<u64>,
    /// Signature, address and length of each table.
    pub list: Vec<([u8; 4], u64, usize)>,
}

static PLATFORM: Once<Platform> = Once::new();

/// What the tables told; empty before [`init`].
pub fn platform() -> &'static Platform {
    PLATFORM.call_once(Platform::default)
}

/// Reads the tables, starting from the root pointer at `rsdp`, or from where a BIOS keeps one.
/// What is missing or malformed is reported and left out.
pub fn init(rsdp: Option<u64>) {
    PLATFORM.call_once(|| read_all(rsdp));
}

fn read_all(rsdp: Option<u64>) -> Platform {
    let mut platform = Platform::default();
    let Some((root, wide)) = rsdp.and_then(root_at).or_else(search) else {
        log::warn!("no ACPI root pointer found");
        return platform;
    };
    let Some(root) = Table::at(root) else {
        log::warn!("the ACPI root table at {root:#x} is malformed");
        return platform;
    };
    let entries = root
        .bytes()
        .get(size_of::<SdtHeader>()..)
        .unwrap_or_default();
    let width = if wide { 8 } else { 4 };
    for entry in entries.chunks_exact(width).take(TABLES_MAX) {
        let address = entry
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte));
        match Table::at(address) {
            Some(table) => platform.take(&table),
            None => log::warn!("the ACPI table at {address:#x} is malformed"),
        }
    }
    if let Some(dsdt) = (platform.fadt.dsdt != 0)
        .then(|| Table::at(platform.fadt.dsdt))
        .flatten()
    {
        platform.s5 = s5_sleep_types(dsdt.bytes());
    }
    platform
}

impl Platform {
    fn take(&mut self, table: &Table) {
        let bytes = table.bytes();
        self.list.push((table.signature(), table.phys, bytes.len()));
        match &table.signature() {
            b"APIC" => self.madt = Some(Madt::parse(bytes)),
            b"MCFG" => self.ecam = mcfg::parse(bytes),
            b"SRAT" => self.srat = Srat::parse(bytes),
            b"DMAR" => self.dmar = Some(vtd::Dmar::parse(bytes)),
            b"SPCR" => self.spcr = Spcr::parse(bytes),
            b"FACP" => self.fadt = Fadt::parse(bytes),
            // IA-PC HPET 1.0a, 3.2.4: a generic address at offset 40, of memory.
            b"HPET" if super::bytes::u8_at(bytes, 40) == Some(0) => {
                self.hpet = super::bytes::u64_at(bytes, 44).filter(|&address| address != 0);
            }
            _ => {}
        }
    }
}

/// Gives `look` the bytes of the table at `phys`, for people to see.
pub fn look(phys: u64, look: &mut dyn FnMut(&[u8])) {
    if let Some(table) = Table::at(phys) {
        look(table.bytes());
    }
}

/// A table whose sum is right, mapped.
struct Table {
    phys: u64,
    mapping: PhysicalMapping,
}

impl Table {
    fn at(phys: u64) -> Option<Self> {
        let header = PhysicalMapping::new(phys, size_of::<SdtHeader>(), Access::Read).ok()?;
        // SAFETY: mapped, and any bytes make a header.
        let length =
            unsafe { (header.addr() as *const SdtHeader).read_unaligned() }.length as usize;
        if !(size_of::<SdtHeader>()..=TABLE_MAX).contains(&length) {
            return None;
        }
        let table = Self {
            phys,
            mapping: PhysicalMapping::new(phys, length, Access::Read).ok()?,
        };
        let sum = table
            .bytes()
            .iter()
            .fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        (sum == 0).then_some(table)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for this length as long as `self` lives; firmware's memory does not change.
        unsafe { core::slice::from_raw_parts(self.mapping.addr() as *const u8, self.mapping.len()) }
    }

    fn signature(&self) -> [u8; 4] {
        self.bytes().first_chunk().copied().unwrap_or_default()
    }
}

/// The root table that the pointer at `phys` names, and whether its entries are 64 bits wide.
fn root_at(phys: u64) -> Option<(u64, bool)> {
    let mapping = PhysicalMapping::new(phys, size_of::<Rsdp>(), Access::Read).ok()?;
    // SAFETY: mapped, and any bytes make a root pointer.
    let rsdp = unsafe { (mapping.addr() as *const Rsdp).read_unaligned() };
    // Validation sums as many bytes as the structure claims to have.
    let fits = rsdp.revision() == 0 || rsdp.length() as usize <= size_of::<Rsdp>();
    if !fits || rsdp.validate().is_err() {
        return None;
    }
    if rsdp.revision() >= 2 && rsdp.xsdt_address() != 0 {
        Some((rsdp.xsdt_address(), true))
    } else {
        Some((rsdp.rsdt_address().into(), false))
    }
}

/// Looks where a BIOS keeps the root pointer: on 16-byte boundaries. ACPI 6.5, 5.2.5.1.
fn search() -> Option<(u64, bool)> {
    const AREA: (u64, usize) = (0xe_0000, 0x2_0000);
    let mapping = PhysicalMapping::new(AREA.0, AREA.1, Access::Read).ok()?;
    // SAFETY: mapped for this length; the BIOS area is read-only memory.
    let bytes = unsafe { core::slice::from_raw_parts(mapping.addr() as *const u8, AREA.1) };
    bytes
        .chunks_exact(16)
        .enumerate()
        .filter(|(_, chunk)| chunk.starts_with(b"RSD PTR "))
        .find_map(|(index, _)| root_at(AREA.0 + 16 * index as u64))
}
