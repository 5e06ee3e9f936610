//! The device's other side, for tests: registers, a buffer, one address mask, a small delay.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use hal::dma::{Buffer, Direction, DmaOps, DmaSpace, MapError, RawMapping};
use hal::host;
use hal::irq::{Interrupts, IrqError, IrqEvent, IrqKind, IrqOps};
use hal::mmio::{MmioOps, MmioRegion, Width};
use hal::pci::{Address, Config, ConfigOps, Function, Identity, header};

use crate::hardware::{BUFFER, BUFFER_LEN, DEVICE, VENDOR, command, reg};

/// Address lines with which the host's whole arena is within reach.
pub(crate) const BITS: u32 = 33;
/// How long a transfer takes.
const DELAY: Duration = Duration::from_micros(300);

/// What is wrong with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Transfers do not end.
    pub(crate) hang: bool,
    /// All registers read ones.
    pub(crate) all_ones: bool,
    /// Interrupts do not arrive.
    pub(crate) lose_interrupts: bool,
    /// The liveness register answers nonsense.
    pub(crate) dead: bool,
}

/// What the device is.
pub(crate) struct Fake {
    state: Mutex<State>,
    changed: Condvar,
    identification: u32,
    mask: u64,
    kind: Option<IrqKind>,
}

#[derive(Default)]
struct State {
    faults: Faults,
    live: u32,
    status: u32,
    source: u64,
    destination: u64,
    count: u64,
    command: u32,
    due: Option<Instant>,
    buffer: Vec<u8>,
    pci_command: u16,
    event: Option<Arc<IrqEvent>>,
    masked: bool,
    transfers: usize,
    accesses: usize,
    /// Accesses that no correct driver makes.
    mistakes: Vec<String>,
    closed: bool,
}

impl Fake {
    pub(crate) fn new(identification: u32, bits: u32, kind: Option<IrqKind>) -> Arc<Self> {
        let fake = Arc::new(Self {
            state: Mutex::new(State {
                buffer: vec![0; BUFFER_LEN],
                ..State::default()
            }),
            changed: Condvar::new(),
            identification,
            mask: (1 << bits) - 1,
            kind,
        });
        let device = fake.clone();
        std::thread::spawn(move || device.run());
        fake
    }

    pub(crate) fn healthy(kind: Option<IrqKind>) -> Arc<Self> {
        Self::new(0x0100_00ed, BITS, kind)
    }

    /// The function; with `near` its buffers are within its reach, else bounce memory alone is.
    pub(crate) fn function(self: &Arc<Self>, near: bool) -> Function {
        let region = MmioRegion::new(Arc::new(Registers(self.clone())), 1 << 20);
        Function {
            address: Address {
                segment: 0,
                bus: 0,
                device: 3,
                function: 0,
            },
            identity: Identity {
                vendor: VENDOR,
                device: DEVICE,
                class: 0x00ff00,
                revision: 0x10,
            },
            config: Config::new(Arc::new(Space(self.clone()))),
            bars: [Some(region), None, None, None, None, None],
            dma: DmaSpace::new(Arc::new(Addresses { near })),
            interrupts: Interrupts::new(Arc::new(Lines(self.clone()))),
            node: None,
        }
    }

    pub(crate) fn set(&self, faults: Faults) {
        self.lock().faults = faults;
        self.changed.notify_all();
    }

    /// Starts a transfer that nobody of ours asked for.
    pub(crate) fn left_running(&self, delay: Duration) {
        let mut state = self.lock();
        state.command = command::START;
        (state.source, state.count) = (0, 1);
        (state.destination, state.due) = (BUFFER, Some(Instant::now() + delay));
        self.changed.notify_all();
    }

    pub(crate) fn transfers(&self) -> usize {
        self.lock().transfers
    }

    /// How often registers were read or written.
    pub(crate) fn accesses(&self) -> usize {
        self.lock().accesses
    }

    pub(crate) fn is_bus_master(&self) -> bool {
        self.lock().pci_command & header::COMMAND_BUS_MASTER != 0
    }

    pub(crate) fn is_bound(&self) -> bool {
        self.lock().event.is_some()
    }

    pub(crate) fn mistakes(&self) -> Vec<String> {
        self.lock().mistakes.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The device's own time.
    fn run(&self) {
        let mut state = self.lock();
        while !state.closed {
            let now = Instant::now();
            state = match state.due.filter(|_| !state.faults.hang) {
                Some(due) if due <= now => {
                    self.finish(&mut state);
                    state
                }
                Some(due) => self.changed.wait_timeout(state, due - now).unwrap().0,
                None => self.changed.wait(state).unwrap(),
            };
        }
    }

    /// Does the transfer.
    fn finish(&self, state: &mut State) {
        state.due = None;
        state.transfers += 1;
        let count = state.count as usize;
        let to_memory = state.command & command::TO_MEMORY != 0;
        let (inside, memory) = if to_memory {
            (state.source, state.destination)
        } else {
            (state.destination, state.source)
        };
        let start = inside.wrapping_sub(BUFFER) as usize;
        if memory & !self.mask != 0 {
            state.mistakes.push(format!("address {memory:#x}"));
        }
        let memory = memory & self.mask;
        if state.pci_command & header::COMMAND_BUS_MASTER == 0 {
            // Its requests are not answered.
        } else if start.saturating_add(count) > BUFFER_LEN {
            state.mistakes.push(format!("{count} bytes at {inside:#x}"));
        } else {
            let bytes = &mut state.buffer[start..start + count];
            let moved = if to_memory {
                host::bus_write(memory, bytes)
            } else {
                host::bus_read(memory, bytes)
            };
            if moved.is_err() {
                state.mistakes.push(format!("no memory at {memory:#x}"));
            }
        }
        let interrupts = state.command & command::INTERRUPT != 0;
        state.command &= !command::START;
        if interrupts {
            state.status |= 0x100;
            self.interrupt(state);
        }
    }

    fn interrupt(&self, state: &mut State) {
        if state.faults.lose_interrupts || state.status == 0 || state.masked {
            return;
        }
        if let Some(event) = &state.event {
            // A level-triggered line stays masked until its owner waits again.
            state.masked = self.kind == Some(IrqKind::Intx);
            event.raise();
            event.wake();
        }
    }

    /// Ends the device's thread.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

struct Registers(Arc<Fake>);

impl MmioOps for Registers {
    fn read(&self, offset: usize, width: Width) -> u64 {
        let mut state = self.0.lock();
        state.accesses += 1;
        if state.faults.all_ones || width != Width::B4 && (offset < 0x80 || width != Width::B8) {
            return width.ones();
        }
        match offset {
            reg::IDENTIFICATION => self.0.identification.into(),
            reg::LIVENESS => state.live.into(),
            reg::INTERRUPT_STATUS => state.status.into(),
            reg::DMA_SOURCE => state.source,
            reg::DMA_DESTINATION => state.destination,
            reg::DMA_COUNT => state.count,
            reg::DMA_COMMAND => state.command.into(),
            _ => width.ones(),
        }
    }

    fn write(&self, offset: usize, width: Width, value: u64) {
        let mut state = self.0.lock();
        state.accesses += 1;
        if width != Width::B4 && (offset < 0x80 || width != Width::B8) {
            state
                .mistakes
                .push(format!("a write of {width:?} at {offset:#x}"));
            return;
        }
        if offset >= 0x80 && state.command & command::START != 0 {
            state
                .mistakes
                .push(format!("a write at {offset:#x} during a transfer"));
            return;
        }
        match offset {
            reg::LIVENESS if state.faults.dead => state.live = 7,
            reg::LIVENESS => state.live = !value as u32,
            reg::INTERRUPT_ACKNOWLEDGE => state.status &= !value as u32,
            reg::DMA_SOURCE => state.source = value,
            reg::DMA_DESTINATION => state.destination = value,
            reg::DMA_COUNT => state.count = value,
            reg::DMA_COMMAND if value as u32 & command::START != 0 => {
                state.command = value as u32;
                state.due = Some(Instant::now() + DELAY);
                self.0.changed.notify_all();
            }
            _ => {}
        }
    }
}

struct Space(Arc<Fake>);

impl ConfigOps for Space {
    fn len(&self) -> usize {
        256
    }

    fn read(&self, offset: usize, width: Width) -> u32 {
        match (offset, width) {
            (header::VENDOR, Width::B2) => VENDOR.into(),
            (header::COMMAND, Width::B2) => self.0.lock().pci_command.into(),
            _ => 0,
        }
    }

    fn write(&self, offset: usize, _: Width, value: u32) {
        if offset == header::COMMAND {
            self.0.lock().pci_command = value as u16;
        }
    }
}

struct Lines(Arc<Fake>);

impl IrqOps for Lines {
    fn available(&self, kind: IrqKind) -> usize {
        usize::from(self.0.kind == Some(kind))
    }

    fn bind(&self, _: IrqKind, _: usize, event: Arc<IrqEvent>) -> Result<(), IrqError> {
        self.0.lock().event = Some(event);
        Ok(())
    }

    fn unbind(&self, _: IrqKind, _: usize) {
        self.0.lock().event = None;
    }

    fn unmask(&self, _: IrqKind, _: usize) {
        let mut state = self.0.lock();
        state.masked = false;
        self.0.interrupt(&mut state);
    }

    fn restore(&self) {}
}

/// Physical addresses; those of transfers moved out of reach unless `near`.
struct Addresses {
    near: bool,
}

impl DmaOps for Addresses {
    fn map(&self, buffers: &[Buffer<'_>], mapping: &mut RawMapping) -> Result<(), MapError> {
        for buffer in buffers {
            let far = !self.near && buffer.direction != Direction::Both;
            for memory in buffer.extents() {
                // Two segments, as from an IOMMU that keeps pages apart.
                let first = memory.len.min(4096 - memory.phys as usize % 4096);
                let base = memory.phys + if far { 1 << BITS } else { 0 };
                let all = [(base, first), (base + first as u64, memory.len - first)];
                for (addr, len) in all.into_iter().filter(|&(_, len)| len > 0) {
                    mapping.push(addr, len);
                }
            }
            mapping.end_buffer();
        }
        Ok(())
    }

    fn unmap(&self, _: &RawMapping) {}
}
