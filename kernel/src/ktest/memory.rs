//! Frames, addresses, page rights.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use hal::dma::Memory;

use super::{Suite, TestResult, ensure, tests};
use crate::mm::frames::FRAMES;
use crate::mm::paging::{self, Access};
use crate::mm::stack::{GUARD, Stack};
use crate::mm::virt::PhysicalMapping;
use crate::mm::{PAGE, direct};

pub(super) static SUITE: Suite = Suite {
    name: "memory",
    tests: tests![
        no_page_is_writable_and_executable,
        buffers_come_back,
        buffers_keep_to_their_limit,
        buffers_lie_above_4_gib_where_there_is_memory,
        mappings_show_the_memory_and_go,
        stacks_have_a_guard_page,
        absurd_sizes_are_refused,
        small_blocks_stay_whole_and_change_cpus,
    ],
};

async fn no_page_is_writable_and_executable() -> TestResult {
    let mut seen = 0;
    let mut both = Vec::new();
    paging::for_each_page(|virt, writable, executable| {
        seen += 1;
        if writable && executable {
            both.push(virt);
        }
    });
    ensure!(seen > 100, "only {seen} pages found");
    ensure!(both.is_empty(), "writable and executable: {both:#x?}");
    Ok(())
}

async fn buffers_come_back() -> TestResult {
    let before = FRAMES.lock().used();
    let buffers: Vec<_> = (0..32)
        .map_while(|n| Memory::new(PAGE << (n % 8)).ok())
        .collect();
    ensure!(buffers.len() == 32, "only {} buffers", buffers.len());
    ensure!(FRAMES.lock().used() > before, "nothing was taken");
    drop(buffers);
    let after = FRAMES.lock().used();
    // The list of the test itself may have made the heap grow.
    ensure!(
        after <= before + (256 << 10),
        "{before} bytes in use before, {after} after"
    );
    Ok(())
}

async fn buffers_keep_to_their_limit() -> TestResult {
    for limit in [1 << 28, 1 << 32] {
        let memory = Memory::with(3 * PAGE, 64 << 10, limit).map_err(|e| alloc::format!("{e}"))?;
        let extent = memory.extent();
        ensure!(
            extent.phys + extent.len as u64 <= limit,
            "{extent:x?} above {limit:#x}"
        );
        ensure!(
            extent.phys.is_multiple_of(64 << 10),
            "{extent:x?} is not aligned"
        );
    }
    Ok(())
}

async fn buffers_lie_above_4_gib_where_there_is_memory() -> TestResult {
    if FRAMES.lock().total() < 5 << 30 {
        crate::machine_line!("  # SKIP less than 5 GiB of memory");
        return Ok(());
    }
    let memory = Memory::new(1 << 20).map_err(|e| alloc::format!("{e}"))?;
    ensure!(memory.extent().phys >= 1 << 32, "{memory:?}");
    Ok(())
}

async fn mappings_show_the_memory_and_go() -> TestResult {
    let mut memory = Memory::new(2 * PAGE).map_err(|e| alloc::format!("{e}"))?;
    memory.fill(0xa5);
    let at = memory.extent().phys + 5;
    let mapping =
        PhysicalMapping::new(at, PAGE, Access::Read).map_err(|e| alloc::format!("{e:?}"))?;
    let virt = mapping.addr();
    // SAFETY: just mapped for a page's length.
    let byte = unsafe { (virt as *const u8).add(PAGE - 1).read_volatile() };
    ensure!(byte == 0xa5, "{byte:#x} at the mapping's end");
    drop(mapping);
    ensure!(!paging::is_mapped(virt), "still mapped at {virt:#x}");
    Ok(())
}

async fn stacks_have_a_guard_page() -> TestResult {
    let stack = Stack::new().ok_or("no memory")?;
    let bottom = stack.bottom();
    ensure!(paging::is_mapped(bottom), "the stack is not mapped");
    ensure!(
        !paging::is_mapped(bottom - GUARD),
        "the guard page is mapped"
    );
    ensure!(!paging::is_mapped(bottom - 1), "the guard page is mapped");
    let here = direct(0) as u64;
    ensure!(!paging::is_mapped(here), "page 0 is mapped");
    // Its memory stays taken: stacks are for good.
    stack.leak();
    Ok(())
}

async fn absurd_sizes_are_refused() -> TestResult {
    for len in [0, usize::MAX, 1 << 46] {
        ensure!(Memory::new(len).is_err(), "{len} bytes were handed out");
    }
    let mapped = PhysicalMapping::new(u64::MAX - 5, 100, Access::Read);
    ensure!(mapped.is_err(), "mapped beyond the address space");
    Ok(())
}

/// Boxes of every class and beyond, each full of a value of its own, made on one CPU and freed on
/// another, three times over, so that blocks come back from where they were freed.
async fn small_blocks_stay_whole_and_change_cpus() -> TestResult {
    for round in 0..3 {
        for cpu in hal::cpu::online() {
            let blocks: Vec<Vec<u8>> = (0..200).map(|n| alloc::vec![n as u8; n * 7 + 1]).collect();
            let aligned: Vec<_> = (0..50).map(|n| Box::new(Line([n; 64]))).collect();
            let places: BTreeSet<usize> =
                blocks.iter().map(|block| block.as_ptr() as usize).collect();
            ensure!(places.len() == 200, "round {round}: a block twice");
            let whole = crate::task::spawn("test", Some(cpu), async move {
                let lines = aligned.iter().enumerate();
                blocks
                    .iter()
                    .enumerate()
                    .all(|(n, block)| block.iter().all(|&byte| byte == n as u8))
                    && lines.into_iter().all(|(n, line)| {
                        (&raw const **line as usize).is_multiple_of(64) && line.0 == [n as u8; 64]
                    })
            });
            ensure!(
                whole.await,
                "round {round}, CPU {cpu}: a block was overwritten"
            );
        }
    }
    Ok(())
}

#[repr(align(64))]
struct Line([u8; 64]);
