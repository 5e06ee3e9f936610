//! What can be chosen when an engine is probed.

use hal::irq::IrqKind;
use hal::time::Duration;

/// How completions are announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interrupt {
    /// MSI-X, else MSI, else INTx, else polling: whatever binds first.
    #[default]
    Auto,
    /// This kind or none at all.
    Kind(IrqKind),
    /// No interrupt: the channel's task looks every millisecond while something is in flight.
    Polling,
}

/// How an engine is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How completions are announced.
    pub interrupt: Interrupt,
    /// Log2 of the descriptor slots in each ring, 2 to 15. A slot is 64 bytes.
    pub ring_order: u32,
    /// How long the engine may go without finishing a descriptor before it is reset.
    pub hang_limit: Duration,
    /// How long what a lost engine had waits for the engine's removal, which has it done elsewhere,
    /// before it fails.
    pub lost_limit: Duration,
}

impl Options {
    /// Slots in a ring.
    pub(crate) fn slots(&self) -> u64 {
        1 << self.ring_order.clamp(2, 15)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interrupt: Interrupt::Auto,
            ring_order: 10,
            hang_limit: Duration::from_secs(1),
            lost_limit: Duration::from_secs(2),
        }
    }
}
