//! What is wanted of a reservation.

/// A reservation as it is asked for: so many bytes, anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub(crate) size: u64,
    pub(crate) align: Option<u64>,
    pub(crate) at: Option<u64>,
    pub(crate) guard: bool,
}

impl Request {
    /// `size` bytes, rounded up to whole pages. Aligned so that the largest pages fit, if that can be.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            align: None,
            at: None,
            guard: false,
        }
    }

    /// Aligned to `align`, a power of two.
    pub fn aligned(mut self, align: u64) -> Self {
        self.align = Some(align);
        self
    }

    /// At this address and no other.
    pub fn at(mut self, at: u64) -> Self {
        self.at = Some(at);
        self
    }

    /// With a page behind it that nobody gets: who runs over the end meets nothing.
    pub fn guarded(mut self) -> Self {
        self.guard = true;
        self
    }
}

impl From<u64> for Request {
    fn from(size: u64) -> Self {
        Self::new(size)
    }
}
