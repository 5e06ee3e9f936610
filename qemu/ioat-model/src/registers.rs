//! Register sets: what each bit does when it is read or written is declared, not coded.
//!
//! A [`Register`] gives a place, a reset value and, bit by bit, the attributes. A [`RegisterSet`]
//! applies them to accesses of any width and alignment, as a bus makes them. What happens besides
//! (a doorbell rings, a channel is reset) is the business of whoever owns the set.

/// One register: `width` bytes at `offset`. Bits that no mask names are read-only.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Register {
    pub(crate) offset: usize,
    pub(crate) width: usize,
    pub(crate) reset: u64,
    /// Read and written.
    pub(crate) rw: u64,
    /// Writing 1 clears; writing 0 does nothing.
    pub(crate) w1c: u64,
    /// Writing 0 clears; writing 1 does nothing.
    pub(crate) w0c: u64,
    /// A read returns the bit, and clears it.
    pub(crate) read_clears: u64,
    /// A read returns the bit, and sets it.
    pub(crate) read_sets: u64,
}

/// A register whose bits are all read-only.
pub(crate) const fn ro(offset: usize, width: usize, reset: u64) -> Register {
    Register {
        offset,
        width,
        reset,
        rw: 0,
        w1c: 0,
        w0c: 0,
        read_clears: 0,
        read_sets: 0,
    }
}

/// A register in which the bits of `mask` are read and written.
pub(crate) const fn rw(offset: usize, width: usize, mask: u64) -> Register {
    Register {
        rw: mask,
        ..ro(offset, width, 0)
    }
}

/// A register in which the bits of `mask` are cleared by writing 1.
pub(crate) const fn w1c(offset: usize, width: usize, mask: u64) -> Register {
    Register {
        w1c: mask,
        ..ro(offset, width, 0)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    value: u8,
    reset: u8,
    rw: u8,
    w1c: u8,
    w0c: u8,
    read_clears: u8,
    read_sets: u8,
}

/// A block of registers. Bytes without a register read 0 and ignore writes.
#[derive(Clone, Debug)]
pub(crate) struct RegisterSet {
    cells: Vec<Cell>,
}

impl RegisterSet {
    /// `len` bytes with the registers of `table`, at their reset values.
    ///
    /// # Panics
    /// Where a register leaves the block or overlaps another: a mistake in a table, which any
    /// test that makes an engine finds.
    pub(crate) fn new(len: usize, table: &[Register]) -> Self {
        let mut cells = vec![Cell::default(); len];
        let mut taken = vec![false; len];
        for register in table {
            for byte in 0..register.width {
                let at = register.offset + byte;
                assert!(!taken[at], "two registers at {at:#x}");
                taken[at] = true;
                let part = |bits: u64| (bits >> (8 * byte)) as u8;
                cells[at] = Cell {
                    value: part(register.reset),
                    reset: part(register.reset),
                    rw: part(register.rw),
                    w1c: part(register.w1c),
                    w0c: part(register.w0c),
                    read_clears: part(register.read_clears),
                    read_sets: part(register.read_sets),
                };
            }
        }
        Self { cells }
    }

    /// Bytes of the block.
    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    /// A read by the guest. Bytes outside read 0.
    pub(crate) fn read(&mut self, offset: usize, bytes: &mut [u8]) {
        bytes.fill(0);
        let cells = self.cells.get_mut(offset..).unwrap_or_default();
        for (cell, byte) in cells.iter_mut().zip(bytes) {
            *byte = cell.value;
            cell.value = cell.value & !cell.read_clears | cell.read_sets;
        }
    }

    /// A write by the guest. Bytes outside vanish.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let cells = self.cells.get_mut(offset..).unwrap_or_default();
        for (cell, &byte) in cells.iter_mut().zip(bytes) {
            let kept = cell.value & !cell.rw & !(byte & cell.w1c) & !(!byte & cell.w0c);
            cell.value = kept | byte & cell.rw;
        }
    }

    /// What a register of `width` bytes holds, without the effects of a read.
    pub(crate) fn get(&self, offset: usize, width: usize) -> u64 {
        self.cells[offset..offset + width]
            .iter()
            .rev()
            .fold(0, |value, cell| value << 8 | u64::from(cell.value))
    }

    /// The hardware's own change of a register.
    pub(crate) fn set(&mut self, offset: usize, width: usize, value: u64) {
        let cells = &mut self.cells[offset..offset + width];
        for (cell, byte) in cells.iter_mut().zip(value.to_le_bytes()) {
            cell.value = byte;
        }
    }

    /// Back to the reset value, for the registers that lie in the range.
    pub(crate) fn reset(&mut self, offset: usize, len: usize) {
        for cell in &mut self.cells[offset..offset + len] {
            cell.value = cell.reset;
        }
    }

    /// Back to all reset values.
    pub(crate) fn reset_all(&mut self) {
        self.reset(0, self.cells.len());
    }
}

/// Whether an access of `len` bytes at `offset` covers the byte `at`.
pub(crate) fn covers(offset: usize, len: usize, at: usize) -> bool {
    (offset..offset.saturating_add(len)).contains(&at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> RegisterSet {
        RegisterSet::new(
            16,
            &[
                ro(0, 1, 0x42),
                rw(2, 2, 0x0ff0),
                Register {
                    reset: 0xffff_ffff,
                    ..w1c(4, 4, 0x0000_ffff)
                },
                Register {
                    rw: 1,
                    read_clears: 1,
                    ..ro(8, 1, 0x81)
                },
                Register {
                    w0c: 1,
                    read_sets: 1,
                    ..ro(9, 1, 0)
                },
            ],
        )
    }

    fn read(set: &mut RegisterSet, offset: usize) -> u8 {
        let mut byte = [0];
        set.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn each_bit_obeys_its_attribute() {
        let mut set = set();
        set.write(0, &[0xff; 8]);
        assert_eq!(set.get(0, 2), 0x42, "read-only");
        assert_eq!(set.get(2, 2), 0x0ff0, "writable where the mask says so");
        assert_eq!(set.get(4, 4), 0xffff_0000, "cleared by ones");
        set.write(2, &[0x10, 0]);
        assert_eq!(set.get(2, 2), 0x0010);
    }

    #[test]
    fn reads_clear_and_set() {
        let mut set = set();
        assert_eq!([read(&mut set, 8), read(&mut set, 8)], [0x81, 0x80]);
        assert_eq!([read(&mut set, 9), read(&mut set, 9)], [0, 1]);
        set.write(9, &[1]);
        assert_eq!(set.get(9, 1), 1);
        set.write(9, &[0]);
        assert_eq!(set.get(9, 1), 0);
    }

    #[test]
    fn accesses_beyond_the_end_are_harmless() {
        let mut set = set();
        let mut bytes = [0xee; 8];
        set.read(12, &mut bytes);
        assert_eq!(bytes, [0; 8]);
        set.write(15, &[1, 2, 3]);
        set.write(usize::MAX - 1, &[1]);
        set.reset_all();
        assert_eq!(set.get(4, 4), 0xffff_ffff);
    }
}
