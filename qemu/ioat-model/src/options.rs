//! What an engine shall be.

use std::fmt;

use ioat_spec::{CbVer, DmaCap, device};

use crate::fault::Fault;

/// Most channels of one engine.
pub const MAX_CHANNELS: usize = 8;

/// How an engine's function can interrupt, beside its INTx pin, which is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irq {
    /// One message, by the MSI capability.
    Msi,
    /// One message a channel, by the MSI-X capability.
    MsiX,
    /// The pin alone.
    Intx,
}

/// What an engine shall be. [`EngineConfig::new`] gives a part that exists; every field can be
/// changed afterwards.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Channels, 1 to [`MAX_CHANNELS`].
    pub channels: usize,
    /// Version.
    pub cbver: CbVer,
    /// PCI device ID.
    pub device_id: u16,
    /// Which interrupt capability the function has.
    pub irq: Irq,
    /// log2 of the longest transfer in bytes, 12 to 31.
    pub xfercap_log2: u8,
    /// What DMACAPABILITY advertises. Only page breaks, fills and the version-3.4 prefetch
    /// registers are there to be advertised.
    pub capabilities: DmaCap,
    /// How it misbehaves.
    pub faults: Vec<Fault>,
}

impl EngineConfig {
    /// Four channels of version `cbver`, with the identity and limits of a part that has it: Xeon
    /// Scalable (2021h) for 3.2, Xeon D-1500 (6F50h) for 3.3, Ice Lake-SP (0B00h) for 3.4.
    pub fn new(cbver: CbVer) -> Self {
        let basic = DmaCap::PAGE_BREAK | DmaCap::FILL_BLOCK;
        let (device_id, xfercap_log2, capabilities) = match cbver {
            CbVer::V3_4 => (0x0b00, 20, basic | DmaCap::DPS),
            CbVer::V3_3 => (0x6f50, 20, basic),
            _ => (0x2021, 21, basic),
        };
        Self {
            channels: 4,
            cbver,
            device_id,
            irq: Irq::Msi,
            xfercap_log2,
            capabilities,
            faults: Vec::new(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), BadConfig> {
        if self.channels == 0 || self.channels > MAX_CHANNELS {
            return Err(BadConfig("channels are 1 to 8"));
        }
        if !(device::XFERCAP_MIN..=31).contains(&self.xfercap_log2) {
            return Err(BadConfig("the transfer limit is 2^12 to 2^31 bytes"));
        }
        let built = DmaCap::PAGE_BREAK | DmaCap::FILL_BLOCK | DmaCap::DPS;
        if !built.contains(self.capabilities) {
            return Err(BadConfig("a capability that the engine does not have"));
        }
        Ok(())
    }
}

impl Default for EngineConfig {
    /// Version 3.2.
    fn default() -> Self {
        Self::new(CbVer::V3_2)
    }
}

/// A configuration that no engine can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadConfig(pub(crate) &'static str);

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadConfig {}
