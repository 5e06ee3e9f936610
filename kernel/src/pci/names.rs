//! Names for what people meet: a few classes, and the devices of the machines we run on.

use hal::pci::Identity;

/// A function's class in words. PCI Code and ID Assignment 1.16.
pub fn class(class: u32) -> &'static str {
    match class >> 8 {
        0x0100..=0x01ff => "storage controller",
        0x0200..=0x02ff => "network controller",
        0x0300..=0x03ff => "display controller",
        0x0600 => "host bridge",
        0x0601 => "ISA bridge",
        0x0604 => "PCI bridge",
        0x0680 => "bridge",
        0x0801 => "DMA controller",
        0x0880 => "system peripheral",
        0x0c03 => "USB controller",
        0x0c05 => "SMBus",
        _ => "device",
    }
}

/// A device's name, where it is known. I/OAT engines are named by their driver's table.
pub fn device(id: &Identity) -> Option<&'static str> {
    Some(match (id.vendor, id.device) {
        (0x8086, 0x29c0) => "82G33/Q35 host bridge",
        (0x8086, 0x2918) => "82801IB (ICH9) LPC interface",
        (0x8086, 0x2922) => "82801IR (ICH9R) SATA controller",
        (0x8086, 0x2930) => "82801I (ICH9) SMBus controller",
        (0x8086, 0x10d3) => "82574L network controller",
        (0x8086, 0x1237) => "440FX host bridge",
        (0x8086, 0x7000) => "82371SB (PIIX3) ISA bridge",
        // Older than what `ioat` drives (Linux `pci_ids.h`).
        (0x8086, 0x1a38 | 0x360b | 0x65ff | 0x402f | 0x3429..=0x342c | 0x3430..=0x3433) => {
            "QuickData before 3.2"
        }
        (0x1b36, 0x000c) => "QEMU PCIe root port",
        (0x1b36, 0x000e) => "QEMU PCIe-to-PCI bridge",
        (0x104c, 0x8232) => "XIO3130 switch, upstream",
        (0x104c, 0x8233) => "XIO3130 switch, downstream",
        (0x1234, 0x1111) => "QEMU display",
        (0x1234, 0x11e8) => "QEMU edu device",
        _ => return ioat::matches(id),
    })
}
