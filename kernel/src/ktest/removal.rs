//! Engines that leave while they are used: who holds one for itself, who leaks, what is lost.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::mem;
use core::sync::atomic::{AtomicBool, Ordering};

use dma_fence::Fence;
use dmaengine::{
    BoxFuture, Capabilities, ChannelOps, Client, DeviceInfo, DmaDevice, Flags, Operation, Rejected,
    StartError, Transaction, registry,
};
use hal::dma::{Destination, Memory, Source};
use hal::pci::Address;
use hal::task;
use hal::time::{Duration, Instant, poll_until};
use spin::Mutex;

use super::{Suite, Verdict, ensure, tests};
use crate::drivers::{audit, removal};
use crate::pci::bus;

pub(super) static SUITE: Suite = Suite {
    name: "removal",
    tests: tests![
        s1_16_who_holds_an_engine_is_told_and_lets_go,
        s1_17_who_leaks_everything_keeps_no_ring_timer_or_vector,
        an_injected_loss_is_counted,
    ],
};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);

/// An engine, as the layer knows it, and where it is: the one whose channel the boot CPU finds.
/// Somebody is interested.
fn engine() -> Result<(Address, DmaDevice), Verdict> {
    if !cfg!(feature = "hotplug") {
        return Err(Verdict::Skipped(
            "this build takes no engine away that is used",
        ));
    }
    let none = Verdict::Skipped("there is no engine");
    let found = registry().table_entry(0, Transaction::Memcpy).ok_or(none)?;
    let has = |device: &DmaDevice| device.channels().any(|chan| chan.name() == found.name());
    let device = registry().devices().into_iter().find(has);
    let device = device.ok_or_else(|| String::from("a channel of nobody's"))?;
    let devices = bus::devices();
    let mut places = devices.iter().map(|device| device.found.address);
    let is_its = |address: &Address| device.info().provider.ends_with(&address.to_string());
    let address = places.find(is_its);
    Ok((
        address.ok_or_else(|| String::from("a device nowhere"))?,
        device,
    ))
}

fn copy(len: usize) -> Result<(Destination, Source), String> {
    let memory = || Memory::new(len).map_err(|_| String::from("no memory"));
    let src = Source::new(Arc::new(memory()?), 0..len).ok_or("no source")?;
    let dst = Destination::new(memory()?, 0..len).map_err(|_| "no destination")?;
    Ok((dst, src))
}

async fn s1_16_who_holds_an_engine_is_told_and_lets_go() -> Result<(), Verdict> {
    let interest = registry().get_interest().await;
    let engine = engine();
    interest.put().await;
    let (address, device) = engine?;
    let chan = device
        .channels()
        .next()
        .ok_or_else(|| String::from("no channel"))?;
    let channel = chan.request_for(&Client::new("holder")).await;
    let channel = channel.map_err(|error| alloc::format!("{error}"))?;
    let told = Arc::new(Mutex::new(None));
    let tell = told.clone();
    task::spawn("holder", async move {
        let deadline = channel.removed().await;
        *tell.lock() = Some(deadline);
        crate::machine_line!("  # removed deadline={} ns", deadline.as_nanos());
        channel.release().await;
    });
    let begin = Instant::now();
    removal::unbind_within(address, LONG).await?;
    let took = begin.elapsed();
    removal::bind(address).await?;
    let deadline = told
        .lock()
        .ok_or_else(|| String::from("the holder was not told"))?;
    ensure!(
        deadline - begin >= LONG,
        "the deadline is in {:?}",
        deadline - begin
    );
    ensure!(took < LONG / 2, "{took:?}, although the holder let go");
    Ok(())
}

/// Finds the boot CPU's channel, there, and never puts it.
async fn leak_reference() -> Result<(), String> {
    let leaked = Arc::new(AtomicBool::new(false));
    let tell = leaked.clone();
    task::spawn_on("leaking", 0, async move {
        mem::forget(registry().find(Transaction::Memcpy));
        tell.store(true, Ordering::Release);
    });
    let waited = poll_until(LONG, Duration::from_millis(1), || {
        leaked.load(Ordering::Acquire)
    });
    waited.await.map_err(|error| alloc::format!("{error}"))
}

async fn s1_17_who_leaks_everything_keeps_no_ring_timer_or_vector() -> Result<(), Verdict> {
    let before = audit::now();
    let interest = registry().get_interest().await;
    let (address, device) = engine()?;
    let chan = device
        .channels()
        .next()
        .ok_or_else(|| String::from("no channel"))?;
    leak_reference().await?;
    mem::forget(chan.share_for(&Client::new("leaking")).await);
    let begin = Instant::now();
    removal::unbind_within(address, SHORT).await?;
    let took = begin.elapsed();
    interest.put().await;
    let gone = audit::now();
    let own = device.channels().count();
    removal::bind(address).await?;
    ensure!(took < LONG, "{took:?} for a limit of {SHORT:?}");
    ensure!(gone.rings == 0, "{} rings", gone.rings);
    ensure!(gone.iova == 0, "{} mappings", gone.iova);
    ensure!(
        gone.chans + own == before.chans,
        "{} channels of {}",
        gone.chans,
        before.chans
    );
    ensure!(
        gone.vectors < before.vectors || before.vectors == 0,
        "{gone:?}"
    );
    ensure!(gone.timers <= before.timers, "{gone:?}, before {before:?}");
    Ok(())
}

/// A provider that never finishes anything, and forgets what it had first when it is stopped.
#[derive(Default)]
struct Forgetful {
    ring: Mutex<Vec<Operation>>,
}

impl ChannelOps for Forgetful {
    fn kinds(&self) -> Capabilities {
        Capabilities::MEMCPY
    }

    fn start<'a>(&'a self, _client: &'a Client) -> BoxFuture<'a, Result<(), StartError>> {
        Box::pin(async { Ok(()) })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let mut ring = mem::take(&mut *self.ring.lock());
            drop(ring.remove(0));
            *self.ring.lock() = ring;
        })
    }

    fn submit(&self, operation: Operation) -> Result<(), Rejected> {
        self.ring.lock().push(operation);
        Ok(())
    }

    fn issue_pending(&self) {}

    fn poll(&self) {}

    fn pause(&self) -> Fence {
        Fence::signalled(0, 0, Ok(()))
    }

    fn resume(&self) {}

    fn terminate_all(&self) -> Fence {
        Fence::signalled(0, 0, Ok(()))
    }

    fn reclaim(&self) -> Vec<Operation> {
        mem::take(&mut *self.ring.lock())
    }
}

async fn an_injected_loss_is_counted() -> Result<(), Verdict> {
    if !cfg!(feature = "hotplug") {
        return Err(Verdict::Skipped(
            "this build takes no engine away that is used",
        ));
    }
    let info = DeviceInfo {
        provider: "forgetful".into(),
        capabilities: Capabilities::MEMCPY | Capabilities::PRIVATE,
        copy_align: 0,
        max_transfer: 4096,
        max_xor: 0,
        max_pq: 0,
        address_bits: 64,
        node: None,
    };
    let registered = registry().register(info, vec![Arc::new(Forgetful::default())]);
    let device = registered.map_err(|error| alloc::format!("{error}"))?;
    let chan = device
        .channels()
        .next()
        .ok_or_else(|| String::from("no channel"))?;
    let channel = chan
        .share()
        .await
        .map_err(|error| alloc::format!("{error}"))?;
    let mut submitted = Vec::new();
    for _ in 0..3 {
        let (dst, src) = copy(64)?;
        let descriptor = channel.prep_memcpy(dst, src, Flags::empty());
        let descriptor = descriptor.map_err(|error| alloc::format!("{error}"))?;
        let sent = channel.submit(descriptor);
        submitted.push(sent.map_err(|error| alloc::format!("{error}"))?);
    }
    let removal = registry().unregister(&device, SHORT).await;
    drop(channel);
    let mut good = 0;
    for submitted in submitted {
        good += usize::from(submitted.finish().await.result.is_ok());
    }
    ensure!(
        (removal.in_flight, removal.lost, good) == (3, 1, 2),
        "{removal:?}, {good} good"
    );
    Ok(())
}
