//! Where a PCI pin enters the I/O APIC.
//!
//! Firmware tells it in AML (`_PRT`), which this kernel does not interpret (see ARCHITECTURE.md).
//! Known here is Intel's ICH9, the south bridge of QEMU's q35: devices 0 to 24 of its root bus, and
//! what lies behind them, are wired to PIRQE to PIRQH, rotated by device number. Elsewhere a pin
//! has no route, and devices are left to message-signalled interrupts or to polling.

use hal::pci::Address;

/// First I/O APIC input of the PIRQs: PIRQA is 16.
const PIRQ_BASE: u32 = 16;

/// The south bridge's own devices begin here; their routing is programmable.
const ICH9_OWN: u8 = 25;

/// The input for `pin` 0 to 3 (INTA to INTD) of the function at `address`, below `bridges`
/// (nearest first), in a machine with an ICH9. `None` where its route is not known.
pub fn ich9_input(address: Address, pin: u8, bridges: &[Address]) -> Option<u32> {
    let top = bridges.last().unwrap_or(&address);
    if top.segment != 0 || top.bus != 0 || top.device >= ICH9_OWN {
        return None;
    }
    let (device, pin) = to_root(address, pin, bridges);
    Some(PIRQ_BASE + 4 + (u32::from(device) + u32::from(pin)) % 4)
}

/// The pin as which a bridge passes on `pin` of device number `device` behind it: PCI Express
/// Base 2.2.8.1, table 2-20.
fn swizzle(device: u8, pin: u8) -> u8 {
    (device + pin) % 4
}

/// Follows `pin` (0 to 3) of `address` up through the bridges above it, nearest first, to a device
/// on the root bus.
fn to_root(address: Address, pin: u8, bridges: &[Address]) -> (u8, u8) {
    bridges
        .iter()
        .fold((address.device, pin), |(device, pin), bridge| {
            (bridge.device, swizzle(device, pin))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(bus: u8, device: u8) -> Address {
        Address {
            segment: 0,
            bus,
            device,
            function: 0,
        }
    }

    #[test]
    fn pins_rotate_on_their_way_up() {
        assert_eq!(to_root(at(0, 5), 1, &[]), (5, 1));
        assert_eq!(to_root(at(1, 0), 0, &[at(0, 3)]), (3, 0));
        assert_eq!(to_root(at(2, 3), 2, &[at(1, 1), at(0, 4)]), (4, 2));
    }

    #[test]
    fn ich9_spreads_devices_over_four_inputs() {
        let input = |device| ich9_input(at(0, device), 0, &[]).unwrap();
        assert_eq!([0, 1, 2, 3, 4].map(input), [20, 21, 22, 23, 20]);
        assert_eq!(ich9_input(at(1, 0), 0, &[at(0, 3)]), Some(23));
    }

    #[test]
    fn what_is_not_known_has_no_route() {
        assert_eq!(
            ich9_input(at(0, 25), 0, &[]),
            None,
            "the south bridge's own"
        );
        assert_eq!(
            ich9_input(at(0x41, 0), 0, &[at(0x40, 1)]),
            None,
            "another host bridge"
        );
        assert_eq!(
            ich9_input(
                Address {
                    segment: 1,
                    ..at(0, 1)
                },
                0,
                &[]
            ),
            None
        );
    }
}
