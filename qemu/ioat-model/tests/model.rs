//! Random chains of descriptors against a model that is nothing but `memcpy`.

#![forbid(unsafe_code)]

mod rig;

use ioat_model::EngineConfig;
use ioat_spec::{CbVer, Control, Descriptor, State};
use proptest::prelude::*;
use rig::{DATA, Rig};

/// Bytes of the model's memory, at [`DATA`].
const LEN: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
enum Operation {
    Copy {
        src: usize,
        dst: usize,
        len: usize,
    },
    Fill {
        pattern: u64,
        dst: usize,
        len: usize,
    },
    Null,
}

fn operation() -> impl Strategy<Value = Operation> {
    // Lengths from single bytes to several pages; sources in the lower half, destinations in the
    // upper, as overlapping copies have no defined result; fills anywhere.
    let len = prop_oneof![1..16usize, 1..600usize, 4000..4200usize, 1..(LEN / 2)];
    let copy = (len.clone(), any::<(u16, u16)>(), any::<bool>()).prop_map(|(len, at, up)| {
        let room = LEN / 2 - len + 1;
        let (low, high) = (at.0 as usize % room, LEN / 2 + at.1 as usize % room);
        if up {
            Operation::Copy {
                src: low,
                dst: high,
                len,
            }
        } else {
            Operation::Copy {
                src: high,
                dst: low,
                len,
            }
        }
    });
    let fill = (len, any::<u64>(), any::<u16>()).prop_map(|(len, pattern, at)| Operation::Fill {
        pattern,
        dst: at as usize % (LEN - len + 1),
        len,
    });
    prop_oneof![4 => copy, 2 => fill, 1 => Just(Operation::Null)]
}

fn apply(memory: &mut [u8], operation: Operation) {
    match operation {
        Operation::Copy { src, dst, len } => memory.copy_within(src..src + len, dst),
        Operation::Fill { pattern, dst, len } => {
            let bytes = pattern.to_le_bytes().into_iter().cycle();
            memory[dst..dst + len]
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, byte)| *to = byte);
        }
        Operation::Null => {}
    }
}

fn descriptor(operation: Operation) -> Descriptor {
    let control = Control::COMPLETION;
    let at = |offset: usize| DATA + offset as u64;
    match operation {
        Operation::Copy { src, dst, len } => {
            Descriptor::copy(control, len as u32, at(src), at(dst), 0)
        }
        Operation::Fill { pattern, dst, len } => {
            Descriptor::fill(control, len as u32, pattern, at(dst), 0)
        }
        Operation::Null => Descriptor::null(control, 0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// The whole memory agrees after each chain, on whichever channel and version it ran.
    #[test]
    fn chains_do_what_memcpy_does(
        chains in prop::collection::vec(
            (0..4usize, prop::collection::vec(operation(), 1..40)),
            1..4,
        ),
        seed in any::<u64>(),
        old in any::<bool>(),
    ) {
        let rig = Rig::probed(EngineConfig::new(if old { CbVer::V3_2 } else { CbVer::V3_4 }));
        let mut memory: Vec<u8> = (0..LEN as u64)
            .map(|n| (n.wrapping_mul(seed | 1) >> 13) as u8)
            .collect();
        rig.write(DATA, &memory);
        let mut bytes = 0;
        let mut count = 0;
        for (n, chain) in chains {
            let descriptors: Vec<_> = chain.iter().map(|op| descriptor(*op)).collect();
            prop_assert_eq!(rig.run(n, &descriptors), State::Idle);
            for operation in &chain {
                apply(&mut memory, *operation);
                count += 1;
                bytes += match operation {
                    Operation::Copy { len, .. } | Operation::Fill { len, .. } => *len as u64,
                    Operation::Null => 0,
                };
            }
            prop_assert!(rig.bytes(DATA, LEN) == memory, "memory differs");
            prop_assert_eq!(rig.status(n).address(), Rig::slot(n, chain.len() - 1));
        }
        let statistics = rig.engine.statistics();
        prop_assert_eq!((statistics.descriptors, statistics.bytes), (count, bytes));
        prop_assert_eq!(statistics.completions, count);
        prop_assert_eq!(statistics.faults, 0);
    }

    /// Whatever a guest writes into registers and descriptors, the engine answers and can be reset.
    #[test]
    fn nothing_a_guest_writes_stops_the_engine(
        writes in prop::collection::vec((0..0x300u64, any::<u64>(), 0..4u32), 1..60),
        words in prop::collection::vec(any::<u64>(), 64),
        size in any::<u32>(),
    ) {
        let rig = Rig::probed(EngineConfig::new(CbVer::V3_2));
        for (at, word) in words.iter().enumerate() {
            rig.write(Rig::slot(0, 0) + at as u64 * 8, &word.to_le_bytes());
        }
        rig.write(Rig::slot(0, 0), &(size % (1 << 21)).to_le_bytes());
        rig.arm(0);
        rig.ring(0, size as u16);
        for (offset, value, width) in writes {
            rig.engine.bar_write(offset, &value.to_le_bytes()[..1 << width]);
            rig.status(0);
        }
        for n in 0..4 {
            rig.command(n, 0x20);
            prop_assert_eq!(rig.status(n).0, State::Halted as u64);
            rig.w32(ioat_spec::channel::base(n) + ioat_spec::channel::CHANERR, u32::MAX);
            rig.config_write(ioat_spec::pci::CHANERR_INT, u32::MAX);
            rig.w32(ioat_spec::channel::base(n) + ioat_spec::channel::CHANERRMSK, 0);
            let copy = Descriptor::copy(Control::COMPLETION, 64, DATA, DATA + 64, 0);
            prop_assert_eq!(rig.run(n, &[copy]), State::Idle);
        }
    }
}
