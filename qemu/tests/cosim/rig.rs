//! The real engine model wired to the real driver: registers, configuration space, interrupts and
//! memory, in one process.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dmaengine::{DmaChan, Registry};
use hal::dma::{Buffer, DmaOps, DmaSpace, MapError, RawMapping};
use hal::host;
use hal::irq::{Interrupts, IrqError, IrqEvent, IrqKind, IrqOps};
use hal::mmio::{MmioOps, MmioRegion, Width};
use hal::pci::{Address, Config, ConfigOps, Function, Identity, header};
use hal::time::Duration;
use ioat_model::{CopyError, Engine, EngineConfig, GuestMemory, InterruptSink, Irq, MemoryError};
use ioat_spec::{ChanCmd, channel};

/// Faults of what lies between driver and engine, to be switched on by a test.
#[derive(Default)]
pub(crate) struct Tricks {
    /// No command reaches a channel, and RESET never ends.
    pub(crate) no_reset: AtomicBool,
    /// Completion words name descriptors that are not in the ring.
    pub(crate) foreign_completion: AtomicBool,
    /// No descriptor can be read.
    pub(crate) no_fetch: AtomicBool,
    /// Copies that the engine has begun.
    pub(crate) copies: AtomicUsize,
    /// The copy of this number, from 1, lasts until a channel is told to suspend, and fails then
    /// where `fail_held` is set.
    pub(crate) hold: AtomicUsize,
    pub(crate) fail_held: AtomicBool,
    suspended: AtomicBool,
    /// Or until this is set; `late` is set when it has been done then.
    pub(crate) release: AtomicBool,
    pub(crate) late: AtomicBool,
    /// Registers and, where that is set too, configuration space read all ones, and writes go
    /// nowhere. The engine itself goes on.
    pub(crate) deaf: AtomicBool,
    pub(crate) deaf_config: AtomicBool,
    /// The port above the engine can be told to pass nothing on; how often it was asked; and that it
    /// does so.
    pub(crate) isolable: AtomicBool,
    pub(crate) isolations: AtomicUsize,
    isolated: AtomicBool,
    /// Somebody has taken everything from the engine.
    pub(crate) revoked: AtomicBool,
    /// The engine reaches what is mapped for it, and nothing else.
    pub(crate) confines: AtomicBool,
    mapped: Mutex<Vec<Range<u64>>>,
    /// A RESET waits while `hold_reset` is set, and says so.
    pub(crate) hold_reset: AtomicBool,
    pub(crate) reset_held: AtomicBool,
}

impl Tricks {
    /// Whether the engine reaches `len` bytes at `addr`.
    fn reaches(&self, addr: u64, len: usize) -> Result<(), MemoryError> {
        let inside = |range: &Range<u64>| range.contains(&addr) && len as u64 <= range.end - addr;
        let reached = !self.confines.load(Ordering::Relaxed)
            || self.mapped.lock().unwrap().iter().any(inside);
        reached.then_some(()).ok_or(MemoryError)
    }

    /// Holds a copy. Bounded, for a driver that suspends nothing.
    fn held(&self) {
        let begun = std::time::Instant::now();
        let over =
            || self.suspended.load(Ordering::Relaxed) || self.release.load(Ordering::Relaxed);
        while !over() && begun.elapsed().as_secs() < 20 {
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    }
}

/// The arena as the engine sees it.
struct Arena(Arc<Tricks>);

impl GuestMemory for Arena {
    fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.0.reaches(addr, bytes.len())?;
        host::bus_read(addr, bytes).map_err(|_| MemoryError)
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.0.reaches(addr, bytes.len())?;
        host::bus_write(addr, bytes).map_err(|_| MemoryError)
    }

    fn copy(&self, src: u64, dst: u64, len: usize) -> Result<(), CopyError> {
        let n = self.0.copies.fetch_add(1, Ordering::Relaxed) + 1;
        if n == self.0.hold.load(Ordering::Relaxed) {
            self.0.held();
            if self.0.fail_held.load(Ordering::Relaxed) {
                return Err(CopyError::Source);
            }
        }
        let reaches = |addr| self.0.reaches(addr, len);
        reaches(src).map_err(|_| CopyError::Source)?;
        reaches(dst).map_err(|_| CopyError::Destination)?;
        host::bus_pointer(src, len).map_err(|_| CopyError::Source)?;
        let isolated = self.0.isolated.load(Ordering::SeqCst);
        let copied = if isolated {
            Err(CopyError::Destination)
        } else {
            host::bus_copy(src, dst, len).map_err(|_| CopyError::Destination)
        };
        let released = self.0.release.load(Ordering::Relaxed);
        self.0.late.store(released, Ordering::Release);
        copied
    }

    fn load64(&self, addr: u64) -> Result<u64, MemoryError> {
        // Descriptors are all that the engine reads so.
        if self.0.no_fetch.load(Ordering::Relaxed) {
            return Err(MemoryError);
        }
        self.0.reaches(addr, 8)?;
        host::bus_load64(addr).map_err(|_| MemoryError)
    }

    fn store64(&self, addr: u64, value: u64) -> Result<(), MemoryError> {
        // Completion words are all that the engine writes so.
        if self.0.isolated.load(Ordering::SeqCst) {
            return Err(MemoryError);
        }
        self.0.reaches(addr, 8)?;
        let foreign = self.0.foreign_completion.load(Ordering::Relaxed);
        let value = if foreign { value + (1 << 30) } else { value };
        host::bus_store64(addr, value).map_err(|_| MemoryError)
    }
}

/// What the interrupt controller and the kernel's handlers do.
#[derive(Default)]
struct Controller {
    state: Mutex<Lines>,
}

/// So many interrupts of the pin are a storm: no more come, and the test goes on to its end.
const STORM: usize = 100_000;

#[derive(Default)]
struct Lines {
    messages: Vec<Option<Arc<IrqEvent>>>,
    pin: Option<Arc<IrqEvent>>,
    asserted: bool,
    masked: bool,
    /// How often the pin has interrupted.
    interrupts: usize,
    /// Which capability is enabled, to enable it anew after a reset that lost it.
    kind: Option<IrqKind>,
}

impl Controller {
    fn lines(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pin that is asserted and not masked raises its event, and is masked.
    fn pin(&self, change: impl FnOnce(&mut Lines)) {
        let event = {
            let mut lines = self.lines();
            change(&mut lines);
            if !lines.asserted || lines.masked || lines.interrupts == STORM {
                return;
            }
            lines.masked = true;
            lines.interrupts += 1;
            lines.pin.clone()
        };
        if let Some(event) = event {
            event.raise();
            event.wake();
        }
    }
}

impl InterruptSink for Controller {
    fn message(&self, vector: usize) {
        let event = self.lines().messages.get(vector).cloned().flatten();
        if let Some(event) = event {
            event.raise();
            event.wake();
        }
    }

    fn set_intx(&self, asserted: bool) {
        self.pin(|lines| lines.asserted = asserted);
    }
}

struct Bar(Arc<Engine>, Arc<Tricks>);

impl Bar {
    fn is_command(offset: usize) -> bool {
        offset % channel::STRIDE == channel::CHANCMD && offset >= channel::STRIDE
    }

    fn is_dead_command(&self, offset: usize) -> bool {
        Self::is_command(offset) && self.1.no_reset.load(Ordering::Relaxed)
    }
}

impl MmioOps for Bar {
    fn read(&self, offset: usize, width: Width) -> u64 {
        if self.is_dead_command(offset) {
            return ChanCmd::RESET.bits().into();
        }
        if self.1.deaf.load(Ordering::Relaxed) {
            return width.ones();
        }
        let mut bytes = [0; 8];
        let answer = self.0.answers_in();
        self.0.bar_read(offset as u64, &mut bytes[..width.bytes()]);
        // What QEMU does while an engine does not answer, but for less than its 5 s.
        std::thread::sleep(answer.unwrap_or(std::time::Duration::from_millis(20)));
        u64::from_le_bytes(bytes)
    }

    fn write(&self, offset: usize, width: Width, value: u64) {
        if Self::is_command(offset) && value == u64::from(ChanCmd::RESET.bits()) {
            while self.1.hold_reset.load(Ordering::Relaxed) {
                self.1.reset_held.store(true, Ordering::Relaxed);
                std::thread::yield_now();
            }
        }
        if self.is_dead_command(offset) || self.1.deaf.load(Ordering::Relaxed) {
            return;
        }
        let bytes = value.to_le_bytes();
        self.0.bar_write(offset as u64, &bytes[..width.bytes()]);
        if Self::is_command(offset) && value == u64::from(ChanCmd::SUSPEND.bits()) {
            self.1.suspended.store(true, Ordering::Relaxed);
        }
    }
}

/// The bus as the engine's address space: addresses are physical ones.
struct Bus(Arc<Engine>, Arc<Tricks>);

impl DmaOps for Bus {
    fn map(&self, buffers: &[Buffer<'_>], mapping: &mut RawMapping) -> Result<(), MapError> {
        mapping.push_direct(buffers);
        for &(addr, len) in mapping.segments() {
            let range = addr..addr + len as u64;
            self.0.announce(range.clone());
            self.1.mapped.lock().unwrap().push(range);
        }
        Ok(())
    }

    fn unmap(&self, mapping: &RawMapping) {
        for &(addr, len) in mapping.segments() {
            let range = addr..addr + len as u64;
            let mut mapped = self.1.mapped.lock().unwrap();
            let at = mapped.iter().position(|known| *known == range);
            mapped.swap_remove(at.expect("mapped once for each time"));
            drop(mapped);
            self.0.withdraw(range);
        }
    }

    fn is_revoked(&self) -> bool {
        self.1.revoked.load(Ordering::Relaxed)
    }

    fn isolate(&self) -> bool {
        self.1.isolations.fetch_add(1, Ordering::Relaxed);
        let isolated = self.1.isolable.load(Ordering::Relaxed);
        self.1.isolated.fetch_or(isolated, Ordering::SeqCst);
        isolated
    }
}

struct Space(Arc<Engine>, Arc<Tricks>);

impl Space {
    fn is_deaf(&self) -> bool {
        self.1.deaf_config.load(Ordering::Relaxed)
    }
}

impl ConfigOps for Space {
    fn len(&self) -> usize {
        4096
    }

    fn read(&self, offset: usize, width: Width) -> u32 {
        if self.is_deaf() {
            return width.ones() as u32;
        }
        let mut bytes = [0; 4];
        self.0
            .config_read(offset as u64, &mut bytes[..width.bytes()]);
        u32::from_le_bytes(bytes)
    }

    fn write(&self, offset: usize, width: Width, value: u32) {
        if self.is_deaf() {
            return;
        }
        let bytes = value.to_le_bytes();
        self.0.config_write(offset as u64, &bytes[..width.bytes()]);
    }
}

struct Routes {
    controller: Arc<Controller>,
    config: Config,
    channels: usize,
}

const CAP_MSI: u8 = 0x05;
const CAP_MSIX: u8 = 0x11;
const MSI_ENABLE: u16 = 1 << 0;
const MSIX_ENABLE: u16 = 1 << 15;

impl Routes {
    fn enable(&self, kind: IrqKind, on: bool) {
        let (id, bit) = match kind {
            IrqKind::MsiX => (CAP_MSIX, MSIX_ENABLE),
            IrqKind::Msi => (CAP_MSI, MSI_ENABLE),
            IrqKind::Intx => return,
        };
        if let Some(cap) = self.config.capability(id) {
            let control = self.config.read16(cap + 2);
            let control = if on { control | bit } else { control & !bit };
            self.config.write16(cap + 2, control);
        }
    }
}

impl IrqOps for Routes {
    fn available(&self, kind: IrqKind) -> usize {
        match kind {
            IrqKind::MsiX => self
                .config
                .capability(CAP_MSIX)
                .map_or(0, |_| self.channels),
            IrqKind::Msi => self.config.capability(CAP_MSI).map_or(0, |_| 1),
            IrqKind::Intx => 1,
        }
    }

    fn bind(&self, kind: IrqKind, index: usize, event: Arc<IrqEvent>) -> Result<(), IrqError> {
        {
            let mut lines = self.controller.lines();
            lines.kind = Some(kind);
            if kind == IrqKind::Intx {
                lines.pin = Some(event);
            } else {
                let len = lines.messages.len().max(index + 1);
                lines.messages.resize(len, None);
                lines.messages[index] = Some(event);
            }
        }
        self.enable(kind, true);
        Ok(())
    }

    fn unbind(&self, kind: IrqKind, index: usize) {
        let left = {
            let mut lines = self.controller.lines();
            if kind == IrqKind::Intx {
                lines.pin = None;
            } else if let Some(line) = lines.messages.get_mut(index) {
                *line = None;
            }
            lines.pin.is_some() || lines.messages.iter().any(Option::is_some)
        };
        if !left {
            self.enable(kind, false);
        }
    }

    fn unmask(&self, _: IrqKind, _: usize) {
        self.controller.pin(|lines| lines.masked = false);
    }

    fn restore(&self) {
        let kind = self.controller.lines().kind;
        if let Some(kind) = kind {
            self.enable(kind, true);
        }
    }
}

/// An engine, and a registry for its driver.
pub(crate) struct Rig {
    pub(crate) engine: Arc<Engine>,
    pub(crate) registry: Registry,
    pub(crate) tricks: Arc<Tricks>,
    controller: Arc<Controller>,
    config: EngineConfig,
}

/// An engine with the driver that was probed on it.
pub(crate) struct Driven {
    pub(crate) rig: Rig,
    pub(crate) driver: ioat::Engine,
}

impl Rig {
    pub(crate) fn new(config: EngineConfig) -> Self {
        let controller = Arc::new(Controller::default());
        let tricks = Arc::new(Tricks::default());
        tricks.isolable.store(true, Ordering::Relaxed);
        let memory = Arc::new(Arena(tricks.clone()));
        let engine = Engine::new(config.clone(), memory, controller.clone()).unwrap();
        Self {
            engine,
            registry: Registry::new(),
            tricks,
            controller,
            config,
        }
    }

    /// The function as a kernel's bus would hand it to a driver.
    pub(crate) fn function(&self) -> Function {
        let config = Config::new(Arc::new(Space(self.engine.clone(), self.tricks.clone())));
        config.update_command(header::COMMAND_MEMORY, header::COMMAND_BUS_MASTER);
        let routes = Routes {
            controller: self.controller.clone(),
            config: config.clone(),
            channels: self.config.channels,
        };
        let bar = MmioRegion::new(
            Arc::new(Bar(self.engine.clone(), self.tricks.clone())),
            16 << 10,
        );
        let mut bars = [const { None }; 6];
        bars[0] = Some(bar);
        Function {
            address: Address {
                segment: 0,
                bus: 1,
                device: 0,
                function: 0,
            },
            identity: Identity {
                vendor: config.read16(header::VENDOR),
                device: config.read16(header::DEVICE),
                class: config.read32(8) >> 8,
                revision: config.read8(8),
            },
            config,
            bars,
            dma: DmaSpace::new(Arc::new(Bus(self.engine.clone(), self.tricks.clone()))),
            interrupts: Interrupts::new(Arc::new(routes)),
            node: None,
        }
    }

    /// Whether the engine may access memory.
    pub(crate) fn bus_master(&self) -> bool {
        let config = Config::new(Arc::new(Space(self.engine.clone(), self.tricks.clone())));
        config.read16(header::COMMAND) & header::COMMAND_BUS_MASTER != 0
    }

    /// How often the pin has interrupted.
    pub(crate) fn pin_interrupts(&self) -> usize {
        self.controller.lines().interrupts
    }

    pub(crate) fn probe(self, options: ioat::Options) -> Driven {
        let driver = self.try_probe(options).unwrap();
        Driven { rig: self, driver }
    }

    pub(crate) fn try_probe(
        &self,
        options: ioat::Options,
    ) -> Result<ioat::Engine, ioat::ProbeError> {
        let function = self.function();
        host::block_on(ioat::probe_with(function, &self.registry, options))
    }
}

impl Driven {
    pub(crate) fn new(config: EngineConfig, options: ioat::Options) -> Self {
        Rig::new(config).probe(options)
    }

    pub(crate) fn chan(&self, index: usize) -> DmaChan {
        self.driver.device().channels().nth(index).unwrap()
    }

    /// Removes the engine and checks that it is left as it should be.
    pub(crate) fn remove(self) -> dmaengine::Removal {
        let removal = host::block_on(self.driver.remove(Duration::from_secs(1)));
        assert!(!self.rig.bus_master() || self.rig.engine.statistics().mmio_after_gone > 0);
        assert!(self.rig.registry.devices().is_empty());
        let lines = self.rig.controller.lines();
        assert!(lines.pin.is_none() && lines.messages.iter().all(Option::is_none));
        removal
    }
}

/// An engine of `version` with one way to interrupt.
pub(crate) fn config(version: ioat_spec::CbVer, irq: Irq) -> EngineConfig {
    EngineConfig {
        irq,
        ..EngineConfig::new(version)
    }
}
