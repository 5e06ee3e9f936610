//! References to public channels: found, duplicated and put without a lock.
//!
//! A reference is a slot's number, and counted, or not, as [`super::count`] says. The channel is
//! looked up only when the reference is used, after it is counted: before, the slot may have passed
//! to another channel. Task context.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;

use hal::cpu;

use super::slot::{self, Number};
use super::table::Tables;
use super::{Transaction, count};
use crate::chan::DmaChan;
use crate::channel::Channel;
use crate::life::RequestError;

/// A reference to a public channel. While it exists, a removal of the channel's device waits for
/// it, up to its deadline. It may be sent and dropped anywhere.
#[must_use = "dropping it puts the reference"]
pub struct ChanRef {
    slot: Number,
}

/// The channel is being withdrawn: its references are not duplicated any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draining;

impl fmt::Display for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the channel is being removed")
    }
}

/// Finds the running CPU's channel for `transaction`.
#[inline(always)]
pub(crate) fn find(tables: &Tables, transaction: Transaction) -> Option<ChanRef> {
    let slot = count::find(tables.entry(cpu::current(), transaction))?;
    Some(ChanRef { slot })
}

impl ChanRef {
    /// Another reference to the same channel. Fails once the channel is being withdrawn: counts
    /// must fall then.
    #[inline]
    pub fn dup(&self) -> Result<Self, Draining> {
        // Counted before the state is looked at: a drain that does not see the count has marked
        // the slot before, and is seen here.
        let other = Self { slot: self.slot };
        count::get(self.slot);
        if slot::is_live(self.slot) {
            Ok(other)
        } else {
            // Puts what was counted.
            drop(other);
            Err(Draining)
        }
    }

    /// The channel, to use it. Fails where it was withdrawn in spite of this reference.
    pub fn open(&self) -> Result<Opened<'_>, RequestError> {
        let inner = slot::chan(self.slot).ok_or(RequestError::Gone)?;
        Ok(Opened {
            channel: Channel::unheld(DmaChan { inner }),
            reference: PhantomData,
        })
    }

    /// Log2 of the alignment in bytes that addresses and lengths need.
    pub fn copy_align(&self) -> u8 {
        slot::alignment(self.slot)
    }
}

impl Drop for ChanRef {
    #[inline(always)]
    fn drop(&mut self) {
        count::put(self.slot);
    }
}

impl fmt::Debug for ChanRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match slot::chan(self.slot) {
            Some(chan) => write!(f, "ChanRef({})", chan.name),
            None => f.write_str("ChanRef(gone)"),
        }
    }
}

/// A public channel in use: what it derefs to prepares, submits, issues and polls. Operations
/// under way may outlive it.
pub struct Opened<'a> {
    channel: Channel,
    reference: PhantomData<&'a ChanRef>,
}

impl Deref for Opened<'_> {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

impl fmt::Debug for Opened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.channel.fmt(f)
    }
}
