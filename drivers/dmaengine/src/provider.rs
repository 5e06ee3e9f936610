//! What a driver implements for each of its channels.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use core::pin::Pin;

use dma_fence::Fence;
use hal::dma::{CoherentError, MapError};

use crate::capability::Capabilities;
use crate::client::Client;
use crate::operation::Operation;

/// A future behind a pointer, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A channel as its driver offers it.
///
/// The layer calls [`ChannelOps::start`] when a first client comes and [`ChannelOps::stop`] when
/// the last has gone; between the two [`ChannelOps::set_client`] for each client before its first
/// operation and [`ChannelOps::release_client`] after it has let go: one call at a time, each set
/// client released before the stop. Meanwhile the layer submits operations, each of which
/// the driver completes exactly once with [`Operation::complete`], in the order of submission,
/// outside its locks, and only after the device can no longer reach the operation's buffers.
pub trait ChannelOps: Send + Sync {
    /// The kinds of work that [`ChannelOps::submit`] takes. A device is registered with no more
    /// capabilities than all of its channels have.
    fn kinds(&self) -> Capabilities;

    /// Allocates what the channel needs and makes the hardware ready, for `client` and those that
    /// come later. Bounded in time.
    fn start<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), StartError>>;

    /// A client comes: the place to power what stands between it and the hardware, and to keep a
    /// list of clients, which the layer does not keep for the driver. An error is the client's.
    /// Bounded in time.
    fn set_client<'a>(&'a self, _client: &'a Client) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(async { Ok(()) })
    }

    /// A client that was set has let go, or is revoked. Bounded in time.
    fn release_client<'a>(&'a self, _client: &'a Client) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    /// Stops the hardware and frees what [`ChannelOps::start`] allocated, both whether the
    /// hardware answers or not. Operations that have not finished wait, unmapped, for
    /// [`ChannelOps::reclaim`]. Bounded in time.
    fn stop(&self) -> BoxFuture<'_, ()>;

    /// Takes an operation into the ring, without starting it. Called under the channel's submit
    /// lock: it must not complete any operation, nor wait.
    fn submit(&self, operation: Operation) -> Result<(), Rejected>;

    /// Starts everything submitted since the last call: one barrier, one doorbell.
    fn issue_pending(&self);

    /// Whether operations without [`crate::Flags::INTERRUPT`] end without anybody noticing. Then one
    /// that interrupts follows them where somebody waits; the channel must be capable of it.
    fn ends_silently(&self) -> bool {
        false
    }

    /// Whether something was submitted and not issued. Orders: who hears no has everything behind
    /// it that was submitted before, and who issues later sees what the caller did before it asked.
    fn has_unissued(&self) -> bool {
        false
    }

    /// Completes what has finished, now, on the caller's stack.
    fn poll(&self);

    /// Gives up everything submitted so far: it completes with
    /// [`dma_fence::FenceError::Terminated`] as soon as the hardware has let go of it. The fence is
    /// signalled once that is done and the channel is usable again.
    fn terminate_all(&self) -> Fence;

    /// Has the hardware rest: what it is at is brought to an end or to a point from which it can be
    /// done anew, and nothing is begun. The fence is signalled once that holds, or the channel has
    /// stopped. What is in the ring stays there; operations are still taken, issued, completed
    /// where they had ended, and given up: termination, faults and further pauses do not end the
    /// pause. [`ChannelOps::resume`] does, and so does [`ChannelOps::stop`]. Bounded in time.
    fn pause(&self) -> Fence;

    /// Ends a pause: what was issued before or meanwhile is done. Nothing where there is none.
    fn resume(&self);

    /// Hands back what a stopped channel has not finished, in its order. The layer calls it after
    /// each [`ChannelOps::stop`], and decides what becomes of the operations: they still own
    /// their buffers and can run elsewhere.
    fn reclaim(&self) -> Vec<Operation> {
        Vec::new()
    }
}

/// Why a channel could not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// There is no memory for its ring.
    Memory(CoherentError),
    /// The hardware did not get ready in time, or reported an error.
    NotReady {
        /// The device's status register, raw.
        status: u64,
        /// The device's error register, raw.
        errors: u32,
    },
    /// The device is gone.
    Gone,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::NotReady { status, errors } => {
                write!(
                    f,
                    "the engine did not start: status {status:#x}, errors {errors:#x}"
                )
            }
            Self::Gone => f.write_str("the device is gone"),
        }
    }
}

/// Why an operation did not enter a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitReason {
    /// The ring is full; there is room again when an earlier operation completes.
    Full,
    /// It needs more descriptors than the ring has.
    TooLarge,
    /// The channel does not do such work.
    Unsupported,
    /// Its memory could not be mapped.
    Map(MapError),
    /// The device is gone or being removed, or the channel is not running.
    Gone,
    /// It was prepared for another channel.
    Foreign,
}

impl fmt::Display for SubmitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the ring is full"),
            Self::TooLarge => f.write_str("larger than the ring"),
            Self::Unsupported => f.write_str("the channel does not do that"),
            Self::Map(error) => error.fmt(f),
            Self::Gone => f.write_str("the device is gone"),
            Self::Foreign => f.write_str("prepared for another channel"),
        }
    }
}

/// An operation that did not enter the ring, and why.
#[derive(Debug)]
pub struct Rejected {
    /// The operation, unchanged.
    pub operation: Operation,
    /// Why.
    pub reason: SubmitReason,
}

impl Rejected {
    /// Refuses `operation`.
    pub fn new(operation: Operation, reason: SubmitReason) -> Self {
        Self { operation, reason }
    }
}
