//! One channel: its registers and its state machine.
//!
//! | from | on | to |
//! |---|---|---|
//! | any | RESET | HALTED, counter and status address 0 |
//! | HALTED, IDLE, SUSPENDED, ARMED | CHAINADDR, no error set | ARMED, counter and status address 0 |
//! | HALTED | CHAINADDR, CHANERR or CHANERR_INT set | HALTED |
//! | ARMED, IDLE | DMACOUNT differs from the counter | ACTIVE |
//! | ACTIVE | the counter has reached DMACOUNT | IDLE |
//! | ACTIVE, IDLE | SUSPEND, once no descriptor is under way | SUSPENDED |
//! | ACTIVE | an error that is not masked | HALTED |
//!
//! The registers and [`Inner`] are under one lock. The channel's thread ([`crate::worker`]) drops
//! it while a descriptor is under way (`busy`), and where memory takes its time also while its
//! completion is written; whoever must know that none is, waits in [`Channel::quiesce`]. Locks are
//! taken in the order channel, then function.
//!
//! Sources: Intel Xeon E7 v2 datasheet vol. 2 for the registers; for the transitions the start,
//! quiesce and reset paths of Linux ioatdma, FreeBSD ioat(4), SPDK and DPDK.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ioat_spec::{CbVer, ChanCmd, ChanCtrl, ChanErr, ChanSts, State, channel};

use crate::channel_registers;
use crate::engine::Shared;
use crate::registers::{RegisterSet, covers};
use crate::statistics::add;

/// One channel of an engine.
pub(crate) struct Channel {
    pub(crate) index: usize,
    inner: Mutex<Inner>,
    /// Something changed that the channel's thread, or somebody in [`Channel::quiesce`], awaits.
    pub(crate) changed: Condvar,
    /// The descriptor under way shall stop where it is.
    pub(crate) stop: AtomicBool,
}

/// Why an ACTIVE channel does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stuck {
    No,
    /// Until SUSPEND or RESET.
    UntilSuspend,
    /// Until RESET.
    UntilReset,
}

/// A channel's registers and what hardware knows beside them.
pub(crate) struct Inner {
    pub(crate) registers: RegisterSet,
    pub(crate) state: State,
    /// Last completed descriptor since CHAINADDR, or 0.
    completed: u64,
    /// Where the link to the next descriptor is: `None` for CHAINADDR itself.
    pub(crate) last: Option<u64>,
    /// Descriptors done since CHAINADDR.
    pub(crate) count: u16,
    /// A descriptor is under way.
    pub(crate) busy: bool,
    /// SUSPEND came while ACTIVE.
    pub(crate) suspend: bool,
    pub(crate) stuck: Stuck,
    /// How many wait for `busy` to end; no descriptor is begun.
    pub(crate) waiting: usize,
    /// An interrupt came while INT_DISABLE was set.
    held: bool,
    /// When the interrupt that INTRDELAY holds back leaves.
    pub(crate) interrupt_at: Option<Instant>,
}

impl Channel {
    pub(crate) fn new(index: usize, channels: usize) -> Self {
        Self {
            index,
            inner: Mutex::new(Inner {
                registers: RegisterSet::new(channel::STRIDE, &channel_registers::table(channels)),
                state: State::Halted,
                completed: 0,
                last: None,
                count: 0,
                busy: false,
                suspend: false,
                stuck: Stuck::No,
                waiting: 0,
                held: false,
                interrupt_at: None,
            }),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits on [`Channel::changed`], until `deadline` where there is one.
    pub(crate) fn wait<'a>(
        &self,
        inner: MutexGuard<'a, Inner>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, Inner> {
        match deadline {
            None => self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner),
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                self.changed
                    .wait_timeout(inner, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        }
    }

    /// Stops the descriptor under way and returns with the lock once none is. The channel goes on
    /// when the lock is released, unless the caller has changed its state: a descriptor that was
    /// stopped is done again from its start.
    pub(crate) fn quiesce(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        inner.waiting += 1;
        while inner.busy {
            self.stop.store(true, Ordering::Relaxed);
            inner = self.wait(inner, None);
        }
        inner.waiting -= 1;
        self.changed.notify_all();
        inner
    }

    /// Lets the channel's thread look again.
    pub(crate) fn wake(&self) {
        let _inner = self.lock();
        self.changed.notify_all();
    }

    /// The guest reads.
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.lock().registers.read(offset, bytes);
    }

    /// The guest writes.
    pub(crate) fn write(&self, shared: &Shared, offset: usize, bytes: &[u8]) {
        let byte = |at: usize| covers(offset, bytes.len(), at).then(|| bytes[at - offset]);
        let command = byte(channel::CHANCMD).map(ChanCmd::from_bits_retain);
        let mut inner = if command == Some(ChanCmd::RESET) {
            self.quiesce()
        } else {
            self.lock()
        };
        inner.registers.write(offset, bytes);
        if byte(channel::CHANCTRL).is_some_and(|low| low & ChanCtrl::INT_DISABLE.bits() as u8 != 0)
        {
            self.rearm(&mut inner, shared);
        }
        if let Some(command) = command {
            self.command(&mut inner, shared, command);
        }
        if byte(channel::DMACOUNT)
            .or(byte(channel::DMACOUNT + 1))
            .is_some()
        {
            add(&shared.counters.doorbells, 1);
            self.doorbell(&mut inner);
        }
        // An address written in two halves counts from its high half on.
        if byte(channel::CHAINADDR + 7).is_some() {
            self.arm(&mut inner, shared);
        }
    }

    fn doorbell(&self, inner: &mut Inner) {
        if matches!(inner.state, State::Armed | State::Idle) && inner.has_work() {
            inner.set_state(State::Active);
        }
        self.changed.notify_all();
    }

    fn arm(&self, inner: &mut Inner, shared: &Shared) {
        if inner.state == State::Active {
            return;
        }
        let mut error = inner.get(channel::CHANERR, 4) as u32;
        if shared.config.cbver < CbVer::V3_3 {
            error |= shared.function().config.chanerr_int(self.index);
        }
        if inner.state == State::Halted && error != 0 {
            return;
        }
        let start = inner.get(channel::CHAINADDR, 8);
        if !start.is_multiple_of(ioat_spec::descriptor::LEN as u64) {
            self.fail(inner, shared, ChanErr::CHAINADDR);
            return;
        }
        inner.restart(State::Armed);
    }

    fn command(&self, inner: &mut Inner, shared: &Shared, command: ChanCmd) {
        if command.bits().count_ones() > 1 {
            self.fail(inner, shared, ChanErr::CHANCMD);
        } else if command == ChanCmd::SUSPEND {
            match inner.state {
                State::Active => inner.suspend = true,
                State::Idle if inner.busy => inner.suspend = true,
                State::Idle => inner.set_state(State::Suspended),
                State::Suspended | State::Halted | State::Armed => {}
            }
        } else if command == ChanCmd::RESUME && inner.state == State::Suspended {
            inner.set_state(if inner.has_work() {
                State::Active
            } else {
                State::Idle
            });
        } else if command == ChanCmd::RESET {
            if shared.plan.no_reset {
                inner.set(channel::CHANCMD, 1, ChanCmd::RESET.bits().into());
            } else {
                self.reset(inner, shared);
            }
        }
        self.changed.notify_all();
    }

    /// RESET: CHANCTRL, the error registers and their masks stay, as drivers clear them themselves.
    fn reset(&self, inner: &mut Inner, shared: &Shared) {
        inner.restart(State::Halted);
        inner.set(channel::CHAINADDR, 8, 0);
        inner.set(channel::CHANCMP, 8, 0);
        inner.suspend = false;
        inner.stuck = Stuck::No;
        inner.held = false;
        inner.interrupt_at = None;
        let mut function = shared.function();
        function.rearm(self.index);
        if shared.config.cbver == CbVer::V3_3 {
            function.lose_msix();
        }
    }

    /// Power-on state. The caller has the channel quiet.
    pub(crate) fn power_on(&self, inner: &mut Inner, dirty: bool) {
        inner.registers.reset_all();
        inner.restart(State::Halted);
        inner.suspend = false;
        inner.stuck = Stuck::No;
        inner.held = false;
        inner.interrupt_at = None;
        if dirty {
            self.leave_dirty(inner);
        }
    }

    /// As somebody left it who never said goodbye.
    fn leave_dirty(&self, inner: &mut Inner) {
        let control = ChanCtrl::IN_USE
            | ChanCtrl::INT_DISABLE
            | ChanCtrl::ERR_COMPLETION_EN
            | ChanCtrl::ANY_ERR_ABORT_EN
            | ChanCtrl::ERR_INT_EN;
        inner.set(channel::CHANCTRL, 2, control.bits().into());
        inner.set(channel::CHAINADDR, 8, 0x7f00_0000_0040);
        inner.completed = 0x7f00_0000_0040;
        inner.set(channel::DMACOUNT, 2, 100);
        inner.count = 42;
        if self.index.is_multiple_of(2) {
            inner.set(channel::CHANERR, 4, ChanErr::READ_DATA.bits().into());
            inner.set_state(State::Halted);
        } else {
            inner.stuck = Stuck::UntilSuspend;
            inner.set_state(State::Active);
        }
    }

    /// Hardware meets an error: one bit. What is masked is only recorded.
    ///
    /// The completion word of an error names the last good descriptor, as Linux and DPDK expect.
    pub(crate) fn fail(&self, inner: &mut Inner, shared: &Shared, error: ChanErr) {
        add(&shared.counters.faults, 1);
        let set = inner.get(channel::CHANERR, 4) | u64::from(error.bits());
        inner.set(channel::CHANERR, 4, set);
        if inner.get(channel::CHANERRMSK, 4) & u64::from(error.bits()) != 0 {
            return;
        }
        if shared.config.cbver < CbVer::V3_3 {
            let mut function = shared.function();
            function.config.raise_chanerr_int(self.index, error.bits());
        }
        inner.suspend = false;
        inner.set_state(State::Halted);
        let control = ChanCtrl::from_bits_truncate(inner.get(channel::CHANCTRL, 2) as u16);
        if control.contains(ChanCtrl::ERR_COMPLETION_EN) {
            // Where even that fails there is nobody left to tell.
            if shared.dma_allowed() {
                let _ = Completion::of(inner).write(shared);
            }
        }
        if control.contains(ChanCtrl::ERR_INT_EN) {
            self.interrupt(inner, shared);
        }
    }

    /// A descriptor is done: status, completion word, interrupt, in this order.
    pub(crate) fn complete<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner>,
        shared: &Shared,
        at: u64,
        completion: bool,
        interrupt: bool,
    ) -> MutexGuard<'a, Inner> {
        inner.count = inner.count.wrapping_add(1);
        inner.last = Some(at);
        inner.completed = at;
        inner.set(channel::CDAR, 8, at);
        let done = if inner.has_work() {
            State::Active
        } else {
            State::Idle
        };
        inner.set_state(done);
        if completion {
            let word = Completion::of(&inner);
            let written = if shared.memory.takes_time() {
                drop(inner);
                let written = word.write(shared);
                inner = self.lock();
                written
            } else {
                word.write(shared)
            };
            if written.is_err() {
                self.fail(&mut inner, shared, ChanErr::COMPLETION_ADDR);
                return inner;
            }
        }
        if interrupt {
            let delay = shared.function().interrupt_delay();
            if delay == 0 {
                self.interrupt(&mut inner, shared);
            } else {
                let at = Instant::now() + Duration::from_micros(delay);
                inner.interrupt_at.get_or_insert(at);
            }
        }
        inner
    }

    /// Interrupts, or remembers to do so at the next re-arm.
    pub(crate) fn interrupt(&self, inner: &mut Inner, shared: &Shared) {
        inner.interrupt_at = None;
        let control = inner.get(channel::CHANCTRL, 2);
        let disable = u64::from(ChanCtrl::INT_DISABLE.bits());
        if control & disable != 0 {
            inner.held = true;
            return;
        }
        inner.set(channel::CHANCTRL, 2, control | disable);
        let n = shared.interrupts_raised.fetch_add(1, Ordering::Relaxed) + 1;
        if shared.plan.drops_irq(n) {
            add(&shared.counters.faults, 1);
        } else {
            shared.function().raise(self.index);
        }
    }

    fn rearm(&self, inner: &mut Inner, shared: &Shared) {
        shared.function().rearm(self.index);
        if std::mem::take(&mut inner.held) {
            self.interrupt(inner, shared);
        }
    }
}

/// What a completion writes, and where.
struct Completion {
    at: u64,
    word: u64,
}

impl Completion {
    /// CHANSTS, where CHANCMP says.
    fn of(inner: &Inner) -> Self {
        Self {
            at: inner.get(channel::CHANCMP, 8),
            word: inner.get(channel::CHANSTS, 8),
        }
    }

    /// Writes it, if it goes anywhere. Whether the engine may reach memory was looked at when the
    /// descriptor was found done: who forbids it since waits for that one to end.
    fn write(&self, shared: &Shared) -> Result<(), ()> {
        if self.at == 0 || shared.is_gone() {
            return Ok(());
        }
        if !self.at.is_multiple_of(8) {
            return Err(());
        }
        let written = shared.memory.store64(self.at, self.word);
        written.map_err(|_| ())?;
        add(&shared.counters.completions, 1);
        Ok(())
    }
}

impl Inner {
    /// What a register of `width` bytes holds.
    pub(crate) fn get(&self, offset: usize, width: usize) -> u64 {
        self.registers.get(offset, width)
    }

    fn set(&mut self, offset: usize, width: usize, value: u64) {
        self.registers.set(offset, width, value);
    }

    /// Whether DMACOUNT announces descriptors that are not done.
    pub(crate) fn has_work(&self) -> bool {
        self.get(channel::DMACOUNT, 2) != u64::from(self.count)
    }

    /// Changes the state, and CHANSTS with it.
    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state;
        let status = ChanSts::new(self.completed, state);
        self.set(channel::CHANSTS, 8, status.0);
    }

    /// Forgets all descriptors.
    fn restart(&mut self, state: State) {
        self.completed = 0;
        self.last = None;
        self.count = 0;
        self.set(channel::DMACOUNT, 2, 0);
        self.set_state(state);
    }
}
