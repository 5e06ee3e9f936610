//! Public channels: found by any client, without a request, by a table of the client's CPU.
//!
//! For each [`Transaction`] each CPU has one channel, or none. The tables hold the channels of all
//! devices that are not private, as long as somebody is interested ([`Registry::get_interest`]),
//! without those that a client has for itself. They are written anew when a device comes or goes,
//! when the first client becomes interested and the last no more, when a channel is requested or
//! released, and when a CPU goes or comes ([`Registry::rebalance`]).
//!
//! Finding and putting touch two cache lines of the running CPU and take no lock ([`refs`]); a
//! removal waits for the references ([`drain`]). All in task context. Lock order: the list of
//! devices → this module's state → slots → a channel's life.
//!
//! Whether references are counted is the one thing in which builds with and without the feature
//! `hotplug` differ ([`count`]).

#[cfg(feature = "hotplug")]
#[path = "counted.rs"]
mod count;
#[cfg(not(feature = "hotplug"))]
#[path = "uncounted.rs"]
mod count;
mod drain;
mod interest;
mod offers;
#[cfg(all(test, feature = "hotplug"))]
mod races;
mod refs;
mod slot;
mod table;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::AtomicU8;

use hal::cpu::{self, MAX_CPUS};
use hal::time::Duration;
use spin::Mutex;

use crate::capability::Capabilities;
use crate::chan::{Chan, DmaChan};
use crate::client::Client;
use crate::device::DmaDevice;
use crate::life::{self, Hold, RequestError, Sharing};
use crate::provider::StartError;
use crate::registry::Registry;
use crate::wait::WaitList;
use drain::Drain;
pub(crate) use drain::Drained;
pub use interest::Interest;
pub use offers::Offers;
pub use refs::{ChanRef, Draining, Opened};
use slot::Number;
pub(crate) use table::Tables;
use table::{Candidate, Cpu};

/// How long who requests a public channel for itself waits for those who have found it.
const RESERVE_LIMIT: Duration = Duration::from_millis(200);

/// What public channels are found for. Linux: enum dma_transaction_type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Transaction {
    /// Copies.
    Memcpy,
    /// Fills.
    Memset,
    /// Exclusive or.
    Xor,
    /// Its check.
    XorVal,
    /// The two parities of RAID 6.
    Pq,
    /// Their check.
    PqVal,
    /// Interrupts without data.
    Interrupt,
}

impl Transaction {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::Memcpy,
        Self::Memset,
        Self::Xor,
        Self::XorVal,
        Self::Pq,
        Self::PqVal,
        Self::Interrupt,
    ];

    /// What a device must be capable of.
    pub const fn capability(self) -> Capabilities {
        match self {
            Self::Memcpy => Capabilities::MEMCPY,
            Self::Memset => Capabilities::MEMSET,
            Self::Xor => Capabilities::XOR,
            Self::XorVal => Capabilities::XOR_VAL,
            Self::Pq => Capabilities::PQ,
            Self::PqVal => Capabilities::PQ_VAL,
            Self::Interrupt => Capabilities::INTERRUPT,
        }
    }
}

impl Transaction {
    /// The one that `capability` serves, if there is such.
    pub(crate) fn of(capability: Capabilities) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|transaction| transaction.capability() == capability)
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.capability().fmt(f)
    }
}

/// The public channels of a registry.
pub(crate) struct Public {
    tables: Tables,
    /// What get, put and balance change. Only its lock gives a `&mut State`: that is their token.
    state: Mutex<State>,
    /// Tells who waits for channels that the tables were written.
    rewritten: WaitList,
}

#[derive(Default)]
struct State {
    interest: usize,
    members: Vec<Member>,
    /// How often the tables were written.
    rebuilds: u64,
}

/// A channel of a device that is not private.
struct Member {
    chan: Arc<Chan>,
    /// Its number in its device.
    index: usize,
    /// From its first place in a table until its device is removed.
    slot: Option<Number>,
    /// One for each interested client.
    holds: Vec<Hold>,
    /// It did not start. Tried again for the next client.
    refused: bool,
}

impl Member {
    fn is_usable(&self) -> bool {
        // One that a client has for itself has no holds: that client sees to it.
        !self.holds.is_empty() && self.chan.life.is_ready()
    }
}

fn is_of(device: &DmaDevice, member: &Member) -> bool {
    let mut chans = device.chans().iter();
    chans.any(|chan| Arc::ptr_eq(chan, &member.chan))
}

impl State {
    fn rebuild(&mut self, tables: &Tables) {
        let mut candidates = Vec::with_capacity(self.members.len());
        for member in self.members.iter_mut().filter(|member| member.is_usable()) {
            if member.slot.is_none() {
                member.slot = slot::allocate(&member.chan);
            }
            candidates.extend(member.slot.map(|slot| Candidate {
                slot,
                capabilities: member.chan.info.capabilities,
                node: member.chan.info.node,
            }));
        }
        let cpu = |number| Cpu {
            number,
            online: cpu::is_online(number),
            node: cpu::node(number),
        };
        let cpus: Vec<_> = (0..cpu::possible().min(MAX_CPUS)).map(cpu).collect();
        tables.publish(&cpus, &candidates);
        self.rebuilds += 1;
    }
}

/// What a withdrawn device leaves behind.
#[derive(Default)]
pub(crate) struct Withdrawn {
    /// The interested clients' references to its channels. They keep it running.
    pub(crate) holds: Vec<Hold>,
    drain: Drain,
}

impl Withdrawn {
    /// Waits for the references to its channels; see [`Drain::wait`].
    pub(crate) async fn drain(&mut self, limit: Duration, poll: impl FnMut()) -> Drained {
        self.drain.wait(limit, poll).await
    }
}

impl Public {
    pub(crate) fn new(tables: Tables) -> Arc<Self> {
        Arc::new(Self {
            tables,
            state: Mutex::default(),
            rewritten: WaitList::default(),
        })
    }

    /// Adds a device's channels, unless it is private.
    pub(crate) fn add(self: &Arc<Self>, device: &DmaDevice) {
        if device.info().capabilities.contains(Capabilities::PRIVATE) {
            return;
        }
        let member = |(index, chan): (usize, &Arc<Chan>)| Member {
            chan: chan.clone(),
            index,
            slot: None,
            holds: Vec::new(),
            refused: false,
        };
        let mut state = self.state.lock();
        let chans = device.chans().iter().enumerate();
        state.members.extend(chans.map(member));
        // The first channels of all devices, then the second ones: few CPUs use many devices.
        state.members.sort_by_key(|member| member.index);
        drop(state);
        self.changed();
    }

    /// Takes a device's channels out of the tables for good.
    pub(crate) fn withdraw(&self, device: &DmaDevice) -> Withdrawn {
        self.take(&mut self.state.lock(), device)
    }

    fn take(&self, state: &mut State, device: &DmaDevice) -> Withdrawn {
        let of_device = state.members.extract_if(.., |member| is_of(device, member));
        let members: Vec<_> = of_device.collect();
        let slots: Vec<_> = members.iter().filter_map(|member| member.slot).collect();
        slots.iter().for_each(|&slot| slot::drain(slot));
        state.rebuild(&self.tables);
        Withdrawn {
            holds: members
                .into_iter()
                .flat_map(|member| member.holds)
                .collect(),
            drain: Drain::new(slots, state.interest),
        }
    }

    /// Withdraws a device if no client needs it; else says how many clients do.
    pub(crate) fn withdraw_idle(&self, device: &DmaDevice) -> Result<Withdrawn, usize> {
        let mut state = self.state.lock();
        // Who comes from now on is refused, who came before is counted.
        let leaving = |leaving| {
            let chans = device.chans().iter();
            chans.for_each(|chan| chan.life.set_leaving(leaving));
        };
        leaving(true);
        let mut clients: usize = device.chans().iter().map(|chan| chan.life.clients()).sum();
        if !device.info().capabilities.contains(Capabilities::PRIVATE) {
            // One who is interested is one client, however many channels there are.
            let members = state.members.iter().filter(|member| is_of(device, member));
            let holds: usize = members.map(|member| member.holds.len()).sum();
            clients = clients.saturating_sub(holds) + state.interest;
        }
        if clients > 0 {
            leaving(false);
            return Err(clients);
        }
        Ok(self.take(&mut state, device))
    }

    fn enter(&self) {
        let mut state = self.state.lock();
        state.interest += 1;
        for member in &mut state.members {
            member.refused = false;
        }
    }

    pub(crate) fn leave(&self) -> Vec<Hold> {
        {
            let mut state = self.state.lock();
            let Some(rest) = state.interest.checked_sub(1) else {
                log::error!("interest in public channels given up once too often: refused");
                return Vec::new();
            };
            state.interest = rest;
        }
        self.adjust().0
    }

    /// Brings each channel's holds to the number of interested clients, then the tables to what
    /// runs. Returns the holds that are too many and the channels that are wanted.
    fn adjust(&self) -> (Vec<Hold>, Vec<Arc<Chan>>) {
        let mut surplus = Vec::new();
        let mut wanted = Vec::new();
        let mut state = self.state.lock();
        let interest = state.interest;
        let client = Client::new("public");
        for member in &mut state.members {
            let out = member.refused || member.chan.life.is_exclusive();
            let want = if out { 0 } else { interest };
            for _ in member.holds.len()..want {
                match Hold::join(&member.chan, &client, Sharing::Public) {
                    Ok(hold) => member.holds.push(hold),
                    // Removed, or requested by a client of its own, just now.
                    Err(_) => break,
                }
            }
            let keep = want.min(member.holds.len());
            surplus.extend(member.holds.drain(keep..));
            if !member.holds.is_empty() {
                wanted.push(member.chan.clone());
            }
        }
        state.rebuild(&self.tables);
        drop(state);
        (surplus, wanted)
    }

    /// Starts and stops channels as the interest demands, and waits for the starts. Returns those
    /// that failed.
    pub(crate) async fn balance(&self) -> Vec<(String, RequestError)> {
        let (surplus, wanted) = self.adjust();
        drop(surplus);
        let mut refused = Vec::new();
        for chan in wanted {
            let Err(error) = life::started(&chan).await else {
                continue;
            };
            let holds = {
                let mut state = self.state.lock();
                let mut members = state.members.iter_mut();
                let member = members.find(|member| Arc::ptr_eq(&chan, &member.chan));
                let Some(member) = member.filter(|member| !member.holds.is_empty()) else {
                    continue;
                };
                member.refused = true;
                core::mem::take(&mut member.holds)
            };
            drop(holds);
            if let (RequestError::Start(StartError::Gone), Some(registry)) =
                (&error, chan.registry())
            {
                registry.delist_of(&chan);
            }
            refused.push((chan.name.clone(), error));
        }
        self.rebuild();
        refused
    }

    /// The first channel in the tables that `wanted` likes.
    fn usable(&self, mut wanted: impl FnMut(&Arc<Chan>) -> bool) -> Option<Arc<Chan>> {
        let state = self.state.lock();
        let mut members = state.members.iter();
        let member = members.find(|member| member.is_usable() && wanted(&member.chan))?;
        Some(member.chan.clone())
    }

    fn interest(&self) -> usize {
        self.state.lock().interest
    }

    pub(crate) fn rebuild(&self) {
        self.state.lock().rebuild(&self.tables);
        self.rewritten.wake_all();
    }

    /// A channel came, became private, or public again.
    pub(crate) fn changed(self: &Arc<Self>) {
        let (surplus, wanted) = self.adjust();
        drop(surplus);
        if !wanted.is_empty() {
            let public = self.clone();
            hal::task::spawn("dma-balance", async move {
                public.balance().await;
            });
        }
    }

    /// Waits until nobody refers to a channel that has left the tables because a client wants it
    /// for itself. Fails where that takes too long.
    pub(crate) async fn reserve(self: &Arc<Self>, chan: &Arc<Chan>) -> Result<(), RequestError> {
        let Some(slot) = self.slot_of(chan, slot::drain) else {
            return Ok(());
        };
        let _revive = Revive { public: self, chan };
        if !count::settle(self.interest()) {
            return Err(RequestError::Busy);
        }
        let none = || {
            chan.ops.poll();
            count::references(slot) == 0
        };
        let waited = hal::time::poll_until(RESERVE_LIMIT, drain::STEP, none).await;
        waited.map_err(|_| RequestError::Busy)
    }

    /// Does something to a channel's slot while the channel is a member.
    fn slot_of(&self, chan: &Arc<Chan>, act: impl FnOnce(Number)) -> Option<Number> {
        let state = self.state.lock();
        let mut members = state.members.iter();
        let member = members.find(|member| Arc::ptr_eq(chan, &member.chan))?;
        let slot = member.slot?;
        act(slot);
        Some(slot)
    }
}

/// Ends the drain of a channel that stays. Not that of one that is withdrawn meanwhile.
struct Revive<'a> {
    public: &'a Public,
    chan: &'a Arc<Chan>,
}

impl Drop for Revive<'_> {
    fn drop(&mut self) {
        self.public.slot_of(self.chan, slot::revive);
    }
}

/// A registry goes, and its tables with it: nobody finds its channels any more.
impl Drop for Public {
    fn drop(&mut self) {
        let State {
            members, interest, ..
        } = core::mem::take(self.state.get_mut());
        let slots: Vec<_> = members.iter().filter_map(|member| member.slot).collect();
        if slots.is_empty() {
            return;
        }
        slots.iter().for_each(|&slot| slot::drain(slot));
        let settled = count::settle(interest);
        for slot in slots {
            slot::retire(slot, settled);
        }
    }
}

/// What a channel calls when a client gets it for itself, or gives it up.
pub(crate) fn changed(chan: &Chan) {
    if chan.info.capabilities.contains(Capabilities::PRIVATE) {
        return;
    }
    if let Some(registry) = chan.registry() {
        registry.public.changed();
    }
}

/// As [`Public::reserve`], from a channel.
pub(crate) async fn reserve(chan: &Arc<Chan>) -> Result<(), RequestError> {
    match chan.registry() {
        Some(registry) => registry.public.reserve(chan).await,
        None => Ok(()),
    }
}

/// The slots of all registries, for an audit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Naming channels.
    pub live: usize,
    /// Waiting for references to go.
    pub draining: usize,
    /// Naming nothing, but referred to when last looked at: references that leaked.
    pub tombstones: usize,
    /// Not to be used again: a CPU did not answer the barrier, or nobody counted references.
    pub lost: usize,
}

impl Slots {
    /// As they are now.
    pub fn now() -> Self {
        let [_, live, draining, tombstones, lost] = slot::census();
        Self {
            live,
            draining,
            tombstones,
            lost,
        }
    }
}

impl Registry {
    /// Finds the running CPU's public channel for `transaction`: two looks at its table and one
    /// count (without the feature `hotplug` one look alone), no lock, no call. `None` where no
    /// channel serves, nobody is interested, or all such channels are being removed: then the CPU
    /// does the work.
    #[inline(always)]
    pub fn find(&self, transaction: Transaction) -> Option<ChanRef> {
        refs::find(&self.tables, transaction)
    }

    /// As [`Registry::find`], but only a channel that can take these addresses and this length,
    /// in bytes.
    #[inline]
    pub fn find_aligned(
        &self,
        transaction: Transaction,
        addresses: &[u64],
        len: usize,
    ) -> Option<ChanRef> {
        let found = self.find(transaction)?;
        let all = addresses.iter().fold(len as u64, |all, place| all | place);
        let aligned = all.trailing_zeros() >= u32::from(found.copy_align());
        aligned.then_some(found)
    }

    /// Whether the running CPU has a public channel for `transaction`. Counts nothing; the answer
    /// may be out of date at once.
    #[inline]
    pub fn has_capability(&self, transaction: Transaction) -> bool {
        self.tables.get(cpu::current(), transaction).is_some()
    }

    /// Becomes interested in the public channels: starts them where nobody else was, and waits
    /// until they run or have failed. Only while somebody is interested are they found.
    pub async fn get_interest(&self) -> Interest {
        Interest::get(&self.public).await
    }

    /// How many clients are interested in the public channels.
    pub fn interest(&self) -> usize {
        self.public.interest()
    }

    /// Writes the tables anew. The kernel calls it when a CPU has gone or come.
    pub fn rebalance(&self) {
        self.public.rebuild();
    }

    /// How often the tables were written.
    pub fn rebuilds(&self) -> u64 {
        self.public.state.lock().rebuilds
    }

    /// Where the table of `cpu`, below [`MAX_CPUS`], lies: in a cache line of its own.
    pub fn table_place(&self, cpu: usize) -> Range<*const AtomicU8> {
        self.tables.place(cpu)
    }

    /// The channel that `cpu` uses for `transaction`.
    pub fn table_entry(&self, cpu: usize, transaction: Transaction) -> Option<DmaChan> {
        let inner = slot::chan(self.tables.get(cpu, transaction)?)?;
        Some(DmaChan { inner })
    }

    /// How many references to a public channel there are. Exact while nobody finds or puts; 0
    /// where they are not counted (no feature `hotplug`).
    pub fn references(&self, chan: &DmaChan) -> usize {
        let slot = self.public.slot_of(&chan.inner, |_| ());
        let count = slot.map_or(0, count::references);
        usize::try_from(count).unwrap_or(0)
    }
}
