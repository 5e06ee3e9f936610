//! The command that shows what confines devices.

use alloc::string::String;

use super::{CommandResult, no_arguments};
use crate::iommu;

pub(super) fn iommu(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    if !iommu::is_on() {
        crate::println!("iommu: off");
        return Ok(());
    }
    for (number, unit) in iommu::units().enumerate() {
        let state = match (unit.failed(), unit.is_enabled()) {
            (true, _) => "failed",
            (false, true) => "on",
            (false, false) => "off",
        };
        crate::println!(
            "unit{number} segment={} {state} domains={} interrupts={} {}",
            unit.segment(),
            unit.domains(),
            unit.interrupts(),
            unit.capabilities()
        );
    }
    let all = iommu::all();
    for confined in &all {
        let domain = confined.domain();
        let [small, medium, large] = domain.pages();
        let state = if domain.is_revoked() {
            "revoked"
        } else {
            "live"
        };
        let (range, mappings) = match confined.context() {
            Some(context) => {
                let statistics = context.statistics();
                (context.range(), statistics.maps - statistics.unmaps)
            }
            None => (0..0, 0),
        };
        crate::println!(
            "domain {} {} {state} range={:#x}-{:#x} mappings={mappings} pages=4K:{small} 2M:{medium} \
             1G:{large} tables={} faults={}",
            domain.id(),
            domain.device(),
            range.start,
            range.end,
            domain.tables(),
            iommu::reporter().count(domain.device())
        );
    }
    for (count, last) in iommu::reporter().devices() {
        crate::println!("fault: {} count={count} last: {last}", last.device);
    }
    let (total, lost) = {
        let reporter = iommu::reporter();
        (reporter.total(), reporter.lost())
    };
    crate::println!(
        "iommu: units={} domains={} pages={} faults={total} overflows={lost}",
        iommu::units().count(),
        all.len(),
        iommu::reachable()
    );
    Ok(())
}
