//! What a CPU executes, counted one instruction after the other.
//!
//! The CPU runs in single steps (Intel SDM volume 3, 18.3.1.4): after each instruction a debug
//! exception looks at the next one. So slow that it is for counting alone; but exact, the same
//! however busy the host is, and of the very code that runs otherwise. Interrupt handlers are left
//! out: the CPU suspends stepping for them.
//!
//! One CPU at a time. A task that awaits while it counts has its executor counted too, and the tasks
//! beside it.

#[cfg(any(target_os = "none", test))]
mod decode;

#[cfg(target_os = "none")]
pub use counting::{Counting, start, trapped};

/// What was executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// Instructions; a repeated one counts once.
    pub instructions: u64,
    /// Those among them that lock the bus.
    pub locked: u64,
}

impl core::ops::Add for Executed {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            instructions: self.instructions + other.instructions,
            locked: self.locked + other.locked,
        }
    }
}

#[cfg(target_os = "none")]
mod counting {
    use core::arch::asm;
    use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use super::{Executed, decode};
    use crate::arch::x86_64::percpu;
    use crate::arch::x86_64::traps::TrapFrame;

    /// RFLAGS.TF.
    const TRAP: u64 = 1 << 8;

    /// The number of the CPU that counts, plus one. What it counts it alone writes.
    static CPU: AtomicUsize = AtomicUsize::new(0);
    static INSTRUCTIONS: AtomicU64 = AtomicU64::new(0);
    static LOCKED: AtomicU64 = AtomicU64::new(0);
    static LAST: AtomicU64 = AtomicU64::new(0);

    fn this() -> usize {
        percpu::current().index() + 1
    }

    /// This CPU counts as long as it exists.
    #[must_use]
    pub struct Counting(());

    /// Starts to count on this CPU. `None` where another does.
    #[inline(never)]
    pub fn start() -> Option<Counting> {
        let (set, fail) = (Ordering::AcqRel, Ordering::Relaxed);
        CPU.compare_exchange(0, this(), set, fail).ok()?;
        for counter in [&INSTRUCTIONS, &LOCKED, &LAST] {
            counter.store(0, Ordering::Relaxed);
        }
        // SAFETY: the debug exception returns to what it interrupted, with all registers.
        unsafe { asm!("pushfq", "or qword ptr [rsp], {trap}", "popfq", trap = const TRAP as i32) };
        Some(Counting(()))
    }

    impl Counting {
        /// Ends it: what was executed since the start, the few instructions of this function among
        /// it.
        #[inline(never)]
        pub fn stop(self) -> Executed {
            let executed = Executed {
                instructions: INSTRUCTIONS.load(Ordering::Relaxed),
                locked: LOCKED.load(Ordering::Relaxed),
            };
            drop(self);
            executed
        }
    }

    impl Drop for Counting {
        fn drop(&mut self) {
            // The next debug exception, wherever it is, ends the stepping.
            CPU.store(0, Ordering::Release);
        }
    }

    /// A debug exception. Whether it was one of ours.
    pub fn trapped(frame: &mut TrapFrame) -> bool {
        if frame.rflags & TRAP == 0 {
            return false;
        }
        if CPU.load(Ordering::Acquire) != this() {
            frame.rflags &= !TRAP;
            return true;
        }
        // A repeated instruction traps after each repetition.
        if LAST.swap(frame.rip, Ordering::Relaxed) != frame.rip {
            let mut at = frame.rip as *const u8;
            let locks = decode::locks(|| {
                // SAFETY: bytes of the instruction that is executed next.
                let byte = unsafe { at.read() };
                at = at.wrapping_add(1);
                byte
            });
            INSTRUCTIONS.fetch_add(1, Ordering::Relaxed);
            LOCKED.fetch_add(locks.into(), Ordering::Relaxed);
        }
        true
    }
}
