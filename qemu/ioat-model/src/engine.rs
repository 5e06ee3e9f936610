//! The engine as its embedding sees it: one PCI function.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ioat_spec::pci::{self, Quirks};
use ioat_spec::{ChanErr, channel, descriptor};

use crate::channel::Channel;
use crate::config_space;
use crate::execute::Limits;
use crate::fault::{Fault, Plan};
use crate::function::Function;
use crate::memory::{GuestMemory, InterruptSink, Requests};
use crate::options::{BadConfig, EngineConfig};
use crate::statistics::{Counters, Statistics, add};
use crate::strays::{Stray, StrayCount, Strays};
use crate::worker;

/// What the embedding and the channels' threads share.
pub(crate) struct Shared {
    pub(crate) config: EngineConfig,
    pub(crate) limits: Limits,
    pub(crate) plan: Plan,
    pub(crate) strays: Option<Arc<Strays>>,
    pub(crate) memory: Arc<dyn GuestMemory>,
    pub(crate) counters: Arc<Counters>,
    channels: Vec<Channel>,
    function: Mutex<Function>,
    /// Bus mastering as configuration space has it; each channel looks under its own lock.
    dma: AtomicBool,
    gone: AtomicBool,
    frozen: AtomicBool,
    ending: AtomicBool,
    pub(crate) hung: AtomicBool,
    pub(crate) data_seen: AtomicU64,
    pub(crate) interrupts_raised: AtomicU64,
}

impl Shared {
    pub(crate) fn function(&self) -> MutexGuard<'_, Function> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the function may access memory.
    pub(crate) fn dma_allowed(&self) -> bool {
        self.dma.load(Ordering::Relaxed) && !self.is_gone()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// From here on the engine is gone: what is under way stops, and nothing begins. One that was
    /// frozen answers again.
    pub(crate) fn vanish(&self) {
        self.frozen.store(false, Ordering::Relaxed);
        self.stop();
    }

    /// As [`Shared::vanish`], and no request is answered any more.
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::Relaxed);
        self.stop();
    }

    fn stop(&self) {
        self.gone.store(true, Ordering::SeqCst);
        if let Some(strays) = &self.strays {
            strays.end();
        }
        for channel in &self.channels {
            channel.stop.store(true, Ordering::SeqCst);
        }
    }
}

/// An I/OAT engine. Dropping it ends its threads.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// An engine at power-on, with a thread per channel.
    ///
    /// # Errors
    /// Where no engine can be so, or the threads cannot be had.
    pub fn new(
        config: EngineConfig,
        memory: Arc<dyn GuestMemory>,
        sink: Arc<dyn InterruptSink>,
    ) -> Result<Arc<Self>, BadConfig> {
        config.check()?;
        let counters = Arc::new(Counters::default());
        let channels = config.channels;
        let shared = Arc::new(Shared {
            limits: limits(&config),
            plan: Plan::new(&config.faults),
            strays: Strays::new(ordered_strays(&config.faults), memory.clone()),
            function: Mutex::new(Function::new(&config, sink, counters.clone())),
            channels: (0..channels).map(|n| Channel::new(n, channels)).collect(),
            config,
            memory,
            counters,
            dma: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            hung: AtomicBool::new(false),
            data_seen: AtomicU64::new(0),
            interrupts_raised: AtomicU64::new(0),
        });
        let engine = Arc::new(Self {
            shared: shared.clone(),
            threads: Mutex::new(Vec::with_capacity(channels)),
        });
        engine.reset();
        for n in 0..channels {
            let shared = shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("channel{n}"))
                .spawn(move || worker::run(&shared, &shared.channels[n]))
                .map_err(|_| BadConfig("no thread for a channel"))?;
            engine.threads().push(thread);
        }
        if let Some(strays) = &engine.shared.strays {
            let threads = strays.start();
            let threads = threads.map_err(|_| BadConfig("no thread for a stray"))?;
            engine.threads().extend(threads);
        }
        Ok(engine)
    }

    /// Bytes of address space that BAR0 asks for; the registers are in the first 16 KiB.
    pub fn bar_len(&self) -> u64 {
        self.shared.function().config.bar_len()
    }

    /// Reads BAR0. Any width and alignment; registers that one access covers are read at one
    /// moment where they belong to the same channel.
    pub fn bar_read(&self, offset: u64, bytes: &mut [u8]) {
        add(&self.shared.counters.mmio_reads, 1);
        if self.is_lost() {
            bytes.fill(0xff);
            return;
        }
        self.split(offset, bytes.len(), |place, from, len| {
            let part = &mut bytes[from..from + len];
            match place {
                Place::Channel(channel, at) => channel.read(at, part),
                Place::Function(at) => self.shared.function().read(at, part),
            }
        });
    }

    /// Writes BAR0.
    pub fn bar_write(&self, offset: u64, bytes: &[u8]) {
        add(&self.shared.counters.mmio_writes, 1);
        if self.is_lost() {
            return;
        }
        self.split(offset, bytes.len(), |place, from, len| {
            let part = &bytes[from..from + len];
            match place {
                Place::Channel(channel, at) => channel.write(&self.shared, at, part),
                Place::Function(at) => self.shared.function().write(at, part),
            }
        });
    }

    /// Reads configuration space, 4 KiB.
    pub fn config_read(&self, offset: u64, bytes: &mut [u8]) {
        if self.is_config_lost() {
            bytes.fill(0xff);
            return;
        }
        let offset = usize::try_from(offset).unwrap_or(config_space::LEN);
        self.shared.function().config.read(offset, bytes);
    }

    /// Writes configuration space. Once a write that turned bus mastering off has returned, the
    /// engine accesses no memory.
    pub fn config_write(&self, offset: u64, bytes: &[u8]) {
        if self.is_config_lost() {
            return;
        }
        let offset = usize::try_from(offset).unwrap_or(config_space::LEN);
        let mut function = self.shared.function();
        let flr = function.config.write(offset, bytes);
        let dma = function.config.gates().dma;
        self.shared.dma.store(dma, Ordering::Relaxed);
        function.deliver();
        drop(function);
        self.learn(|strays| strays.set_bus_master(dma));
        if flr {
            self.power_on(false);
        } else if dma {
            self.shared.channels.iter().for_each(Channel::wake);
        } else {
            self.quiesce();
        }
    }

    /// Reset of the whole function, as at the machine's start. With [`Fault::Dirty`] it comes up
    /// as somebody left it; after a function-level reset by the guest it does not.
    pub fn reset(&self) {
        self.power_on(self.shared.plan.dirty);
    }

    /// From here on the engine is gone: registers read all ones, DMA has stopped. For ever. One that
    /// was frozen answers so, what it was asked meanwhile as well.
    pub fn vanish(&self) {
        self.shared.vanish();
        self.quiesce();
    }

    /// From here on the engine answers nothing and accesses no memory. What descriptors are to move
    /// that are under way is moved in part.
    pub fn freeze(&self) {
        self.shared.freeze();
        self.quiesce();
    }

    /// After how long whoever embeds the engine passes on its answer to a read; `None` where
    /// neither reads nor writes are answered any more. Its methods themselves give all ones then.
    pub fn answers_in(&self) -> Option<Duration> {
        (!self.shared.is_frozen()).then_some(self.shared.plan.late)
    }

    /// The engine may reach this memory from here on. To be told before it does, and needed for strays
    /// alone, as are the following.
    pub fn announce(&self, range: Range<u64>) {
        self.learn(|strays| strays.learn(|targets| targets.announce(range)));
    }

    /// The engine does not reach this memory any more.
    pub fn withdraw(&self, range: Range<u64>) {
        self.learn(|strays| strays.learn(|targets| targets.withdraw(range)));
    }

    /// The engine does not reach any memory any more.
    pub fn withdraw_all(&self) {
        self.learn(|strays| strays.learn(|targets| targets.withdraw_all()));
    }

    /// Another engine may reach these.
    pub fn set_foreign(&self, ranges: Vec<Range<u64>>) {
        self.learn(|strays| strays.learn(|targets| targets.set_foreign(ranges)));
    }

    /// Who carries out accesses for the engine.
    pub fn set_requests(&self, requests: Arc<dyn Requests>) {
        self.learn(|strays| strays.set_requests(requests));
    }

    /// The engine is in no slot any more. Returns once strays that are due have ended, at the latest
    /// after `limit`.
    pub fn unplug(&self, limit: Duration) {
        self.learn(|strays| {
            strays.unplug();
            strays.finish(limit);
        });
    }

    /// What has become of strays, for each kind that was ordered.
    pub fn strays(&self) -> Vec<StrayCount> {
        let strays = self.shared.strays.as_ref();
        strays.map_or_else(Vec::new, |strays| strays.counts())
    }

    fn learn(&self, tell: impl FnOnce(&Strays)) {
        if let Some(strays) = &self.shared.strays {
            tell(strays);
        }
    }

    fn quiesce(&self) {
        for channel in &self.shared.channels {
            drop(channel.quiesce());
        }
    }

    /// What it has done so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.counters.snapshot()
    }

    /// Ends the channels' threads and waits for them. Registers still answer.
    pub fn shutdown(&self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        if let Some(strays) = &self.shared.strays {
            strays.end();
        }
        for channel in &self.shared.channels {
            channel.stop.store(true, Ordering::Relaxed);
            channel.wake();
        }
        let threads = std::mem::take(&mut *self.threads());
        for thread in threads {
            // A thread that panicked has said so; there is nothing to add.
            let _ = thread.join();
        }
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn power_on(&self, dirty: bool) {
        let shared = &self.shared;
        shared.dma.store(false, Ordering::Relaxed);
        for channel in &shared.channels {
            channel.power_on(&mut channel.quiesce(), dirty);
        }
        let mut function = shared.function();
        function.reset();
        if dirty {
            for n in 0..shared.channels.len() {
                let bits = ChanErr::READ_DATA.bits();
                function.config.raise_chanerr_int(n, bits);
            }
        }
    }

    /// Whether the engine is gone, in an access to BAR0.
    fn is_lost(&self) -> bool {
        let gone = self.shared.is_gone();
        add(&self.shared.counters.mmio_after_gone, gone.into());
        gone
    }

    /// Whether the engine is gone, in an access to configuration space.
    fn is_config_lost(&self) -> bool {
        let gone = self.shared.is_gone();
        add(&self.shared.counters.config_after_gone, gone.into());
        gone
    }

    /// Cuts an access where one block of registers ends and the next begins.
    fn split(&self, offset: u64, len: usize, mut access: impl FnMut(Place<'_>, usize, usize)) {
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        let mut from = 0;
        while from < len {
            let at = offset.saturating_add(from);
            let in_block = at % channel::STRIDE;
            let part = (channel::STRIDE - in_block).min(len - from);
            let block = (at / channel::STRIDE).checked_sub(1);
            let place = match block.and_then(|n| self.shared.channels.get(n)) {
                Some(channel) => Place::Channel(channel, in_block),
                None => Place::Function(at),
            };
            access(place, from, part);
            from += part;
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Which registers an offset in BAR0 belongs to.
enum Place<'a> {
    Channel(&'a Channel, usize),
    Function(usize),
}

fn ordered_strays(faults: &[Fault]) -> Vec<Stray> {
    let stray = |fault: &Fault| match *fault {
        Fault::Stray(stray) => Some(stray),
        _ => None,
    };
    faults.iter().filter_map(stray).collect()
}

fn limits(config: &EngineConfig) -> Limits {
    let mut log2 = config.xfercap_log2;
    for fault in &config.faults {
        if let Fault::XferCap(n) = *fault {
            log2 = n;
        }
    }
    let narrow = pci::PARTS
        .iter()
        .any(|part| part.device == config.device_id && part.quirks.contains(Quirks::ADDRESS_40));
    Limits {
        // Of a limit of 0 drivers think differently; the field of a descriptor ends at 2^32 - 1.
        transfer: if log2 == 0 { u64::MAX } else { 1 << log2 },
        address_bits: if narrow { 40 } else { descriptor::ADDRESS_BITS },
        capabilities: config.capabilities,
    }
}
