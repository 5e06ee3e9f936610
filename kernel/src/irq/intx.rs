//! Where a PCI pin enters the I/O APIC.
//!
//! Firmware tells it in AML (`_PRT`), which this kernel does not interpret (see ARCHITECTURE.md).
//! Known here is Intel's ICH9, the south bridge of QEMU's q35, by its datasheet: devices 25 to 31
//! by the interrupt route registers of the root complex (10.1), all others by PIRQE to PIRQH
//! rotated by device number, as its firmware wires them. Elsewhere a pin has no route, and
//! devices are left to message-signalled interrupts or to polling.

use hal::pci::Address;

/// First I/O APIC input of the PIRQs: PIRQA is 16.
const PIRQ_BASE: u32 = 16;

/// The input for pin 0 to 3 (INTA to INTD) of a device on the root bus of an ICH9.
pub fn ich9_input(device: u8, pin: u8) -> u32 {
    PIRQ_BASE + 4 + (u32::from(device) + u32::from(pin)) % 4
}

/// The pin as which a bridge passes on `pin` of device number `device` behind it: PCI Express
/// Base 2.2.8.1, table 2-20.
pub fn swizzle(device: u8, pin: u8) -> u8 {
    (device + pin) % 4
}

/// Follows `pin` (0 to 3) of `address` up through the bridges above it, nearest first, to a device
/// on the root bus.
pub fn to_root(address: Address, pin: u8, bridges: &[Address]) -> (u8, u8) {
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
        let inputs: alloc::vec::Vec<_> = (0..5).map(|device| ich9_input(device, 0)).collect();
        assert_eq!(inputs, [20, 21, 22, 23, 20]);
    }
}
