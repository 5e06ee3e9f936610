//! The command that shows reservations of contiguous addresses, and makes some to try.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dmaengine::{Capabilities, Channel, Flags, SubmitReason, registry};
use hal::dma::{Destination, MapError, Memory, PAGE, Source};
use hal::time::Instant;
use litemap::LiteMap;
use spin::Mutex;
use vcm::{Access, Error, Reservation, WeakReservation};

use super::CommandResult;
use crate::mm::vcm::{context, frames, large_context};

/// A reservation that was made here, and its owners.
struct Tried {
    weak: WeakReservation,
    owners: Vec<Reservation>,
}

static TRIED: Mutex<LiteMap<u32, Tried>> = Mutex::new(LiteMap::new());

pub(super) async fn vcm(args: Vec<String>) -> CommandResult {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        [] => list(),
        ["new", size] => new(bytes(size)?),
        ["ref", number] => another(number),
        ["bind", number] => bind(number, PAGE),
        ["bind", number, chunk] => bind(number, bytes(chunk)? as usize),
        ["unbind", number] => unbind(number),
        ["unreserve", number] => unreserve(number),
        ["copy", size, chunk] => copy(bytes(size)? as usize, bytes(chunk)? as usize).await,
        _ => Err("see `help vcm`".into()),
    }
}

/// A number of bytes, as `8192`, `8K`, `2M` or `1G`.
fn bytes(word: &str) -> Result<u64, String> {
    let (digits, shift) = match word.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if word.ends_with('K') => (digits, 10),
        Some(digits) if word.ends_with('M') => (digits, 20),
        Some(digits) => (digits, 30),
        None => (word, 0),
    };
    let number = digits.parse::<u64>().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| format!("{word:?} is no size"))
}

fn list() -> CommandResult {
    for context in vcm::contexts() {
        for info in context.reservations() {
            crate::println!(
                "vcm: {}:{:#x} size={} bound={} refs={}",
                context.name(),
                info.range.start,
                info.range.end - info.range.start,
                info.bound,
                info.refs
            );
        }
        let now = context.statistics();
        let [small, medium, large] = now.pages;
        crate::println!(
            "vcm: context {} active={} reservations={} taken={} bound={} maps={} unmaps={} \
             4k={small} 2m={medium} 1g={large} withheld={}",
            context.name(),
            now.active,
            now.reservations,
            now.taken,
            now.bound,
            now.maps,
            now.unmaps,
            now.withheld
        );
    }
    Ok(())
}

fn new(size: u64) -> CommandResult {
    let context = context().ok_or("no context")?;
    let reservation = context.reserve(size).map_err(told)?;
    let mut tried = TRIED.lock();
    let number = tried.keys().next_back().map_or(1, |last| last + 1);
    say(number, &reservation);
    let weak = reservation.downgrade();
    let owners = alloc::vec![reservation];
    tried.insert(number, Tried { weak, owners });
    Ok(())
}

fn another(number: &str) -> CommandResult {
    with(number, |number, tried| {
        let owner = tried.weak.upgrade().map_err(told)?;
        say(number, &owner);
        tried.owners.push(owner);
        Ok(())
    })
}

fn bind(number: &str, chunk: usize) -> CommandResult {
    with(number, |number, tried| {
        let owner = tried.weak.upgrade().map_err(told)?;
        let memory = frames(owner.size() as usize, chunk).ok_or("no such memory")?;
        let pieces = memory.pieces().len();
        owner
            .bind(memory, Access::READ | Access::WRITE)
            .map_err(told)?;
        crate::println!("vcm: {number} bound={} pieces={pieces}", owner.bound());
        Ok(())
    })
}

fn unbind(number: &str) -> CommandResult {
    with(number, |number, tried| {
        let owner = tried.weak.upgrade().map_err(told)?;
        let memory = owner.unbind().map_err(told)?;
        crate::println!("vcm: {number} unbound={}", memory.len());
        Ok(())
    })
}

fn unreserve(number: &str) -> CommandResult {
    with(number, |number, tried| {
        let owner = tried.owners.pop().ok_or_else(|| told(Error::Unreserved))?;
        drop(owner);
        crate::println!("vcm: {number} refs={}", tried.weak.refs());
        Ok(())
    })
}

/// What the contexts of devices have mapped so far: how often, and pages of 4 KiB and of 2 MiB.
fn mapped() -> [u64; 3] {
    let cpus = [context(), large_context()].map(|cpu| cpu.map(|cpu| cpu.id()));
    let contexts = vcm::contexts();
    let devices = contexts
        .iter()
        .filter(|vcm| !cpus.contains(&Some(vcm.id())));
    devices.fold([0; 3], |[maps, small, medium], vcm| {
        let now = vcm.statistics();
        [maps + now.maps, small + now.pages[0], medium + now.pages[1]]
    })
}

/// Has one engine copy `size` bytes between buffers that are scattered in chunks: as one range where a
/// unit makes them one, else as so many pieces, and in as many operations as its ring needs for them.
async fn copy(size: usize, chunk: usize) -> CommandResult {
    let scattered = || Memory::scattered(size, chunk).map_err(|error| format!("{error}"));
    let mut src = scattered()?;
    for (index, word) in src.chunks_mut(8).enumerate() {
        let noise = (index as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_le_bytes();
        word.copy_from_slice(&noise[..word.len()]);
    }
    let src = Arc::new(src);
    let channel = registry().request(Capabilities::MEMCPY).await;
    let channel = channel.map_err(|error| format!("{error}"))?;
    let name = alloc::string::ToString::to_string(&channel.name());
    let before = mapped();
    let mut part = size;
    let copied = loop {
        let Ok(dst) = scattered() else {
            break Err(SubmitReason::Map(MapError::Exhausted));
        };
        let start = Instant::now();
        match copy_parts(&channel, dst, &src, part).await {
            Err(SubmitReason::TooLarge) if part > chunk => part = (part / 2).max(chunk),
            copied => break copied.map(|memory| (memory, start.elapsed())),
        }
    };
    channel.release().await;
    let (copied, elapsed) = copied.map_err(|reason| format!("{reason}"))?;
    let now = mapped();
    // Devices that left meanwhile have taken their counts with them.
    let [maps, small, medium] =
        core::array::from_fn(|which| now[which].saturating_sub(before[which]));
    crate::println!(
        "vcm: copy {name} bytes={size} chunk={chunk} pieces={} operations={} maps={maps} \
         4k={small} 2m={medium} us={}",
        src.extents().count(),
        size.div_ceil(part),
        elapsed.as_micros()
    );
    if copied[..] == src[..] {
        Ok(())
    } else {
        Err("what arrived is not what was sent".into())
    }
}

/// Copies in operations of `part` bytes, one after the other.
async fn copy_parts(
    channel: &Channel,
    mut memory: Memory,
    src: &Arc<Memory>,
    part: usize,
) -> Result<Memory, SubmitReason> {
    for start in (0..src.len()).step_by(part) {
        let range = start..src.len().min(start + part);
        let dst = Destination::new(memory, range.clone()).map_err(|_| SubmitReason::Gone)?;
        let source = Source::new(src.clone(), range).ok_or(SubmitReason::Gone)?;
        let copy = channel.prep_memcpy(dst, source, Flags::INTERRUPT);
        let copy = copy.map_err(|_| SubmitReason::Unsupported)?;
        let copy = channel
            .submit_wait(copy)
            .await
            .map_err(|refused| refused.reason)?;
        channel.issue_pending();
        let (dst, _) = copy.finish().await.buffers.ok_or(SubmitReason::Gone)?;
        memory = dst.into_memory();
    }
    Ok(memory)
}

fn with(number: &str, run: impl FnOnce(u32, &mut Tried) -> CommandResult) -> CommandResult {
    let number = number
        .parse()
        .map_err(|_| format!("{number:?} is no number"))?;
    let mut tried = TRIED.lock();
    let tried = tried.get_mut(&number).ok_or("no such reservation")?;
    run(number, tried)
}

fn say(number: u32, reservation: &Reservation) {
    crate::println!(
        "vcm: {number} at {:#x} size={} refs={}",
        reservation.start(),
        reservation.size(),
        reservation.refs()
    );
}

fn told(error: Error) -> String {
    format!("{error} ({})", error.errno())
}
