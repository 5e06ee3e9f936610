//! What moves operations of virtual channels into the ring of the physical one.
//!
//! It turns when a client issues, and when an operation comes out of the ring; one doorbell serves
//! a turn. A ring that was full is not filled again before half of what it held has come out, so
//! that a turn is worth its doorbell. Whoever finds it turning leaves the work to that one, so that
//! neither stack nor time of a caller grows with the work.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::mem;

use spin::Mutex;

use super::Virt;
use crate::chan::Chan;
use crate::operation::Operation;
use crate::provider::Rejected;

/// Operations of one client before it is the next one's turn.
pub(super) const QUANTUM: usize = 8;
/// Turns in one go, before the rest is left to a task that yields.
const TURNS: usize = 8;

/// What the virtual channels of one physical channel share.
pub(crate) struct Pump {
    pub(super) chan: Arc<Chan>,
    state: Mutex<State>,
}

struct State {
    /// Those that run; the first is served next.
    clients: VecDeque<Arc<Virt>>,
    /// Operations in the ring or elsewhere.
    under_way: usize,
    /// There may be room, or something to do, while no more are under way.
    low: usize,
    /// Somebody turns the pump, and is to turn it again.
    busy: bool,
    again: bool,
    /// The physical channel takes nothing any more.
    closed: bool,
}

/// How far one client's operations went.
pub(super) enum Fill {
    /// So many have entered, and there is room.
    Some(usize),
    /// So many have, and the ring is full.
    Full(usize),
}

enum Turn {
    Done,
    More,
    /// The ring is full of others' operations, of which so many had left it before.
    Full {
        left: u64,
    },
}

impl Pump {
    pub(super) fn new(chan: Arc<Chan>) -> Arc<Self> {
        let state = State {
            clients: VecDeque::new(),
            under_way: 0,
            low: usize::MAX,
            busy: false,
            again: false,
            closed: chan.is_closed(),
        };
        Arc::new(Self {
            chan,
            state: Mutex::new(state),
        })
    }

    pub(super) fn add(&self, virt: Arc<Virt>) {
        let mut state = self.state.lock();
        state.clients.push_back(virt.clone());
        let closed = state.closed;
        drop(state);
        if closed {
            virt.close();
        }
    }

    pub(super) fn remove(&self, virt: &Virt) {
        let mut state = self.state.lock();
        let is = |other: &Arc<Virt>| core::ptr::eq(&raw const **other, virt);
        let found = state.clients.iter().position(is);
        let removed = found.and_then(|at| state.clients.remove(at));
        drop(state);
        drop(removed);
    }

    /// The physical channel takes nothing any more.
    pub(crate) fn close(self: &Arc<Self>) {
        let clients = {
            let mut state = self.state.lock();
            state.closed = true;
            state.low = usize::MAX;
            state.clients.clone()
        };
        clients.iter().for_each(|virt| virt.close());
        self.kick();
    }

    /// Puts an operation into the ring.
    pub(super) fn adopt(&self, operation: Operation) -> Result<(), Rejected> {
        // Before it can come out.
        self.entered(1);
        let adopted = self.chan.adopt(operation);
        adopted.inspect_err(|_| self.state.lock().under_way -= 1)
    }

    /// So many more are under way.
    pub(super) fn entered(&self, count: usize) {
        self.state.lock().under_way += count;
    }

    /// One has come out.
    pub(super) fn left(self: &Arc<Self>) {
        self.state.lock().under_way -= 1;
        self.kick();
    }

    /// Turns the pump, if there can be something to do.
    pub(super) fn kick(self: &Arc<Self>) {
        {
            let mut state = self.state.lock();
            if state.under_way > state.low {
                return;
            }
            state.again = true;
            if mem::replace(&mut state.busy, true) {
                return;
            }
        }
        let turn = self.turn();
        if !matches!(turn, Turn::Done) {
            hal::task::spawn("dma-virt", self.clone().go_on(turn));
        }
    }

    async fn go_on(self: Arc<Self>, mut turn: Turn) {
        loop {
            match turn {
                Turn::Done => return,
                Turn::More => hal::task::yield_now().await,
                Turn::Full { left } => self.chan.room_since(left).await,
            }
            turn = self.turn();
        }
    }

    /// Turns until there is nothing to do, or no room. The caller is the busy one, and stays so
    /// unless all is done.
    fn turn(&self) -> Turn {
        for _ in 0..TURNS {
            let left = self.chan.left();
            {
                let mut state = self.state.lock();
                state.again = false;
                state.low = usize::MAX;
            }
            let filled = self.fill();
            let full = matches!(filled, Fill::Full(_));
            // What others have left in a full ring must be issued too, or there is never room.
            if !matches!(filled, Fill::Some(0)) {
                self.chan.issue_pending();
            }
            let mut state = self.state.lock();
            if state.again {
                continue;
            }
            if full && state.under_way == 0 {
                return Turn::Full { left };
            }
            // None that is under way has come out meanwhile: they will turn the pump.
            state.low = if full {
                state.under_way / 2
            } else {
                usize::MAX
            };
            state.busy = false;
            return Turn::Done;
        }
        Turn::More
    }

    /// Serves one client after the other until the ring is full or nothing is issued. Bounded by
    /// the ring: nothing that enters comes out before it is issued.
    fn fill(&self) -> Fill {
        let (mut entered, mut idle) = (0, 0);
        while let Some(virt) = self.first(idle) {
            match virt.fill(QUANTUM) {
                Fill::Some(0) => idle += 1,
                Fill::Some(count) => {
                    entered += count;
                    idle = 0;
                }
                // It has not had its turn.
                Fill::Full(0) => return Fill::Full(entered),
                Fill::Full(count) => {
                    self.rotate();
                    return Fill::Full(entered + count);
                }
            }
            self.rotate();
        }
        Fill::Some(entered)
    }

    /// Whose turn it is, unless all of them have been found `idle`.
    fn first(&self, idle: usize) -> Option<Arc<Virt>> {
        let state = self.state.lock();
        let first = state.clients.front().filter(|_| idle < state.clients.len());
        first.cloned()
    }

    fn rotate(&self) {
        let mut state = self.state.lock();
        if !state.clients.is_empty() {
            state.clients.rotate_left(1);
        }
    }
}
