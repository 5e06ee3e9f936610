//! Guest memory by request: every access is a message that the client carries out, or refuses.

use std::sync::OnceLock;

use ioat_model::{GuestMemory, MemoryError, Refusal, Requests};

use crate::dma_messages::{DmaRequester, RequestError};

/// The guest's memory, once there is a client to ask for it.
#[derive(Default)]
pub(crate) struct RemoteRam(OnceLock<DmaRequester>);

impl RemoteRam {
    /// From here on this one asks. There is one client, so that the first call is the only one.
    pub(crate) fn connect(&self, requester: DmaRequester) {
        let _ = self.0.set(requester);
    }

    fn requester(&self) -> Result<&DmaRequester, MemoryError> {
        self.0.get().ok_or(MemoryError)
    }
}

/// A word of eight bytes that lies on its boundary is one access for QEMU too.
impl GuestMemory for RemoteRam {
    fn takes_time(&self) -> bool {
        true
    }

    fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let read = self.requester()?.read(addr, bytes);
        read.map_err(|error| refused("reading", addr, bytes.len(), error))
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let written = self.requester()?.write(addr, bytes);
        written.map_err(|error| refused("writing", addr, bytes.len(), error))
    }

    fn load64(&self, addr: u64) -> Result<u64, MemoryError> {
        let mut word = [0; 8];
        self.read(addr, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    fn store64(&self, addr: u64, value: u64) -> Result<(), MemoryError> {
        self.write(addr, &value.to_le_bytes())
    }
}

fn refused(what: &str, addr: u64, len: usize, error: impl std::fmt::Display) -> MemoryError {
    log::debug!("{what} {addr:#x}+{len:#x}: {error}");
    MemoryError
}

/// Strays ask by the same messages.
impl Requests for DmaRequester {
    fn request_read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), Refusal> {
        self.read(addr, bytes).map_err(refusal)
    }

    fn request_write(&self, addr: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.write(addr, bytes).map_err(refusal)
    }
}

fn refusal(error: RequestError) -> Refusal {
    match error {
        RequestError::Refused(_) | RequestError::Closed => Refusal::Refused,
        RequestError::Unanswered => Refusal::Unanswered,
    }
}
