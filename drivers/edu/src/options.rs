//! What may be chosen when the device is probed.

use hal::time::Duration;

/// How the device is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Address lines, 1 to 64. The device does not tell: it drops the bits above without a word.
    /// 28 unless QEMU was given another `dma_mask`.
    pub address_bits: u32,
    /// How long one transfer may take, 20 times the usual by default.
    pub transfer_limit: Duration,
    /// Does without interrupts: the device is looked at instead.
    pub polling: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address_bits: 28,
            transfer_limit: Duration::from_secs(2),
            polling: false,
        }
    }
}
