//! What an engine counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! statistics {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What an engine has done since it was made; resets do not clear it.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Statistics {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Statistics {
            /// Every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Statistics {
                Statistics {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

statistics! {
    /// Reads of BAR0.
    mmio_reads,
    /// Writes to BAR0.
    mmio_writes,
    /// Those of both that came when the engine was gone; they are in the two above as well.
    mmio_after_gone,
    /// Accesses to configuration space that came when the engine was gone.
    config_after_gone,
    /// Writes to a DMACOUNT.
    doorbells,
    /// Interrupts sent: messages, and rises of the INTx pin.
    interrupts,
    /// Descriptors done without an error, null ones among them.
    descriptors,
    /// Completion words written.
    completions,
    /// Bytes that copies and fills wrote.
    bytes,
    /// Errors raised in CHANERR, and injected faults that came true.
    faults,
}

/// Adds to a counter. They are only ever summed up, so no order between them matters.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_show_under_their_names() {
        let counters = Counters::default();
        add(&counters.bytes, 5);
        add(&counters.bytes, 6);
        let shown: Vec<_> = counters.snapshot().iter().collect();
        assert_eq!(shown[8], ("bytes", 11));
        assert_eq!(shown.len(), 10);
    }
}
