//! Free memory filled with what tells its place, to see whether somebody writes there.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hal::dma::Memory;
use hal::task::yield_now;
use spin::Mutex;

use super::CommandResult;
use crate::mm::{PAGE, frames};

/// Memory that nobody else has until it has been checked.
static GUARDED: Mutex<Vec<Memory>> = Mutex::new(Vec::new());

/// What is taken, in this order, while there is any.
const BLOCKS: [usize; 3] = [4 << 20, 64 << 10, PAGE];
/// What is left for others.
const LEFT: u64 = 32 << 20;
/// Places that are named.
const NAMED: usize = 8;

pub(super) async fn guard(args: Vec<String>) -> CommandResult {
    match &args[..] {
        [what] if what == "fill" => fill().await,
        [what] if what == "check" => check().await,
        _ => Err("wants fill or check".into()),
    }
}

/// What stands at a physical address.
fn mark(phys: u64) -> [u8; 8] {
    (phys ^ u64::from_le_bytes(*b"guarded!")).to_le_bytes()
}

async fn fill() -> CommandResult {
    if !GUARDED.lock().is_empty() {
        return Err("free memory is guarded already".into());
    }
    let free = || {
        let frames = frames::FRAMES.lock();
        frames.total() - frames.used()
    };
    for len in BLOCKS {
        while free() >= LEFT + len as u64 {
            let Ok(mut block) = Memory::new(len) else {
                break;
            };
            let start = block.extent().phys;
            for (word, at) in block.chunks_exact_mut(8).zip((start..).step_by(8)) {
                word.copy_from_slice(&mark(at));
            }
            GUARDED.lock().push(block);
            yield_now().await;
        }
    }
    crate::println!("guard: pages={}", pages(&GUARDED.lock()));
    Ok(())
}

async fn check() -> CommandResult {
    let blocks = core::mem::take(&mut *GUARDED.lock());
    if blocks.is_empty() {
        return Err("no memory is guarded".into());
    }
    let pages = pages(&blocks);
    let mut damaged = 0;
    for block in blocks {
        let start = block.extent().phys;
        for (word, at) in block.chunks_exact(8).zip((start..).step_by(8)) {
            if word != mark(at) {
                damaged += 1;
                if damaged <= NAMED {
                    crate::println!("guard: {at:#x} holds {word:02x?}");
                }
            }
        }
        yield_now().await;
    }
    crate::println!("guard: pages={pages} damaged={damaged}");
    match damaged {
        0 => Ok(()),
        _ => Err(format!("{damaged} words are not as they were")),
    }
}

fn pages(blocks: &[Memory]) -> usize {
    blocks.iter().map(|block| block.len() / PAGE).sum()
}
