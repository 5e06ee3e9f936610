//! I/O APICs: where pins and legacy interrupts enter. Intel 82093AA datasheet, chapter 3.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use litemap::LiteMap;
use spin::{Mutex, Once};

use crate::acpi::madt::{IoApicInfo, Trigger};
use crate::iommu::Remapping;
use crate::irq::Vector;
use crate::mm::PAGE;
use crate::mm::paging::Access;
use crate::mm::virt::PhysicalMapping;

const SELECT: usize = 0x00;
const WINDOW: usize = 0x10;
const VERSION: u32 = 0x01;
const TABLE: u32 = 0x10;
/// The index has 8 bits, an entry two registers.
const INPUTS_MAX: u32 = (0x100 - TABLE) / 2;
const ENTRY_MASKED: u32 = 1 << 16;
const ENTRY_LEVEL: u32 = 1 << 15;
const ENTRY_LOW: u32 = 1 << 13;

struct IoApic {
    registers: PhysicalMapping,
    first_gsi: u32,
    inputs: u32,
    /// As whom it interrupts, where that is remapped, and its inputs' entries.
    remapping: Once<Remapping>,
    entries: Mutex<LiteMap<u32, u16>>,
}

static IO_APICS: Once<Vec<IoApic>> = Once::new();
/// Guards the index and data registers. The handler that masks a level-triggered line takes it
/// too, for a few accesses: tasks hold it with interrupts off.
static REGISTERS: AtomicBool = AtomicBool::new(false);

fn with_registers<T>(access: impl FnOnce() -> T) -> T {
    while REGISTERS
        .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        core::hint::spin_loop();
    }
    let result = access();
    REGISTERS.store(false, Ordering::Release);
    result
}

impl IoApic {
    /// Inside `with_registers`, as [`IoApic::write`].
    fn read(&self, index: u32) -> u32 {
        self.registers.write(SELECT, index);
        self.registers.read(WINDOW)
    }

    fn write(&self, index: u32, value: u32) {
        self.registers.write(SELECT, index);
        self.registers.write(WINDOW, value);
    }
}

/// Takes the I/O APICs over, all inputs masked.
pub fn init(found: &[IoApicInfo]) {
    let take = |info: &IoApicInfo| {
        let registers = PhysicalMapping::new(info.address, PAGE, Access::Device).ok()?;
        let mut io_apic = IoApic {
            registers,
            first_gsi: info.first_gsi,
            inputs: 0,
            remapping: Once::new(),
            entries: Mutex::new(LiteMap::new()),
        };
        let version = io_apic.read(VERSION);
        io_apic.inputs = ((version >> 16) & 0xff) + 1;
        // An input keeps its mask, and the version stays what it was, unless there is something else,
        // or nothing.
        io_apic.write(TABLE, ENTRY_MASKED);
        let masked = io_apic.read(TABLE) & ENTRY_MASKED != 0;
        if io_apic.inputs > INPUTS_MAX || !masked || io_apic.read(VERSION) != version {
            log::warn!("no I/O APIC at {:#x}", info.address);
            return None;
        }
        for input in 0..io_apic.inputs {
            io_apic.write(TABLE + 2 * input, ENTRY_MASKED);
        }
        Some(io_apic)
    };
    IO_APICS.call_once(|| found.iter().filter_map(take).collect());
}

fn find(gsi: u32) -> Option<(&'static IoApic, u32)> {
    IO_APICS.get()?.iter().find_map(|io_apic| {
        let input = gsi.checked_sub(io_apic.first_gsi)?;
        (input < io_apic.inputs).then_some((io_apic, input))
    })
}

/// Whether an I/O APIC has this input.
pub fn has(gsi: u32) -> bool {
    find(gsi).is_some()
}

/// The interrupts of the I/O APIC that begins with `first_gsi` are remapped from now on: before any
/// input is routed.
pub fn remap(first_gsi: u32, remapping: Remapping) {
    let io_apics = IO_APICS.get().into_iter().flatten();
    for io_apic in io_apics.filter(|io_apic| io_apic.first_gsi == first_gsi) {
        io_apic.remapping.call_once(|| remapping.clone());
    }
}

impl IoApic {
    /// What the upper half of an input's entry says of where it goes, and what the lower half adds.
    fn destination(&self, input: u32, vector: Vector, trigger: Trigger) -> Option<(u32, u32)> {
        let Some(remapping) = self.remapping.get() else {
            return Some((vector.apic_id << 24, 0));
        };
        let mut entries = self.entries.lock();
        let entry = match entries.get(&input) {
            Some(&entry) => {
                remapping.retarget(entry, vector, trigger.level);
                entry
            }
            None => {
                let entry = remapping.bind(vector, trigger.level)?;
                entries.insert(input, entry);
                entry
            }
        };
        // VT-d 5.1.2.1: the number in bits 63 to 49, its highest bit in bit 11.
        let entry = u32::from(entry);
        Some(((entry & 0x7fff) << 17 | 1 << 16, entry >> 15 << 11))
    }
}

/// Routes input `gsi` to `vector`, unmasked. Where interrupts are not remapped, to APIC IDs up to 255
/// alone.
pub fn route(gsi: u32, vector: Vector, trigger: Trigger) {
    let Some((io_apic, input)) = find(gsi) else {
        return;
    };
    let Some((high, more)) = io_apic.destination(input, vector, trigger) else {
        return;
    };
    let mut low = u32::from(vector.vector) | more;
    if trigger.level {
        low |= ENTRY_LEVEL;
    }
    if trigger.low {
        low |= ENTRY_LOW;
    }
    locked(|| {
        io_apic.write(TABLE + 2 * input, ENTRY_MASKED);
        io_apic.write(TABLE + 2 * input + 1, high);
        io_apic.write(TABLE + 2 * input, low);
    });
}

/// Masks or unmasks input `gsi`. Task context.
pub fn set_masked(gsi: u32, masked: bool) {
    locked(|| change_mask(gsi, masked));
}

/// Masks an input from the handler of its interrupt.
pub fn mask_in_interrupt(gsi: u16) {
    with_registers(|| change_mask(gsi.into(), true));
}

fn change_mask(gsi: u32, masked: bool) {
    if let Some((io_apic, input)) = find(gsi) {
        let index = TABLE + 2 * input;
        let entry = io_apic.read(index) & !ENTRY_MASKED;
        io_apic.write(index, if masked { entry | ENTRY_MASKED } else { entry });
    }
}

fn locked<T>(access: impl FnOnce() -> T) -> T {
    x86_64::instructions::interrupts::without_interrupts(|| with_registers(access))
}
