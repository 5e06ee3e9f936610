//! Commands that show shared buffers, their fences, and who reserves them.

use alloc::string::String;

use dma_buf::{DmaBuf, buffers, manager};

use super::{CommandResult, no_arguments};

pub(super) fn dmabuf(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    let buffers = buffers();
    for buf in &buffers {
        crate::println!("dmabuf: {buf}");
    }
    let bytes: usize = buffers.iter().map(DmaBuf::len).sum();
    crate::println!("dmabuf: buffers={} bytes={bytes}", buffers.len());
    Ok(())
}

pub(super) fn fences(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    let mut count = 0;
    for buf in buffers() {
        for (fence, usage) in buf.resv().fences() {
            count += 1;
            let number = buf.resv().number();
            crate::println!("fence: {fence} {usage}={number}");
        }
    }
    let all = crate::mm::heap::fences();
    crate::println!("fences: in buffers={count} all={all}");
    Ok(())
}

pub(super) fn resv(args: &[String]) -> CommandResult {
    no_arguments(args)?;
    for ticket in manager().outstanding() {
        crate::println!("{ticket}");
    }
    let statistics = manager().statistics();
    crate::println!(
        "resv: outstanding={} tickets={} retries={} most={}",
        statistics.outstanding,
        statistics.tickets,
        statistics.retries,
        statistics.most_retries
    );
    Ok(())
}
