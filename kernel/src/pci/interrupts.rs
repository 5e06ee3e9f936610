//! A function's interrupts: MSI-X, MSI, and the pin. PCI Express Base 7.7.

use alloc::sync::{Arc, Weak};

use hal::irq::{IrqError, IrqEvent, IrqKind, IrqOps};
use hal::mmio::MmioRegion;
use hal::pci::{Address, Config, header};
use litemap::LiteMap;
use spin::Mutex;
use vtd::Message;

use crate::acpi::madt::Trigger;
use crate::iommu::Remapping;
use crate::irq::{self, Retarget, Vector};

const MSI: u8 = 0x05;
const MSIX: u8 = 0x11;
const MSI_ENABLE: u16 = 1;
const MSI_WIDE: u16 = 1 << 7;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK_ALL: u16 = 1 << 14;
const MSIX_ENTRY: usize = 16;
const INTERRUPT_PIN: usize = 0x3d;

/// Binds one function's interrupts.
pub struct FunctionInterrupts {
    this: Weak<Self>,
    name: &'static str,
    config: Config,
    /// The BAR that holds the MSI-X table, where there is one.
    table: Option<(MmioRegion, usize)>,
    /// The I/O APIC input that the pin leads to, where that is known.
    input: Option<u32>,
    /// As whom it interrupts, where that is remapped.
    remapping: Option<Remapping>,
    bound: Mutex<LiteMap<(IrqKind, usize), Bound>>,
}

struct Bound {
    event: Arc<IrqEvent>,
    vector: Option<Vector>,
    /// The remapping entry that leads to the vector.
    entry: Option<u16>,
}

impl Bound {
    /// What the function is to write, where it writes anything.
    fn message(&self) -> Option<Message> {
        let direct = |vector: Vector| Message {
            // Intel SDM volume 3, 11.11: physical destination, fixed delivery, edge.
            address: u64::from(0xfee0_0000 | vector.apic_id << 12),
            data: u32::from(vector.vector),
        };
        self.entry.map(Message::of).or(self.vector.map(direct))
    }
}

impl FunctionInterrupts {
    /// The interrupts of the function with this configuration space. `bars` are its mapped BARs;
    /// `input` is where its pin leads.
    pub fn new(
        name: &'static str,
        config: Config,
        bars: &[Option<MmioRegion>; 6],
        input: Option<u32>,
        remapping: Option<Remapping>,
    ) -> Arc<Self> {
        let table = config.capability(MSIX).and_then(|cap| {
            let place = config.read32(cap + 4);
            let region = bars.get(place as usize & 7)?.clone()?;
            Some((region, (place & !7) as usize))
        });
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            name,
            config,
            table,
            input,
            remapping,
            bound: Mutex::new(LiteMap::new()),
        })
    }

    /// The pin of the function at `address`, 0 to 3, where it has one.
    pub fn pin(config: &Config) -> Option<u8> {
        config
            .read8(INTERRUPT_PIN)
            .checked_sub(1)
            .filter(|&pin| pin < 4)
    }

    fn write_message(&self, kind: IrqKind, index: usize, message: Message) {
        let Message { address, data } = message;
        let (address, high) = (address as u32, (address >> 32) as u32);
        match kind {
            IrqKind::MsiX => {
                if let (Some((table, offset)), Some(cap)) =
                    (&self.table, self.config.capability(MSIX))
                {
                    let entry = offset + index * MSIX_ENTRY;
                    table.write32(entry + 12, 1);
                    table.write32(entry, address);
                    table.write32(entry + 4, high);
                    table.write32(entry + 8, data);
                    table.write32(entry + 12, 0);
                    let control = self.config.read16(cap + 2);
                    self.config
                        .write16(cap + 2, (control | MSIX_ENABLE) & !MSIX_MASK_ALL);
                }
            }
            IrqKind::Msi => {
                if let Some(cap) = self.config.capability(MSI) {
                    let control = self.config.read16(cap + 2);
                    self.config.write32(cap + 4, address);
                    let data_at = if control & MSI_WIDE != 0 {
                        self.config.write32(cap + 8, high);
                        cap + 12
                    } else {
                        cap + 8
                    };
                    self.config.write16(data_at, data as u16);
                    // One message, enabled.
                    self.config
                        .write16(cap + 2, control & !(7 << 4) | MSI_ENABLE);
                }
            }
            IrqKind::Intx => {}
        }
    }

    fn disable(&self, kind: IrqKind) {
        let (id, bit) = match kind {
            IrqKind::MsiX => (MSIX, MSIX_ENABLE),
            IrqKind::Msi => (MSI, MSI_ENABLE),
            IrqKind::Intx => {
                self.config.update_command(header::COMMAND_INTX_DISABLE, 0);
                return;
            }
        };
        if let Some(cap) = self.config.capability(id) {
            let control = self.config.read16(cap + 2);
            self.config.write16(cap + 2, control & !bit);
        }
    }
}

impl Retarget for FunctionInterrupts {
    fn retarget(&self, event: &Arc<IrqEvent>, vector: Vector) {
        let mut bound = self.bound.lock();
        let found = bound
            .iter_mut()
            .find(|(_, bound)| Arc::ptr_eq(&bound.event, event));
        if let Some((&(kind, index), bound)) = found {
            bound.vector = Some(vector);
            match (&self.remapping, bound.entry) {
                (Some(remapping), Some(entry)) => remapping.retarget(entry, vector, false),
                _ => {
                    if let Some(message) = bound.message() {
                        self.write_message(kind, index, message);
                    }
                }
            }
        }
    }
}

impl IrqOps for FunctionInterrupts {
    fn available(&self, kind: IrqKind) -> usize {
        match kind {
            IrqKind::MsiX => match (&self.table, self.config.capability(MSIX)) {
                (Some((table, offset)), Some(cap)) => {
                    let said = usize::from(self.config.read16(cap + 2) & 0x7ff) + 1;
                    said.min(table.len().saturating_sub(*offset) / MSIX_ENTRY)
                }
                _ => 0,
            },
            IrqKind::Msi => usize::from(self.config.capability(MSI).is_some()),
            IrqKind::Intx => usize::from(Self::pin(&self.config).is_some()),
        }
    }

    fn bind(&self, kind: IrqKind, index: usize, event: Arc<IrqEvent>) -> Result<(), IrqError> {
        let mut bound = self.bound.lock();
        let (vector, entry) = match kind {
            IrqKind::Intx => {
                let input = self.input.ok_or(IrqError::NoRoute)?;
                if !irq::bind_input(self.name, input, Trigger::PCI, event.clone()) {
                    return Err(IrqError::Exhausted);
                }
                self.config.update_command(0, header::COMMAND_INTX_DISABLE);
                (None, None)
            }
            _ => {
                let vector = irq::bind_message(self.name, event.clone(), Some(self.this.clone()))
                    .ok_or(IrqError::Exhausted)?;
                let remap = |remapping: &Remapping| {
                    let entry = remapping.bind(vector, false);
                    entry.ok_or_else(|| irq::unbind(&event))
                };
                let entry = self.remapping.as_ref().map(remap).transpose();
                let entry = entry.map_err(|()| IrqError::Exhausted)?;
                self.config.update_command(header::COMMAND_INTX_DISABLE, 0);
                (Some(vector), entry)
            }
        };
        let new = Bound {
            event,
            vector,
            entry,
        };
        if let Some(message) = new.message() {
            self.write_message(kind, index, message);
        }
        bound.insert((kind, index), new);
        Ok(())
    }

    fn unbind(&self, kind: IrqKind, index: usize) {
        let mut bound = self.bound.lock();
        let Some(gone) = bound.remove(&(kind, index)) else {
            return;
        };
        // One that was found absent is not touched.
        let table = self.table.as_ref().filter(|_| !self.config.is_absent());
        if let (IrqKind::MsiX, Some((table, offset))) = (kind, table) {
            table.write32(offset + index * MSIX_ENTRY + 12, 1);
        }
        if !bound.keys().any(|&(other, _)| other == kind) {
            self.disable(kind);
        }
        if let (Some(remapping), Some(entry)) = (&self.remapping, gone.entry) {
            remapping.unbind(entry);
        }
        irq::unbind(&gone.event);
    }

    fn unmask(&self, kind: IrqKind, index: usize) {
        let bound = self.bound.lock();
        if let (Some(input), Some(bound)) = (self.input, bound.get(&(kind, index))) {
            irq::unmask_input(input, &bound.event);
        }
    }

    fn restore(&self) {
        for (&(kind, index), bound) in self.bound.lock().iter() {
            if let Some(message) = bound.message() {
                self.write_message(kind, index, message);
            }
        }
    }
}

/// Where the pin of the function at `address` enters the I/O APIC, where that is known: see
/// [`irq::intx`].
pub fn input(address: Address, config: &Config, above: &[Address], is_ich9: bool) -> Option<u32> {
    let pin = FunctionInterrupts::pin(config)?;
    is_ich9
        .then(|| irq::intx::ich9_input(address, pin, above))
        .flatten()
}
