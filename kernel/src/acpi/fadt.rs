//! Fixed hardware: power management timer, power-off, reset. ACPI 6.5, 5.2.9 and 7.4.2.

use super::bytes::{u8_at, u16_at, u32_at, u64_at};

/// What the table tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fadt {
    /// Physical address of the DSDT.
    pub dsdt: u64,
    /// Port of the power management timer.
    pub pm_timer: Option<u16>,
    /// Ports of the PM1a and PM1b control registers.
    pub pm1_control: [Option<u16>; 2],
    /// Whether there is certainly no keyboard controller of a PC: IAPC_BOOT_ARCH, which
    /// revisions before 3 do not have.
    pub no_keyboard: bool,
    /// Port to which to write [`Fadt::reset_value`] for a reset.
    pub reset_port: Option<u16>,
    /// See [`Fadt::reset_port`].
    pub reset_value: u8,
}

const RESET_SUPPORTED: u32 = 1 << 10;
const SYSTEM_IO: u8 = 1;
const KEYBOARD: u16 = 1 << 1;

impl Fadt {
    /// Reads the table's bytes, its header included; what is missing is absent.
    pub fn parse(table: &[u8]) -> Self {
        let port = |offset| {
            let value = u32_at(table, offset).unwrap_or(0);
            u16::try_from(value).ok().filter(|&port| port != 0)
        };
        let flags = u32_at(table, 112).unwrap_or(0);
        let dsdt = u64_at(table, 140).filter(|&address| address != 0);
        let reset = (flags & RESET_SUPPORTED != 0 && u8_at(table, 116) == Some(SYSTEM_IO))
            .then(|| u64_at(table, 120).and_then(|address| u16::try_from(address).ok()))
            .flatten()
            .filter(|&port| port != 0);
        Self {
            dsdt: dsdt.unwrap_or_else(|| u32_at(table, 40).unwrap_or(0).into()),
            pm_timer: port(76),
            pm1_control: [port(64), port(68)],
            no_keyboard: u8_at(table, 8).is_some_and(|revision| revision >= 3)
                && u16_at(table, 109).is_some_and(|arch| arch & KEYBOARD == 0),
            reset_port: reset,
            reset_value: u8_at(table, 128).unwrap_or(0),
        }
    }
}

/// The two sleep types of state S5, found in the AML of `dsdt` without interpreting it: firmware
/// states them as a package of constants, `Name (_S5_, Package () {a, b, …})`. ACPI 6.5, 20.2.
pub fn s5_sleep_types(dsdt: &[u8]) -> Option<(u8, u8)> {
    const NAME_OP: u8 = 0x08;
    const PACKAGE_OP: u8 = 0x12;
    let at = dsdt
        .windows(6)
        .position(|w| w[..4] == *b"_S5_" && w[4] == PACKAGE_OP)?;
    let named = at.checked_sub(1).and_then(|before| u8_at(dsdt, before));
    let rooted = at.checked_sub(2).and_then(|before| u8_at(dsdt, before));
    if named != Some(NAME_OP) && !(named == Some(b'\\') && rooted == Some(NAME_OP)) {
        return None;
    }
    let length_bytes = usize::from(u8_at(dsdt, at + 5)? >> 6) + 1;
    // The package's length, then its number of elements.
    let mut next = at + 5 + length_bytes + 1;
    let mut constant = || {
        let value = match u8_at(dsdt, next)? {
            zero_or_one @ (0 | 1) => zero_or_one,
            0x0a => {
                next += 1;
                u8_at(dsdt, next)?
            }
            0x0b => {
                next += 2;
                u16_at(dsdt, next - 1)? as u8
            }
            _ => return None,
        };
        next += 1;
        Some(value)
    };
    Some((constant()?, constant()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_says() {
        let mut table = alloc::vec![0; 276];
        table[40..44].copy_from_slice(&0x1000u32.to_le_bytes());
        table[64..68].copy_from_slice(&0x604u32.to_le_bytes());
        table[76..80].copy_from_slice(&0x608u32.to_le_bytes());
        table[112..116].copy_from_slice(&RESET_SUPPORTED.to_le_bytes());
        table[116] = SYSTEM_IO;
        table[120..122].copy_from_slice(&0xcf9u16.to_le_bytes());
        table[128] = 0xf;
        let fadt = Fadt::parse(&table);
        assert_eq!((fadt.dsdt, fadt.pm_timer), (0x1000, Some(0x608)));
        assert_eq!(fadt.pm1_control, [Some(0x604), None]);
        assert_eq!((fadt.reset_port, fadt.reset_value), (Some(0xcf9), 0xf));
        assert_eq!(Fadt::parse(&table[..60]).pm1_control, [None, None]);
        let mut no_keyboard = |revision, arch| {
            (table[8], table[109]) = (revision, arch);
            Fadt::parse(&table).no_keyboard
        };
        assert!(!no_keyboard(1, 0) && !no_keyboard(3, 2) && no_keyboard(3, 1));
    }

    #[test]
    fn sleep_types_are_found() {
        let short = b"xx\x08_S5_\x12\x06\x04\x00\x00\x00\x00";
        assert_eq!(s5_sleep_types(short), Some((0, 0)));
        let bytes = b"\x08\\_S5_\x12\x0a\x04\x0a\x05\x0a\x07\x00\x00";
        assert_eq!(s5_sleep_types(bytes), Some((5, 7)));
        assert_eq!(
            s5_sleep_types(b"_S5_\x12\x06\x04\x00\x00"),
            None,
            "not named"
        );
        assert_eq!(
            s5_sleep_types(b"\x08_S5_\x12\x06\x04\x0a"),
            None,
            "cut short"
        );
        assert_eq!(s5_sleep_types(b""), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: alloc::vec::Vec<u8>) {
            Fadt::parse(&bytes);
            let mut named = b"\x08_S5_\x12".to_vec();
            named.extend(bytes);
            s5_sleep_types(&named);
        }
    }
}
