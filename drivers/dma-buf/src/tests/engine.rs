//! Engines that the test drives, importers, and an exporter that notes what it is told.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use std::string::{String, ToString};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use dma_fence::{Fence, FenceError};
use dmaengine::{
    AsyncTx, BoxFuture, Capabilities, ChannelOps, Client, DeviceInfo, DmaChan, DmaDevice, Interest,
    Operation, Registry, Rejected, StartError,
};
use hal::dma::{Buffer, Direction, DmaOps, DmaSpace, MapError, Memory, OutOfMemory, RawMapping};
use hal::host::block_on;

use crate::{AttachFlags, BufError, Chunked, Exporter, Importer};

/// A channel whose hardware is the test.
#[derive(Default)]
pub(super) struct Engine(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    operations: VecDeque<Operation>,
    issued: usize,
    /// How often it was told of new ones.
    rings: usize,
    /// Finishes nothing by itself.
    held: bool,
    done: usize,
    fails: Option<FenceError>,
    exposes: bool,
}

impl Engine {
    pub(super) fn held() -> Arc<Self> {
        let engine = Self::default();
        engine.0.lock().unwrap().held = true;
        Arc::new(engine)
    }

    pub(super) fn eager() -> Arc<Self> {
        Arc::default()
    }

    /// Ends everything with an error from now on.
    pub(super) fn fail(&self, error: FenceError) {
        self.0.lock().unwrap().fails = Some(error);
    }

    /// From now on it may still write what it has ended with an error.
    pub(super) fn expose(&self) {
        self.0.lock().unwrap().exposes = true;
    }

    /// Finishes by itself from now on.
    pub(super) fn let_go(&self) {
        self.0.lock().unwrap().held = false;
        self.finish();
    }

    /// Operations that are issued and not done.
    pub(super) fn issued(&self) -> usize {
        self.0.lock().unwrap().issued
    }

    /// Doorbells.
    pub(super) fn rings(&self) -> usize {
        self.0.lock().unwrap().rings
    }

    /// Operations that were done.
    pub(super) fn done(&self) -> usize {
        self.0.lock().unwrap().done
    }

    /// Finishes what is issued.
    pub(super) fn finish(&self) {
        loop {
            let (mut operation, fails, exposes) = {
                let mut ring = self.0.lock().unwrap();
                if ring.issued == 0 {
                    return;
                }
                ring.issued -= 1;
                ring.done += 1;
                let next = ring.operations.pop_front().unwrap();
                (next, ring.fails, ring.exposes)
            };
            match fails {
                None => {
                    operation.work_mut().run_by_cpu();
                    operation.complete(Ok(()));
                }
                Some(error) => {
                    if exposes {
                        operation.expose();
                    }
                    operation.complete(Err(error));
                }
            }
        }
    }
}

fn signalled() -> Fence {
    Fence::signalled(0, 0, Ok(()))
}

impl ChannelOps for Engine {
    fn kinds(&self) -> Capabilities {
        Capabilities::MEMCPY | Capabilities::MEMSET | Capabilities::INTERRUPT
    }

    fn start<'a>(&'a self, _: &'a Client) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(async { Ok(()) })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn submit(&self, operation: Operation) -> Result<(), Rejected> {
        self.0.lock().unwrap().operations.push_back(operation);
        Ok(())
    }

    fn issue_pending(&self) {
        let held = {
            let mut ring = self.0.lock().unwrap();
            ring.rings += usize::from(ring.issued < ring.operations.len());
            ring.issued = ring.operations.len();
            ring.held
        };
        if !held {
            self.finish();
        }
    }

    fn poll(&self) {}

    fn terminate_all(&self) -> Fence {
        let all: Vec<_> = {
            let mut ring = self.0.lock().unwrap();
            ring.issued = 0;
            ring.operations.drain(..).collect()
        };
        for operation in all {
            operation.complete(Err(FenceError::Terminated));
        }
        signalled()
    }

    fn pause(&self) -> Fence {
        signalled()
    }

    fn resume(&self) {}

    fn reclaim(&self) -> Vec<Operation> {
        let mut ring = self.0.lock().unwrap();
        ring.issued = 0;
        ring.operations.drain(..).collect()
    }
}

/// A machine with these engines, and a client of theirs.
pub(super) struct Bench {
    pub(super) registry: Registry,
    pub(super) devices: Vec<DmaDevice>,
    pub(super) tx: Arc<AsyncTx>,
    _interest: Interest,
}

impl Bench {
    pub(super) fn new(engines: &[&Arc<Engine>]) -> Self {
        let registry = Registry::new();
        let info = || DeviceInfo {
            provider: "test".to_string(),
            capabilities: Capabilities::MEMCPY | Capabilities::MEMSET | Capabilities::INTERRUPT,
            copy_align: 0,
            max_transfer: 1 << 20,
            max_xor: 0,
            max_pq: 0,
            address_bits: 64,
            node: None,
        };
        let register = |engine: &&Arc<Engine>| {
            let ops: Arc<dyn ChannelOps> = (*engine).clone();
            registry.register(info(), alloc::vec![ops]).unwrap()
        };
        let devices: Vec<_> = engines.iter().map(register).collect();
        let interest = block_on(registry.get_interest());
        let preferred = devices.first().and_then(|device| device.channels().next());
        let tx = transfers(&registry, preferred.as_ref());
        Self {
            registry,
            devices,
            tx,
            _interest: interest,
        }
    }

    /// Transfers that prefer the engine `at`.
    pub(super) fn by(&self, at: usize) -> Arc<AsyncTx> {
        let preferred = self.devices[at].channels().next();
        transfers(&self.registry, preferred.as_ref())
    }
}

fn transfers(registry: &Registry, preferred: Option<&DmaChan>) -> Arc<AsyncTx> {
    let client = Client::new("test");
    Arc::new(block_on(AsyncTx::new(registry, &client, preferred)).unwrap())
}

/// What happened, in its order.
#[derive(Clone, Default)]
pub(super) struct Trace(Arc<Mutex<Vec<String>>>);

impl Trace {
    pub(super) fn note(&self, line: impl ToString) {
        self.0.lock().unwrap().push(line.to_string());
    }

    pub(super) fn take(&self) -> Vec<String> {
        core::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// Notes what it is told, and may have its say.
#[derive(Clone, Default)]
pub(super) struct Noting {
    pub(super) trace: Trace,
    pub(super) flushes: bool,
    pub(super) refuses: bool,
}

impl Exporter for Noting {
    fn name(&self) -> &'static str {
        "noting"
    }

    fn allocate(&self, len: usize) -> Result<Vec<Memory>, OutOfMemory> {
        self.trace.note("allocate");
        Chunked::default().allocate(len)
    }

    fn attach(&self, importer: &Importer, _: AttachFlags) -> Result<(), BufError> {
        self.trace.note(std::format!("attach {}", importer.name));
        if self.refuses {
            return Err(BufError::Refused);
        }
        Ok(())
    }

    fn detach(&self, importer: &Importer) {
        self.trace.note(std::format!("detach {}", importer.name));
    }

    fn flushes(&self) -> bool {
        self.flushes
    }

    fn begin_dma(&self, importer: &Importer, direction: Direction) {
        self.trace
            .note(std::format!("begin {} {direction:?}", importer.name));
    }

    fn end_dma(&self, importer: &Importer, direction: Direction) {
        self.trace
            .note(std::format!("end {} {direction:?}", importer.name));
    }

    fn begin_cpu_access(&self, direction: Direction) {
        self.trace.note(std::format!("begin cpu {direction:?}"));
    }

    fn end_cpu_access(&self, direction: Direction) {
        self.trace.note(std::format!("end cpu {direction:?}"));
    }
}

/// Maps addresses to themselves, and notes it.
struct Noted(Trace);

impl DmaOps for Noted {
    fn map(&self, buffers: &[Buffer<'_>], mapping: &mut RawMapping) -> Result<(), MapError> {
        for buffer in buffers {
            self.0.note(std::format!("map {:?}", buffer.direction));
        }
        mapping.push_direct(buffers);
        Ok(())
    }

    fn unmap(&self, _: &RawMapping) {
        self.0.note("unmap");
    }
}

/// A device that maps under `trace`.
pub(super) fn importer(name: &'static str, trace: &Trace) -> Importer {
    Importer {
        name,
        space: DmaSpace::new(Arc::new(Noted(trace.clone()))),
        coherent: true,
        move_notify: None,
    }
}
