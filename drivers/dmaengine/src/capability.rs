//! What devices can do, and what clients ask of one operation.

use core::fmt;

bitflags::bitflags! {
    /// What a device can do. Linux: enum dma_transaction_type.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Capabilities: u32 {
        /// Copies memory.
        const MEMCPY = 1 << 0;
        /// Fills memory with a byte.
        const MEMSET = 1 << 1;
        /// Writes the exclusive or of several sources.
        const XOR = 1 << 2;
        /// Checks that the exclusive or of several sources is zero.
        const XOR_VAL = 1 << 3;
        /// Computes the two parities of RAID 6.
        const PQ = 1 << 4;
        /// Checks them.
        const PQ_VAL = 1 << 5;
        /// Interrupts without moving data.
        const INTERRUPT = 1 << 6;
        /// Not for everybody: its channels are had by request only.
        const PRIVATE = 1 << 7;
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, _)) in self.iter_names().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            for letter in name.chars() {
                write!(f, "{}", letter.to_ascii_lowercase())?;
            }
        }
        Ok(())
    }
}

bitflags::bitflags! {
    /// What a client asks of one operation. Linux: enum dma_ctrl_flags.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// Its completion interrupts. Without it the client polls; for a client that awaits after
        /// all, one operation more interrupts, behind it in the ring.
        const INTERRUPT = 1 << 0;
        /// Later operations of its channel start after it has completed: they may read what it
        /// writes.
        const FENCE = 1 << 1;
        /// More follows at once: [`AsyncTx`](crate::AsyncTx) leaves it to be issued with what comes
        /// after it on its channel, or by [`Sent::issue`](crate::Sent::issue). So a batch costs one
        /// doorbell.
        const MORE = 1 << 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn capabilities_print_in_lower_case() {
        let caps = Capabilities::MEMCPY | Capabilities::XOR_VAL | Capabilities::INTERRUPT;
        assert_eq!(caps.to_string(), "memcpy,xor_val,interrupt");
        assert_eq!(Capabilities::empty().to_string(), "");
    }
}
