//! Limits and intervals.

use hal::time::Duration;

/// What a slot's driver waits for, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// From a press of the attention button to what it asks for; a second press within it cancels.
    /// PCI Express Base 6.7.1.5.
    pub window: Duration,
    /// For a command to be completed. 6.7.3.2.
    pub command: Duration,
    /// For the link to become active after power is on.
    pub link: Duration,
    /// From there to the first access to configuration space. 6.6.1.
    pub settle: Duration,
    /// And from there for the card to answer it. 6.6.1.
    pub answer: Duration,
    /// From power off to what relies on it: the indicator, and power on. 6.7.1.8.
    pub power_off: Duration,
    /// How often a slot is looked at whose port does not interrupt, or was silenced:
    /// [`crate::Handle::look`].
    pub poll: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(5),
            command: Duration::from_secs(1),
            link: Duration::from_secs(1),
            settle: Duration::from_millis(100),
            answer: Duration::from_secs(1),
            power_off: Duration::from_secs(1),
            poll: Duration::from_millis(200),
        }
    }
}
