//! Why work ended without success.

use core::fmt;

/// How an operation failed. Small and `Copy`, so that a fence can carry it without a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FenceError {
    /// Whoever should have signalled dropped its end.
    Abandoned,
    /// The client or a removal terminated the work.
    Terminated,
    /// The device made no progress within its limit.
    Timeout,
    /// The device reported an error; the number is the device's own error register (CHANERR for
    /// I/OAT), 0 where the device gave no reason.
    Device(u32),
    /// The device is gone.
    Gone,
    /// The memory could not be mapped for the device.
    Map,
    /// Its timeline was closed before it got there.
    Closed,
}

impl FenceError {
    /// The number that Linux would use for it, negative.
    pub const fn errno(self) -> i32 {
        match self {
            Self::Abandoned => -130,  // EOWNERDEAD
            Self::Terminated => -125, // ECANCELED
            Self::Timeout => -110,    // ETIMEDOUT
            Self::Device(_) => -5,    // EIO
            Self::Gone => -19,        // ENODEV
            Self::Map => -14,         // EFAULT
            Self::Closed => -2,       // ENOENT
        }
    }
}

impl fmt::Display for FenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abandoned => f.write_str("abandoned"),
            Self::Terminated => f.write_str("terminated"),
            Self::Timeout => f.write_str("timed out"),
            Self::Device(code) => write!(f, "device error {code:#x}"),
            Self::Gone => f.write_str("device gone"),
            Self::Map => f.write_str("mapping failed"),
            Self::Closed => f.write_str("timeline closed"),
        }
    }
}

/// What one atomic word says of a fence: 0 while pending, else kind in the high half and a
/// device's error code in the low half.
pub(crate) const PENDING: u64 = 0;

pub(crate) const fn encode(result: Result<(), FenceError>) -> u64 {
    let (kind, code) = match result {
        Ok(()) => (1, 0),
        Err(FenceError::Abandoned) => (2, 0),
        Err(FenceError::Terminated) => (3, 0),
        Err(FenceError::Timeout) => (4, 0),
        Err(FenceError::Device(code)) => (5, code),
        Err(FenceError::Gone) => (6, 0),
        Err(FenceError::Map) => (7, 0),
        Err(FenceError::Closed) => (8, 0),
    };
    kind << 32 | code as u64
}

#[inline]
pub(crate) const fn decode(word: u64) -> Option<Result<(), FenceError>> {
    match word >> 32 {
        0 => None,
        1 => Some(Ok(())),
        kind => Some(Err(error(kind, word as u32))),
    }
}

#[cold]
const fn error(kind: u64, code: u32) -> FenceError {
    match kind {
        3 => FenceError::Terminated,
        4 => FenceError::Timeout,
        5 => FenceError::Device(code),
        6 => FenceError::Gone,
        7 => FenceError::Map,
        8 => FenceError::Closed,
        _ => FenceError::Abandoned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_survives_the_word() {
        let results = [
            Ok(()),
            Err(FenceError::Abandoned),
            Err(FenceError::Terminated),
            Err(FenceError::Timeout),
            Err(FenceError::Device(0)),
            Err(FenceError::Device(u32::MAX)),
            Err(FenceError::Gone),
            Err(FenceError::Map),
            Err(FenceError::Closed),
        ];
        for result in results {
            assert_ne!(encode(result), PENDING);
            assert_eq!(decode(encode(result)), Some(result));
        }
        assert_eq!(decode(PENDING), None);
    }

    #[test]
    fn numbers_are_negative_and_apart() {
        let errors = [
            FenceError::Abandoned,
            FenceError::Terminated,
            FenceError::Timeout,
            FenceError::Device(1),
            FenceError::Gone,
            FenceError::Map,
            FenceError::Closed,
        ];
        for (i, a) in errors.iter().enumerate() {
            assert!(a.errno() < 0);
            assert!(errors[i + 1..].iter().all(|b| b.errno() != a.errno()));
        }
    }
}
