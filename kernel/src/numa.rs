//! Which NUMA node is what on, by ACPI's SRAT. Nodes are ACPI's proximity domains. What the table
//! does not name is on no known node; for a PCI function that is the rule (see [`of_function`]).

use hal::pci::Address;

use crate::acpi::tables::platform;
use crate::arch::x86_64::percpu;

/// The node of a CPU.
pub fn of_cpu(cpu: usize) -> Option<u32> {
    platform().srat.cpu(percpu::get(cpu)?.apic_id())
}

/// The node of a PCI function: where the firmware describes it as a generic initiator. Else it
/// would say so by _PXM of the bridge above, in AML, which this kernel does not interpret.
pub fn of_function(address: Address) -> Option<u32> {
    platform().srat.function(address)
}
