//! How many instructions something takes, where the time-stamp counter counts them: QEMU's
//! `-icount shift=0` lets one instruction of whichever CPU take one nanosecond, the counter's tick
//! there (QEMU, docs/devel/tcg-icount.rst).

use core::arch::asm;
use core::hint::black_box;

use x86_64::instructions::interrupts::without_interrupts;

use super::Verdict;
use crate::arch::x86_64::tsc;

/// A loop of two instructions a round.
fn known(rounds: u64) -> u64 {
    without_interrupts(|| {
        let start = tsc();
        // SAFETY: it changes a register that is said to change, and the flags.
        unsafe {
            asm!("2: dec {rounds}", "jnz 2b", rounds = inout(reg) rounds => _,
                options(nomem, nostack));
        }
        tsc() - start
    })
}

/// Whether the counter counts instructions here.
pub(super) fn are_counted() -> Result<(), Verdict> {
    let rounds = [1000, 2000, 3000, 5000, 8000];
    let exact = rounds.windows(2).all(|pair| {
        let (few, many) = (known(pair[0]), known(pair[1]));
        many.wrapping_sub(few) == 2 * (pair[1] - pair[0])
    });
    if exact {
        Ok(())
    } else {
        Err(Verdict::Skipped("the clock counts no instructions here"))
    }
}

#[inline(never)]
fn ticks(rounds: u64, work: &mut impl FnMut()) -> u64 {
    without_interrupts(|| {
        let start = tsc();
        for _ in 0..rounds {
            work();
        }
        tsc() - start
    })
}

fn of_a_round(rounds: u64, mut work: impl FnMut()) -> u64 {
    let few = ticks(rounds, &mut work);
    (ticks(2 * rounds, &mut work) - few) / rounds
}

/// Instructions that `work` takes, without the loop around it. No other CPU may be at work.
pub(super) fn of(rounds: u64, work: impl FnMut()) -> u64 {
    of_a_round(rounds, work) - of_a_round(rounds, || black_box(()))
}
