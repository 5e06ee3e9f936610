//! Interrupts as drivers see them: lines that can be awaited.
//!
//! The kernel's handler only notes that the interrupt came. Later, in task context and on the same
//! CPU, the kernel calls [`IrqEvent::raise`], which counts, and [`IrqEvent::wake`]. A driver never
//! runs in an interrupt.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::Poll;

use atomic_waker::AtomicWaker;

/// The ways a PCI function can interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IrqKind {
    /// Message-signalled, one table entry a vector.
    MsiX,
    /// Message-signalled, by the MSI capability.
    Msi,
    /// The legacy level-triggered pin.
    Intx,
}

/// Why interrupts could not be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqError {
    /// The function has no such capability, or fewer vectors than asked for.
    Unsupported,
    /// Where the pin is routed is not known on this machine.
    NoRoute,
    /// No CPU has a vector left.
    Exhausted,
}

impl fmt::Display for IrqError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsupported => "not offered by the device",
            Self::NoRoute => "the pin's route is unknown",
            Self::Exhausted => "no vector left",
        })
    }
}

/// One interrupt's arrivals: the kernel raises, the line's owner awaits.
#[derive(Debug, Default)]
pub struct IrqEvent {
    count: AtomicU64,
    waker: AtomicWaker,
}

impl IrqEvent {
    /// Counts an arrival, before [`IrqEvent::wake`]. Takes no lock, wakes nobody; any context.
    pub fn raise(&self) {
        self.count.fetch_add(1, Ordering::Release);
    }

    /// Wakes the line's owner. For the kernel, in task context, after [`IrqEvent::raise`].
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// How many interrupts have arrived.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Waits until more than `seen` have arrived, and says how many. One task at a time.
    /// Cancel-safe.
    pub async fn beyond(&self, seen: u64) -> u64 {
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            match self.count() {
                count if count > seen => Poll::Ready(count),
                _ => Poll::Pending,
            }
        })
        .await
    }
}

/// How a bus binds a function's interrupts.
pub trait IrqOps: Send + Sync {
    /// How many vectors of `kind` the function offers; 0 where it has no such capability.
    fn available(&self, kind: IrqKind) -> usize;
    /// Routes vector `index` of `kind` to `event`, on a CPU of the machine's choice, enabled.
    fn bind(&self, kind: IrqKind, index: usize, event: Arc<IrqEvent>) -> Result<(), IrqError>;
    /// Takes the route back; afterwards nobody raises the event.
    fn unbind(&self, kind: IrqKind, index: usize);
    /// Lets a level-triggered line, masked when it was raised, be raised again.
    fn unmask(&self, kind: IrqKind, index: usize);
    /// Writes all routes to the function anew, after a reset that lost them.
    fn restore(&self);
}

/// The interrupts of one function.
#[derive(Clone)]
pub struct Interrupts {
    ops: Arc<dyn IrqOps>,
}

impl Interrupts {
    /// The interrupts behind `ops`.
    pub fn new(ops: Arc<dyn IrqOps>) -> Self {
        Self { ops }
    }

    /// How many vectors of `kind` the function offers.
    pub fn available(&self, kind: IrqKind) -> usize {
        self.ops.available(kind)
    }

    /// Binds vectors 0 to `count` of `kind`, all or none.
    pub fn bind(&self, kind: IrqKind, count: usize) -> Result<Vec<IrqLine>, IrqError> {
        if self.available(kind) < count {
            return Err(IrqError::Unsupported);
        }
        (0..count)
            .map(|index| {
                let event = Arc::new(IrqEvent::default());
                self.ops.bind(kind, index, event.clone())?;
                Ok(IrqLine {
                    ops: self.ops.clone(),
                    kind,
                    index,
                    event,
                    seen: 0,
                })
            })
            .collect()
    }

    /// Writes all bound routes to the function anew. For devices whose reset loses them.
    pub fn restore(&self) {
        self.ops.restore();
    }
}

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupts")
    }
}

/// A bound interrupt. Dropping it unbinds.
pub struct IrqLine {
    ops: Arc<dyn IrqOps>,
    kind: IrqKind,
    index: usize,
    event: Arc<IrqEvent>,
    seen: u64,
}

impl IrqLine {
    /// Which kind of interrupt it is.
    pub fn kind(&self) -> IrqKind {
        self.kind
    }

    /// How many interrupts have arrived since the line was bound.
    pub fn count(&self) -> u64 {
        self.event.count()
    }

    /// Waits until an interrupt has arrived since the last wait ended. A level-triggered line
    /// stays masked from its arrival to the next wait, in which time the driver quiets its device.
    /// Cancel-safe.
    pub async fn wait(&mut self) {
        if self.kind == IrqKind::Intx && self.event.count() == self.seen {
            self.ops.unmask(self.kind, self.index);
        }
        self.seen = self.event.beyond(self.seen).await;
    }
}

impl IrqLine {
    /// As [`IrqLine::wait`], until `stop` completes; says whether an interrupt came.
    pub async fn wait_unless(&mut self, stop: impl Future) -> bool {
        let mut stop = pin!(stop);
        let mut interrupt = pin!(self.wait());
        poll_fn(|cx| {
            if stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(false);
            }
            interrupt.as_mut().poll(cx).map(|()| true)
        })
        .await
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        self.ops.unbind(self.kind, self.index);
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IrqLine({:?} {})", self.kind, self.index)
    }
}
