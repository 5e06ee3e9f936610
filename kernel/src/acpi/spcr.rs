//! The port that firmware's own console is on. Serial Port Console Redirection Table, revisions 1
//! to 4; Generic Address Structure: ACPI 6.5, 5.2.3.2.

use super::bytes::{u8_at, u32_at, u64_at};

/// Where a UART's registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registers {
    /// At I/O ports from this one on.
    Ports(u16),
    /// Elsewhere: the address space's number, and the address.
    Elsewhere(u8, u64),
}

/// What the table tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spcr {
    /// The UART, which is a 16550 or one that can be used as such.
    pub registers: Registers,
    /// What its clock is divided by, for the speed that the table names; `None` for what firmware
    /// has set.
    pub divisor: Option<u16>,
    /// The legacy interrupt, where the table names one.
    pub isa: Option<u8>,
}

const SYSTEM_IO: u8 = 1;
/// A PC's UART counts this many times a second, 16 times a bit, unless the table says otherwise.
const CLOCK: u32 = 1_843_200;
/// Interrupt types: bit 0 is an input of the legacy controllers.
const DUAL_8259: u8 = 1;

impl Spcr {
    /// Reads the table's bytes, its header included. `None` where it names no console, or one that
    /// is no 16550: types 0 and 1, and from revision 2 on 0x12, the 16550 whose registers are as
    /// the address says.
    pub fn parse(table: &[u8]) -> Option<Self> {
        let revision = u8_at(table, 8)?;
        let known = match u8_at(table, 36)? {
            0 | 1 => true,
            0x12 => revision >= 2,
            _ => false,
        };
        let (space, address) = (u8_at(table, 40)?, u64_at(table, 44)?);
        if !known || address == 0 {
            return None;
        }
        let port = u16::try_from(address).ok().filter(|_| space == SYSTEM_IO);
        let irq = u8_at(table, 53).filter(|irq| (1..16).contains(irq));
        let precise = u32_at(table, 80).filter(|&rate| revision >= 4 && rate != 0);
        let clock = u32_at(table, 76).filter(|&clock| revision >= 3 && clock != 0);
        let rate = precise.or(named_rate(u8_at(table, 58)?));
        Some(Self {
            registers: port.map_or(Registers::Elsewhere(space, address), Registers::Ports),
            divisor: rate.and_then(|rate| divisor(clock.unwrap_or(CLOCK), rate)),
            isa: irq.filter(|_| u8_at(table, 52).is_some_and(|kind| kind & DUAL_8259 != 0)),
        })
    }
}

/// The rates that have a number of their own.
fn named_rate(code: u8) -> Option<u32> {
    match code {
        3 => Some(9600),
        4 => Some(19200),
        6 => Some(57600),
        7 => Some(115_200),
        _ => None,
    }
}

/// The divisor that comes closest to a rate, where that is within 3 %: a receiver that samples in
/// the middle of ten bits bears not much more.
fn divisor(clock: u32, rate: u32) -> Option<u16> {
    let (clock, bit) = (u64::from(clock), 16 * u64::from(rate));
    let divisor = (clock + bit / 2) / bit;
    let is_near = (divisor * bit).abs_diff(clock) * 33 <= clock;
    u16::try_from(divisor)
        .ok()
        .filter(|&divisor| divisor != 0 && is_near)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// A table of revision 2 for the UART at `address`.
    fn table(space: u8, address: u64, code: u8) -> Vec<u8> {
        let mut table = alloc::vec![0; 88];
        table[8] = 2;
        table[40] = space;
        table[44..52].copy_from_slice(&address.to_le_bytes());
        table[52] = DUAL_8259;
        table[53] = 3;
        table[58] = code;
        table
    }

    #[test]
    fn every_rate_with_a_number_is_known() {
        let divisor = |code| Spcr::parse(&table(1, 0x2f8, code)).unwrap().divisor;
        assert_eq!(
            [0, 3, 4, 6, 7, 5, 255].map(divisor),
            [None, Some(12), Some(6), Some(2), Some(1), None, None]
        );
    }

    #[test]
    fn a_precise_rate_counts_from_revision_4_on() {
        let mut bytes = table(1, 0x3f8, 7);
        let mut precise = |revision, rate: u32| {
            bytes[8] = revision;
            bytes[80..84].copy_from_slice(&rate.to_le_bytes());
            Spcr::parse(&bytes).unwrap().divisor
        };
        assert_eq!(precise(3, 38_400), Some(1));
        assert_eq!(precise(4, 38_400), Some(3));
        assert_eq!(precise(4, 0), Some(1));
        assert_eq!(precise(4, 16_457), Some(7), "0.01 % off");
        assert_eq!(precise(4, 100_000), None, "15 % off");
        assert_eq!(
            [precise(4, 1), precise(4, u32::MAX)],
            [None; 2],
            "no such divisor"
        );
        bytes.truncate(80);
        assert_eq!(Spcr::parse(&bytes).unwrap().divisor, Some(1));
    }

    #[test]
    fn a_clock_of_its_own_counts_from_revision_3_on() {
        let mut bytes = table(1, 0x3f8, 7);
        bytes[76..80].copy_from_slice(&14_745_600u32.to_le_bytes());
        assert_eq!(Spcr::parse(&bytes).unwrap().divisor, Some(1));
        bytes[8] = 3;
        assert_eq!(Spcr::parse(&bytes).unwrap().divisor, Some(8));
    }

    #[test]
    fn ports_are_told_from_other_registers() {
        let registers = |space, address| Spcr::parse(&table(space, address, 0)).unwrap().registers;
        assert_eq!(registers(1, 0x2f8), Registers::Ports(0x2f8));
        assert_eq!(registers(1, 0x1_0000), Registers::Elsewhere(1, 0x1_0000));
        assert_eq!(
            registers(0, 0xfe03_0000),
            Registers::Elsewhere(0, 0xfe03_0000)
        );
    }

    #[test]
    fn consoles_that_are_none_are_left_out() {
        assert_eq!(Spcr::parse(&table(1, 0, 7)), None, "redirection is off");
        let kind = |revision, kind| {
            let mut bytes = table(1, 0x3f8, 7);
            (bytes[8], bytes[36]) = (revision, kind);
            Spcr::parse(&bytes).is_some()
        };
        assert!(kind(1, 0) && kind(1, 1) && kind(2, 0x12));
        assert!(!kind(1, 0x12) && !kind(2, 3), "no 16550");
    }

    #[test]
    fn interrupts_are_legacy_ones_or_none() {
        assert_eq!(Spcr::parse(&table(1, 0x2f8, 0)).unwrap().isa, Some(3));
        for (kind, irq) in [(2, 3), (1, 0), (1, 16), (0, 4)] {
            let mut bytes = table(1, 0x2f8, 0);
            (bytes[52], bytes[53]) = (kind, irq);
            assert_eq!(Spcr::parse(&bytes).unwrap().isa, None, "{kind} {irq}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, cut in 0usize..100) {
            Spcr::parse(&bytes);
            let whole = table(1, 0x3f8, 7);
            let cut = Spcr::parse(&whole[..cut.min(whole.len())]);
            proptest::prop_assert!(cut.is_none() || cut == Spcr::parse(&whole));
        }
    }
}
