//! What a bank of a CPU's machine-check registers says. Intel SDM volume 3, 16.3.2 and 16.9; AMD64
//! APM volume 2, 9.3. The CPU's side is in `arch`.

use core::fmt;

/// A bank that holds an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Which of the CPU's banks.
    pub bank: u32,
    /// Its status.
    pub status: u64,
    /// The address that it names.
    pub address: u64,
    /// What else it says.
    pub misc: u64,
}

const VALID: u64 = 1 << 63;
const OVERFLOW: u64 = 1 << 62;
const UNCORRECTED: u64 = 1 << 61;
const HAS_MISC: u64 = 1 << 59;
const HAS_ADDRESS: u64 = 1 << 58;
const CORRUPT: u64 = 1 << 57;

impl Error {
    /// Reads bank `bank`, whose registers `read` gives: status, address and misc are 1, 2 and 3. What
    /// the status does not announce is not read. `None` where there is no error.
    pub fn read(bank: u32, read: impl Fn(u32) -> u64) -> Option<Self> {
        let status = read(1);
        let announced = |bit, register| if status & bit != 0 { read(register) } else { 0 };
        (status & VALID != 0).then(|| Self {
            bank,
            status,
            address: announced(HAS_ADDRESS, 2),
            misc: announced(HAS_MISC, 3),
        })
    }

    /// The kind of error, by the compound codes that all CPUs share.
    fn kind(&self) -> &'static str {
        let code = self.status & 0xefff; // but for the bit that says how corrected ones are filtered
        match code {
            _ if code & 0xf800 == 0x0800 => "bus or interconnect",
            _ if code & 0xff00 == 0x0100 => "cache",
            _ if code & 0xff80 == 0x0080 => "memory controller",
            _ if code & 0xfff0 == 0x0010 => "TLB",
            _ if code & 0xfffc == 0x000c => "cache",
            _ => "internal or other",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.status {
            status if status & CORRUPT != 0 => "uncorrected, state corrupt",
            status if status & UNCORRECTED != 0 => "uncorrected",
            _ => "corrected",
        };
        let (bank, kind, status) = (self.bank, self.kind(), self.status);
        write!(
            f,
            "bank {bank}: {severity}: {kind}, code {:#06x}",
            status & 0xffff
        )?;
        if status & HAS_ADDRESS != 0 {
            write!(f, ", address {:#x}", self.address)?;
        }
        if status & HAS_MISC != 0 {
            write!(f, ", misc {:#x}", self.misc)?;
        }
        if status & OVERFLOW != 0 {
            f.write_str(", others lost")?;
        }
        write!(f, ", status {status:#018x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn error(status: u64) -> Option<Error> {
        Error::read(4, |register| {
            [0, status, 0x1234_5000, 0x86][register as usize]
        })
    }

    #[test]
    fn a_bank_without_an_error_says_nothing() {
        assert_eq!(error(!VALID), None);
    }

    #[test]
    fn only_what_is_announced_is_read() {
        let read = |register| match register {
            1 => VALID | 0x0136,
            _ => panic!("register {register} may not exist"),
        };
        let text = Error::read(0, read).unwrap().to_string();
        let expected = "bank 0: corrected: cache, code 0x0136, status 0x8000000000000136";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_line_tells_all() {
        let status = VALID | OVERFLOW | UNCORRECTED | HAS_MISC | HAS_ADDRESS | CORRUPT | 0x009f;
        let text = error(status).unwrap().to_string();
        let expected = "bank 4: uncorrected, state corrupt: memory controller, code 0x009f, \
                        address 0x12345000, misc 0x86, others lost, status 0xee0000000000009f";
        assert_eq!(text, expected);
    }

    #[test]
    fn kinds_are_those_of_the_manual() {
        let kind = |code: u64| error(VALID | code).unwrap().kind();
        let kinds = [
            0x0e0b, 0x1800, 0x0136, 0x1136, 0x009f, 0x0015, 0x000e, 0x0001, 0x0400,
        ];
        let expected = [
            "bus or interconnect",
            "bus or interconnect",
            "cache",
            "cache",
            "memory controller",
            "TLB",
            "cache",
            "internal or other",
            "internal or other",
        ];
        assert_eq!(kinds.map(kind), expected);
    }
}
