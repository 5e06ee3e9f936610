//! An engine that strays through what is mapped for it, under the real driver, which maps for each
//! transfer and takes it back: nothing is hit.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dmaengine::{Channel, Finished, Flags};
use hal::dma::{Destination, Memory, Source};
use hal::host::{self, block_on};
use ioat::Options;
use ioat_model::{Aim, EngineConfig, Fault, Stray, StrayCount, Way};

use crate::rig::Rig;

const COUNT: u64 = 10_000;
const LEN: usize = 3000;

fn filled(byte: u8) -> Memory {
    let mut memory = Memory::new(LEN).unwrap();
    memory.fill(byte);
    memory
}

/// One copy between new buffers.
fn copy(channel: &Channel, byte: u8) {
    let src = Source::new(Arc::new(filled(byte)), 0..LEN).unwrap();
    let dst = Destination::new(filled(!byte), 0..LEN).unwrap();
    let prepared = channel.prep_memcpy(dst, src, Flags::INTERRUPT).unwrap();
    let submitted = channel.submit(prepared).unwrap();
    channel.issue_pending();
    let Finished { buffers, result } = block_on(submitted.finish());
    assert_eq!(result, Ok(()));
    let (dst, _) = buffers.unwrap();
    assert!(dst.into_memory().iter().all(|&found| found == byte));
}

/// An engine that strays from its tenth copy on, and what became of it.
fn strays(aim: Aim) -> StrayCount {
    let stray = Stray {
        from: 10,
        aim,
        way: Way::Mapped,
        count: COUNT,
        pause_us: 0,
    };
    let rig = Rig::new(EngineConfig {
        faults: vec![Fault::Stray(stray)],
        ..EngineConfig::default()
    });
    rig.tricks.confines.store(true, Ordering::Relaxed);
    // What the machine has, as it is announced before anybody confines an engine.
    let arena = host::ARENA_PHYS..host::ARENA_PHYS + host::ARENA_LEN as u64;
    rig.engine.announce(arena.clone());
    rig.engine.withdraw(arena);
    let driven = rig.probe(Options::default());
    let guards: Vec<_> = (0..32).map(|_| filled(0x5a)).collect();
    let channel = block_on(driven.chan(0).request()).unwrap();
    for byte in 0..200 {
        copy(&channel, byte);
    }
    block_on(channel.release());
    let engine = driven.rig.engine.clone();
    driven.remove();
    let begun = Instant::now();
    while engine.strays()[0].attempted < COUNT {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{aim}: few strays"
        );
        std::thread::yield_now();
    }
    assert!(
        guards
            .iter()
            .all(|guard| guard.iter().all(|&byte| byte == 0x5a))
    );
    engine.strays()[0]
}

#[test]
fn strays_through_what_is_mapped_hit_nothing() {
    for aim in [
        Aim::Unmapped,
        Aim::Edge,
        Aim::Raw,
        Aim::Completed,
        Aim::Removed,
        Aim::Interrupt,
    ] {
        let count = strays(aim);
        assert_eq!((count.refused, count.landed), (COUNT, 0), "{aim}");
    }
}
