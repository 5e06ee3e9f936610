//! Contexts: the numbers under which fences are ordered.

use crate::fence::{Fence, Signaler};
use crate::sync::{Counter, Ordering};

static NEXT: Counter = Counter::new(1);

/// A context number that nobody else has. They are never reused.
pub fn next_context() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A context that numbers its own fences, from 1 on.
#[derive(Debug)]
pub struct Context {
    number: u64,
    seqno: Counter,
}

impl Context {
    /// A context of its own.
    pub fn new() -> Self {
        Self {
            number: next_context(),
            seqno: Counter::new(1),
        }
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next fence of this context.
    pub fn fence(&self) -> (Signaler, Fence) {
        Fence::new(self.number, self.seqno.fetch_add(1, Ordering::Relaxed))
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_differ_and_count_for_themselves() {
        let (a, b) = (Context::new(), Context::default());
        assert_ne!(a.number(), b.number());
        let first = a.fence().1;
        let second = a.fence().1;
        assert_eq!((first.context(), first.seqno()), (a.number(), 1));
        assert_eq!(second.seqno(), 2);
        assert_eq!(b.fence().1.seqno(), 1);
    }
}
