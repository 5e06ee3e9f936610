//! A device with its channels.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use core::task::Poll;

use crate::capability::Capabilities;
use crate::chan::{Chan, DmaChan};
use crate::wait::WaitList;

/// What a provider says of its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// For people: driver and place, such as `ioat 01:00.0`.
    pub provider: String,
    /// What its channels can do.
    pub capabilities: Capabilities,
    /// Log2 of the alignment in bytes that addresses and lengths need; 0 for any.
    pub copy_align: u8,
    /// Bytes that one operation moves at most, however many descriptors that takes.
    pub max_transfer: usize,
    /// Sources of one exclusive or, or of its check, at most; 0 where it has neither.
    pub max_xor: u8,
    /// Sources of one pair of parities, or of their check, at most; 0 where it has neither.
    pub max_pq: u8,
    /// Address lines: the device reaches memory below 2 to this power.
    pub address_bits: u8,
    /// The NUMA node it is near to.
    pub node: Option<u32>,
}

/// A registered device: `dma0`, with its channels `dma0chan0`, …
#[derive(Clone)]
pub struct DmaDevice {
    inner: Arc<Inner>,
}

struct Inner {
    number: u32,
    info: Arc<DeviceInfo>,
    channels: Vec<Arc<Chan>>,
    /// How far its removal is: a [`Phase`].
    phase: AtomicU8,
    /// Its removal waits for nobody any more.
    hurried: AtomicBool,
    moved_on: WaitList,
}

/// How far the removal of a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// It stays.
    Live,
    /// Nobody finds it any more; who uses it may go on until the deadline.
    Draining,
    /// Its channels have stopped. What they have not finished waits to be finished elsewhere.
    Quiet,
    /// All that it had in flight has ended.
    Detached,
}

impl DmaDevice {
    pub(crate) fn new(number: u32, info: Arc<DeviceInfo>, channels: Vec<Arc<Chan>>) -> Self {
        Self {
            inner: Arc::new(Inner {
                number,
                info,
                channels,
                phase: AtomicU8::new(Phase::Live as u8),
                hurried: AtomicBool::new(false),
                moved_on: WaitList::default(),
            }),
        }
    }

    /// Its number, which is free again when it is removed.
    pub fn number(&self) -> u32 {
        self.inner.number
    }

    /// What the provider says of it.
    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    /// Its channels, in order.
    pub fn channels(&self) -> impl Iterator<Item = DmaChan> + '_ {
        self.chans().iter().map(|inner| DmaChan {
            inner: inner.clone(),
        })
    }

    /// Waits until its removal is at `phase`, or further.
    pub async fn reached(&self, phase: Phase) {
        let reached = || {
            let now = self.inner.phase.load(Ordering::Acquire);
            (now >= phase as u8).then_some(())
        };
        self.inner.moved_on.until(reached).await;
    }

    /// Its removal, which may be under way, waits for its clients no longer: the device is gone, and
    /// nobody can go on with it.
    pub fn hurry(&self) {
        self.inner.hurried.store(true, Ordering::Release);
        self.inner.moved_on.wake_all();
    }

    /// Awaits `done`, unless [`DmaDevice::hurry`] comes first.
    pub(crate) async fn unless_hurried<T>(&self, done: impl Future<Output = T>) -> Option<T> {
        let hurried = || self.inner.hurried.load(Ordering::Acquire).then_some(());
        let mut hurried = pin!(self.inner.moved_on.until(hurried));
        let mut done = pin!(done);
        poll_fn(|cx| {
            if let Poll::Ready(value) = done.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            hurried.as_mut().poll(cx).map(|()| None)
        })
        .await
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.inner.phase.fetch_max(phase as u8, Ordering::AcqRel);
        self.inner.moved_on.wake_all();
    }

    pub(crate) fn chans(&self) -> &[Arc<Chan>] {
        &self.inner.channels
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

/// `dmaN PROVIDER caps=LIST channels=N align=BYTES max=BYTES bits=N`, and where it has them
/// `xor=SOURCES`, `pq=SOURCES` and `node=N`.
impl fmt::Display for DmaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.info();
        write!(
            f,
            "dma{} {} caps={} channels={} align={} max={} bits={}",
            self.number(),
            info.provider,
            info.capabilities,
            self.chans().len(),
            1u64 << info.copy_align,
            info.max_transfer,
            info.address_bits
        )?;
        if info.max_xor > 0 {
            write!(f, " xor={}", info.max_xor)?;
        }
        if info.max_pq > 0 {
            write!(f, " pq={}", info.max_pq)?;
        }
        match info.node {
            Some(node) => write!(f, " node={node}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for DmaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaDevice({self})")
    }
}
