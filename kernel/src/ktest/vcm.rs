//! Scattered frames that are one range.

use alloc::format;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use dmaengine::{Capabilities, Channel, Flags, registry};
use hal::dma::{Destination, Memory, Source};
use hal::time::{Duration, poll_until};
use hal::{cpu, task};
use vcm::{Access, Physical};

use super::{Suite, TestResult, Verdict, ensure, tests};
use crate::mm::frames::FRAMES;
use crate::mm::vcm::{context, frames, large_context};
use crate::mm::{CONTIGUOUS, PAGE, direct, paging};

pub(super) static SUITE: Suite = Suite {
    name: "vcm",
    tests: tests![
        scattered_memory_is_one_range_and_comes_back,
        s2_9_what_is_bound_is_seen_on_every_cpu_and_nothing_else,
        absurd_sizes_of_scattered_memory_are_refused,
        an_engine_copies_what_is_scattered,
    ],
};

const LARGE: usize = 2 << 20;

async fn scattered_memory_is_one_range_and_comes_back() -> TestResult {
    for (chunk, vcm, page) in [(PAGE, context(), 0), (LARGE, large_context(), 1)] {
        let vcm = vcm.ok_or("no context")?;
        let before = (FRAMES.lock().used(), vcm.statistics());
        let mut memory = Memory::scattered(3 * LARGE - 5, chunk).map_err(|e| format!("{e}"))?;
        let at = memory.as_ptr() as u64;
        ensure!(CONTIGUOUS.contains(&at), "{at:#x}");
        ensure!(memory.iter().all(|&byte| byte == 0), "not zeroed");
        for (index, byte) in memory.iter_mut().enumerate() {
            *byte = (index / PAGE) as u8 ^ index as u8;
        }
        let pieces: alloc::vec::Vec<_> = memory.extents().collect();
        ensure!(pieces.len() == 3 * LARGE / chunk, "{} pieces", pieces.len());
        let mut index = 0;
        for piece in &pieces {
            // SAFETY: the frames are the memory's, which is not written meanwhile.
            let bytes = unsafe { core::slice::from_raw_parts(direct(piece.phys), piece.len) };
            ensure!(bytes == &memory[index..index + piece.len], "{piece:x?}");
            index += piece.len;
        }
        let follow = |two: &[hal::dma::Extent]| two[0].phys + two[0].len as u64 == two[1].phys;
        ensure!(!pieces.windows(2).any(follow), "neighbours");
        let pages = vcm.statistics().pages[page] - before.1.pages[page];
        ensure!(pages == pieces.len() as u64, "{pages} pages of their size");
        drop(memory);
        ensure!(!paging::is_mapped(at), "still mapped");
        let now = vcm.statistics();
        ensure!(now.taken == before.1.taken && now.withheld == 0, "{now:?}");
        // Tables stay, and the heap may have grown.
        let used = FRAMES.lock().used();
        ensure!(
            used < before.0 + (1 << 20),
            "{} bytes before, {used} after",
            before.0
        );
    }
    Ok(())
}

/// A frame of this byte.
fn frame(byte: u8) -> Option<Physical> {
    let memory = frames(PAGE, PAGE)?;
    for piece in memory.pieces() {
        // SAFETY: fresh frames that nobody else knows.
        unsafe { direct(piece.phys).write_bytes(byte, piece.len) };
    }
    Some(memory)
}

async fn s2_9_what_is_bound_is_seen_on_every_cpu_and_nothing_else() -> TestResult {
    let vcm = context().ok_or("no context")?;
    let reservation = vcm.reserve(PAGE as u64).map_err(|e| format!("{e}"))?;
    for byte in 1..=20 {
        let memory = frame(byte).ok_or("no memory")?;
        let bound = reservation.bind(memory, Access::READ | Access::WRITE);
        bound.map_err(|e| format!("{e}"))?;
        let (seen, wrong) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for cpu in cpu::online() {
            let (reservation, seen, wrong) = (reservation.clone(), seen.clone(), wrong.clone());
            task::spawn_on("vcm", cpu, async move {
                // SAFETY: mapped, for it is bound until all have looked.
                let read = unsafe { (reservation.start() as *const u8).read_volatile() };
                wrong.fetch_add(usize::from(read != byte), Ordering::Relaxed);
                drop(reservation);
                seen.fetch_add(1, Ordering::Release);
            });
        }
        let all = || seen.load(Ordering::Acquire) == cpu::online().count();
        let ended = poll_until(Duration::from_secs(20), Duration::from_millis(1), all).await;
        ensure!(ended.is_ok(), "not all CPUs looked");
        let wrong = wrong.load(Ordering::Relaxed);
        ensure!(wrong == 0, "{wrong} CPUs saw another frame, round {byte}");
        ensure!(reservation.refs() == 1, "{} owners", reservation.refs());
        drop(reservation.unbind().map_err(|e| format!("{e}"))?);
        ensure!(!paging::is_mapped(reservation.start()), "still mapped");
    }
    Ok(())
}

async fn absurd_sizes_of_scattered_memory_are_refused() -> TestResult {
    let before = FRAMES.lock().used();
    for (len, chunk) in [
        (0, PAGE),
        (PAGE, 0),
        (PAGE, 3 * PAGE),
        (PAGE, 64),
        (usize::MAX, PAGE),
        (1 << 46, PAGE),
        (1 << 46, 1 << 46),
        (PAGE, 1 << 63),
    ] {
        ensure!(
            Memory::scattered(len, chunk).is_err(),
            "{len} bytes by {chunk}"
        );
    }
    let used = FRAMES.lock().used();
    ensure!(
        used <= before + (1 << 20),
        "{before} bytes before, {used} after"
    );
    Ok(())
}

async fn an_engine_copies_what_is_scattered() -> Result<(), Verdict> {
    let Ok(channel) = registry().request(Capabilities::MEMCPY).await else {
        return Err(Verdict::Skipped("there is no engine"));
    };
    let copied = copy_scattered(&channel).await;
    channel.release().await;
    Ok(copied?)
}

async fn copy_scattered(channel: &Channel) -> TestResult {
    let scattered = |len, chunk| Memory::scattered(len, chunk).map_err(|e| format!("{e}"));
    let (from, to, len) = (5 * PAGE - 7, 3, 50 * PAGE);
    let mut src = scattered(60 * PAGE, PAGE)?;
    for (index, byte) in src.iter_mut().enumerate() {
        *byte = (index / PAGE) as u8 ^ index as u8;
    }
    let src = Arc::new(src);
    let dst = scattered(60 * PAGE, 4 * PAGE)?;
    let dst = Destination::new(dst, to..to + len).map_err(|_| "no destination")?;
    let source = Source::new(src.clone(), from..from + len).ok_or("no source")?;
    let copy = channel.prep_memcpy(dst, source, Flags::INTERRUPT);
    let copy = copy.map_err(|error| format!("{:?}", error.reason))?;
    let copy = channel
        .submit_wait(copy)
        .await
        .map_err(|error| format!("{error}"))?;
    channel.issue_pending();
    let finished = copy.finish().await;
    finished.result.map_err(|error| format!("{error}"))?;
    let dst = finished
        .buffers
        .ok_or("the buffers are lost")?
        .0
        .into_memory();
    ensure!(
        dst[to..to + len] == src[from..from + len],
        "not what was sent"
    );
    let beside = dst[..to].iter().chain(&dst[to + len..]);
    ensure!(beside.clone().all(|&byte| byte == 0), "written beside");
    Ok(())
}
