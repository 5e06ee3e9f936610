//! Channels offered to a client, one after the other, as they come.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;

use super::{Interest, Public};
use crate::capability::Capabilities;
use crate::chan::{Chan, DmaChan};

/// Offers of public channels: each that runs for interested clients and can do what is asked for
/// is offered once, those that come later as well.
pub struct Offers<'a> {
    public: &'a Public,
    capabilities: Capabilities,
    offered: Vec<Weak<Chan>>,
}

impl fmt::Debug for Offers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Offers({} offered={})",
            self.capabilities,
            self.offered.len()
        )
    }
}

impl Interest {
    /// Offers the channels that can do all of `capabilities`.
    pub fn offers(&self, capabilities: Capabilities) -> Option<Offers<'_>> {
        Some(Offers {
            public: self.public()?,
            capabilities,
            offered: Vec::new(),
        })
    }
}

impl Offers<'_> {
    /// The next offer. Waits where every channel has been offered.
    pub async fn next(&mut self) -> DmaChan {
        let Self {
            public,
            capabilities,
            offered,
        } = self;
        public
            .rewritten
            .until(|| {
                offered.retain(|chan| chan.strong_count() > 0);
                let known = |chan: &Arc<Chan>| {
                    let mut all = offered.iter();
                    all.any(|other| Weak::as_ptr(other) == Arc::as_ptr(chan))
                };
                let chan = public.usable(|chan| {
                    chan.info.capabilities.contains(*capabilities) && !known(chan)
                })?;
                offered.push(Arc::downgrade(&chan));
                Some(DmaChan { inner: chan })
            })
            .await
    }

    /// Wants no more of them.
    pub fn nak(self) {}
}
