//! Probes: what a test does at the very moment when its own thread counts or passes a barrier. So
//! it can play another CPU that comes in between, which no number of threads brings about surely.

use alloc::boxed::Box;
use core::cell::RefCell;

use crate::cpu::BarrierTimeout;

/// When a probe is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A CPU-local counter is about to be changed.
    Counting,
    /// A CPU-local counter has been changed.
    Count {
        /// Which.
        counter: usize,
        /// By how much.
        delta: isize,
    },
    /// All CPUs have passed a barrier, which has yet to return. What the probe answers, it returns.
    Barrier,
}

type Probe = Box<dyn FnMut(Moment) -> Result<(), BarrierTimeout>>;

std::thread_local! {
    static PROBE: RefCell<Option<Probe>> = const { RefCell::new(None) };
}

/// Runs `act` with `probe` at the moments of this thread. The probe's own moments call nobody.
pub fn probe<T>(
    probe: impl FnMut(Moment) -> Result<(), BarrierTimeout> + 'static,
    act: impl FnOnce() -> T,
) -> T {
    struct Remove;
    impl Drop for Remove {
        fn drop(&mut self) {
            PROBE.take();
        }
    }
    PROBE.set(Some(Box::new(probe)));
    let _remove = Remove;
    act()
}

pub(super) fn at(moment: Moment) -> Result<(), BarrierTimeout> {
    // A thread that ends may still put references, and has no probe any more.
    let Ok(Some(mut probe)) = PROBE.try_with(RefCell::take) else {
        return Ok(());
    };
    let answer = probe(moment);
    PROBE.set(Some(probe));
    answer
}
