//! Engines leave and come back, told a line a step on the port for machine-read lines.

use alloc::string::String;

use dmaengine::{DmaDevice, Phase, Removal};
use hal::pci::Address;
use hal::time::{Duration, Instant, poll_until};

use super::engines;
use crate::task;

/// Who uses an engine that is removed has so long to let go of it.
const CLIENTS_LIMIT: Duration = Duration::from_secs(5);

/// Who binds or removes one is done in less: what it does has limits of its own.
const OTHERS_LIMIT: Duration = Duration::from_secs(60);
const OTHERS_STEP: Duration = Duration::from_millis(1);

/// A step of a removal, or of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Gone,
    Draining,
    Quiet,
    Detached,
    Live,
}

/// `hot: BB:DD.F STATE t=US refs=N inflight=N failed_over=N cpu=N lost=N`.
fn tell(address: Address, step: Step, since: Instant, removal: &Removal) {
    let state = match step {
        Step::Gone => "gone",
        Step::Draining => "draining",
        Step::Quiet => "quiet",
        Step::Detached => "detached",
        Step::Live => "live",
    };
    let Removal {
        in_flight,
        failed_over,
        by_cpu,
        lost,
        revoked,
        leaked,
        ..
    } = removal;
    crate::machine_line!(
        "hot: {address} {state} t={} refs={} inflight={in_flight} \
         failed_over={failed_over} cpu={by_cpu} lost={lost}",
        since.elapsed().as_micros(),
        revoked + leaked
    );
}

/// Takes the engine at `address` from its driver, whoever uses it. The error is one line.
pub async fn unbind(address: Address) -> Result<Removal, String> {
    unbind_within(address, CLIENTS_LIMIT).await
}

/// As [`unbind`], but who uses the engine has only so long to let go of it.
pub async fn unbind_within(address: Address, limit: Duration) -> Result<Removal, String> {
    if let Some(device) = engines::device(address) {
        engines::release(&device, limit).await?;
    }
    leave(address, Step::Draining, limit).await
}

/// Takes the engine at `address` from its driver if it is lost. Nobody can go on with it, so nobody
/// is waited for: what it had is done elsewhere at once.
pub(super) async fn lost(address: Address) {
    // Somebody may have removed it meanwhile, and another stand in its place.
    if !engines::is_lost(address) {
        return;
    }
    if let Err(error) = leave(address, Step::Gone, Duration::ZERO).await {
        log::error!("{address}: lost: {error}");
    }
}

/// Takes the engine at `address` from its driver, if one has it: it cannot be trusted any more, and
/// reaches nothing. Nobody is waited for.
pub async fn quarantine(address: Address) {
    if engines::device(address).is_none() {
        return;
    }
    log::error!("WARN {address}: in quarantine");
    if let Err(error) = leave(address, Step::Gone, Duration::ZERO).await {
        log::error!("{address}: in quarantine: {error}");
    }
}

/// Takes what is at `address` from its driver, whoever is about to bind or remove it: the card that
/// it is on leaves its slot, which nobody can refuse. By surprise nobody is waited for.
pub(super) async fn from_slot(address: Address, surprise: bool) {
    let (why, limit) = if surprise {
        (Step::Gone, Duration::ZERO)
    } else {
        (Step::Draining, CLIENTS_LIMIT)
    };
    loop {
        let idle = || !engines::is_busy(address);
        if poll_until(OTHERS_LIMIT, OTHERS_STEP, idle).await.is_err() {
            log::error!("{address}: somebody binds or removes it without an end");
            return;
        }
        if engines::device(address).is_none() {
            return;
        }
        if let Err(error) = leave(address, why, limit).await {
            log::error!("{address}: {error}");
        }
    }
}

/// The card of an engine that is being removed is gone: nobody is waited for any more.
pub(super) fn hurry(address: Address, device: &DmaDevice) {
    tell(address, Step::Gone, Instant::now(), &Removal::default());
    device.hurry();
}

async fn leave(address: Address, why: Step, limit: Duration) -> Result<Removal, String> {
    let since = Instant::now();
    let Some(device) = engines::device(address) else {
        return Err(alloc::format!("no driver has {address}"));
    };
    tell(address, why, since, &Removal::default());
    let quiet = async move {
        device.reached(Phase::Quiet).await;
        let in_flight = device.channels().map(|chan| chan.in_flight()).sum();
        let removal = Removal {
            in_flight,
            ..Removal::default()
        };
        tell(address, Step::Quiet, since, &removal);
    };
    let quiet = task::spawn("removal", None, quiet);
    match engines::unbind(address, limit).await {
        Some(removal) => {
            quiet.await;
            tell(address, Step::Detached, since, &removal);
            match removal.lost {
                0 => Ok(removal),
                lost => Err(alloc::format!("{lost} operations lost")),
            }
        }
        None => Err(alloc::format!("somebody else removes {address}")),
    }
}

/// Hands the function at `address` to its driver. The error is one line.
pub async fn bind(address: Address) -> Result<(), String> {
    let since = Instant::now();
    engines::bind(address).await?;
    tell(address, Step::Live, since, &Removal::default());
    Ok(())
}
