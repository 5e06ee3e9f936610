//! Bringing a channel to rest and to work. Every wait is bounded.
//!
//! Limits: FreeBSD ioat(4) gives SUSPEND and RESET 20 ms, Linux 100 and 200; real parts need
//! microseconds. Linux's limits are used, which leave an emulated engine time on a busy host.

use hal::time::{Duration, poll_until};
use ioat_spec::{ChanCmd, ChanErr, ChanSts, Control, Descriptor, State};

use crate::device::Device;
use crate::error::ResetError;
use crate::regs::Regs;
use crate::ring::Ring;

const SUSPEND_LIMIT: Duration = Duration::from_millis(100);
const RESET_LIMIT: Duration = Duration::from_millis(200);
const START_LIMIT: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_micros(50);

/// Stops a channel, whatever it is doing, clears its errors and resets it. Gives the errors that
/// CHANERR reported. On success the channel is HALTED and reaches no memory.
///
/// An engine that does not answer is gone, one that does not stop is broken: both are cut off from
/// memory.
pub(crate) async fn reset(device: &Device, regs: &Regs) -> Result<ChanErr, ResetError> {
    let result = try_reset(device, regs).await;
    match result {
        Err(ResetError::Gone) => device.set_gone(),
        Err(ResetError::Stuck) => device.set_broken(),
        _ => return result,
    }
    device.cut_off().await;
    result
}

async fn try_reset(device: &Device, regs: &Regs) -> Result<ChanErr, ResetError> {
    let gone = ResetError::Gone;
    // One that goes on working is stopped by RESET all the same.
    suspend(regs).await.ok_or(gone)?;
    let errors = regs.errors().ok_or(gone)?;
    regs.clear_errors(errors);
    device.clear_config_errors();
    regs.command(ChanCmd::RESET);
    poll_until(RESET_LIMIT, STEP, || {
        regs.commands()
            .is_none_or(|commands| !commands.contains(ChanCmd::RESET))
    })
    .await
    .map_err(|_| ResetError::Stuck)?;
    device.restore_interrupts();
    if is_working(regs.status().ok_or(gone)?) {
        return Err(ResetError::Stuck);
    }
    match regs.errors().ok_or(gone)? {
        left if left.is_empty() => Ok(errors),
        left => Err(ResetError::Errors(left.bits())),
    }
}

/// Has a channel that works begin no further descriptor, and waits until it has ended the one that
/// is under way. Gives what it says then; `None` where the engine is gone.
pub(crate) async fn suspend(regs: &Regs) -> Option<ChanSts> {
    let status = regs.status()?;
    if !is_working(status) {
        return Some(status);
    }
    regs.command(ChanCmd::SUSPEND);
    // Gone ends the wait too. Who does not heed SUSPEND in time is left working.
    let _ = poll_until(SUSPEND_LIMIT, STEP, || {
        regs.status().is_none_or(|status| !is_working(status))
    })
    .await;
    regs.status()
}

/// SUSPEND means something to a channel in these states only; in ARMED and HALTED it is ignored.
fn is_working(status: ChanSts) -> bool {
    matches!(status.state(), Some(State::Active | State::Idle))
}

/// Starts a channel that was reset on slot 0 of its ring, with a descriptor that moves nothing, and
/// waits until the engine has written back that it is done. Else gives what CHANSTS and CHANERR
/// say.
pub(crate) async fn start(regs: &Regs, ring: &Ring) -> Result<(), (u64, u32)> {
    ring.write(0, Descriptor::null(Control::COMPLETION, 0));
    run(regs, ring, 0);
    regs.doorbell(1);
    let done = || {
        ring.completion().address() == ring.address(0)
            && regs.status().is_none_or(|status| !is_active(status))
    };
    let waited = poll_until(START_LIMIT, STEP, done).await;
    let status = regs.status().map_or(u64::MAX, |status| status.0);
    let idle = ChanSts(status).state() == Some(State::Idle);
    if waited.is_ok() && idle {
        return Ok(());
    }
    Err((
        status,
        regs.errors().map_or(u32::MAX, |errors| errors.bits()),
    ))
}

fn is_active(status: ChanSts) -> bool {
    status.state() == Some(State::Active)
}

/// Points a channel that was reset at slot `index` of its ring. It waits there for the doorbell,
/// whose count starts at 0 again.
pub(crate) fn run(regs: &Regs, ring: &Ring, index: u64) {
    regs.arm();
    regs.set_completion(ring.completion_address());
    regs.set_chain(ring.address(index));
}
