//! Interest in the public channels as a whole.
//!
//! While anybody is interested, every public channel runs, and each interested client counts as a
//! client of each: so a find needs to start nothing. A channel that arrives later, or becomes
//! public again, catches up.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::Public;
use crate::life::{Hold, RequestError};

/// A client's interest in the public channels. Dropping it gives it up; the channels stop when
/// nobody else needs them, whatever references exist still.
#[must_use = "dropping it gives the interest up"]
pub struct Interest {
    public: Option<Arc<Public>>,
    refused: Vec<(String, RequestError)>,
}

impl Interest {
    pub(crate) async fn get(public: &Arc<Public>) -> Self {
        public.enter();
        let mut interest = Self {
            public: Some(public.clone()),
            refused: Vec::new(),
        };
        interest.refused = public.balance().await;
        interest
    }

    /// The public channels that could not be started, and why. They are not found; the next
    /// client that becomes interested tries them again.
    pub fn refused(&self) -> &[(String, RequestError)] {
        &self.refused
    }

    /// Gives the interest up and waits until the channels that nobody else needs have stopped.
    pub async fn put(mut self) {
        for hold in self.leave() {
            hold.release().await;
        }
    }

    pub(super) fn public(&self) -> Option<&Public> {
        self.public.as_deref()
    }

    fn leave(&mut self) -> Vec<Hold> {
        self.public
            .take()
            .map_or_else(Vec::new, |public| public.leave())
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        drop(self.leave());
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interest(refused={})", self.refused.len())
    }
}
