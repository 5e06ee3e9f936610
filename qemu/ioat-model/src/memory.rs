//! What an engine needs of the machine around it: guest memory and interrupts.
//!
//! Whoever embeds an engine implements these two traits; the engine names no transport.

use std::fmt;

/// A DMA access hit nothing, or something that may not be accessed so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryError;

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such guest memory")
    }
}

impl std::error::Error for MemoryError {}

/// Which side of a copy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyError {
    /// Reading the source.
    Source,
    /// Writing the destination.
    Destination,
}

/// Memory as the engine's DMA sees it: guest addresses.
///
/// The engine's channels call it from threads of their own, at the same time. Addresses and
/// lengths come from the guest, so that every one of them must give a result.
pub trait GuestMemory: Send + Sync {
    /// Whether an access waits for somebody who may himself wait for the engine's registers: then it is
    /// made while they can be accessed.
    fn takes_time(&self) -> bool {
        false
    }

    /// Reads `bytes.len()` bytes at `addr`.
    fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), MemoryError>;

    /// Writes `bytes` at `addr`. Where a part of the range is missing, the bytes before it may
    /// have been written.
    fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), MemoryError>;

    /// Copies `len` bytes. Ranges that overlap are copied as by `memmove` or from low to high
    /// addresses: the engine promises neither.
    fn copy(&self, src: u64, dst: u64, len: usize) -> Result<(), CopyError> {
        let mut buffer = [0; 4096];
        let mut done = 0;
        while done < len {
            let part = &mut buffer[..(len - done).min(4096)];
            let offset = done as u64;
            self.read(src.wrapping_add(offset), part)
                .map_err(|_| CopyError::Source)?;
            self.write(dst.wrapping_add(offset), part)
                .map_err(|_| CopyError::Destination)?;
            done += part.len();
        }
        Ok(())
    }

    /// Reads the eight bytes at `addr`, a multiple of 8, in one access, as a little-endian word.
    /// Later accesses of the thread are ordered after it.
    fn load64(&self, addr: u64) -> Result<u64, MemoryError>;

    /// Writes eight bytes at `addr`, a multiple of 8, in one access, as a little-endian word.
    /// Earlier writes of the thread are visible before it.
    fn store64(&self, addr: u64, value: u64) -> Result<(), MemoryError>;
}

/// Why a request has moved nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The machine has said no, or there is none.
    Refused,
    /// There is no answer.
    Unanswered,
}

/// Accesses that the machine itself carries out for the function, or refuses: its IOMMU sees them.
///
/// Called from threads of their own, and with no lock held, as answers take their time.
pub trait Requests: Send + Sync {
    /// Has `bytes.len()` bytes at `addr` read.
    fn request_read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), Refusal>;

    /// Has `bytes` written at `addr`.
    fn request_write(&self, addr: u64, bytes: &[u8]) -> Result<(), Refusal>;
}

/// Where an engine's interrupts go.
///
/// The engine calls it with its own locks held: an implementation must not call the engine back
/// from here, and should return soon.
pub trait InterruptSink: Send + Sync {
    /// The function sends the message of vector `vector`: of its MSI-X table while MSI-X is
    /// enabled, else of its MSI capability, where `vector` is 0.
    fn message(&self, vector: usize);

    /// The level of the INTx pin changes. It starts low.
    fn set_intx(&self, asserted: bool);
}
