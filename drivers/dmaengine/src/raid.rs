//! Exclusive ors, the parities of RAID 6, and their checks.
//!
//! Each of the four types is a kind of operation and its buffers at once. They travel in a box, so
//! that the other kinds stay small; a client that prepares the box that came back from its last
//! operation allocates nothing.

use alloc::boxed::Box;

use hal::dma::{Destination, Source};
use smallvec::SmallVec;

use crate::capability::Capabilities;
use crate::gf::{self, Block};
use crate::operation::Record;
use crate::prep::PrepReason;
use crate::shape::{Shape, dst, src};
use crate::work::{Kind, Work, sealed::Sealed};

/// Blocks whose list needs no allocation of its own.
const INLINE: usize = 8;

/// Blocks that are read. The same may be there twice.
pub type Sources = SmallVec<[Source; INLINE]>;

/// Blocks that are read, each with its coefficient for Q; see [`gf::coefficient`].
pub type Weighted = SmallVec<[(Source, u8); INLINE]>;

bitflags::bitflags! {
    /// Which parities a check found wrong. Linux: enum sum_check_flags.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SumCheck: u8 {
        /// P, the exclusive or.
        const P = 1 << 0;
        /// Q.
        const Q = 1 << 1;
    }
}

/// Writes the exclusive or of two or more sources to `dst`.
#[derive(Debug)]
pub struct Xor {
    /// Where to.
    pub dst: Destination,
    /// Of what.
    pub srcs: Sources,
}

/// Checks that the exclusive or of two or more sources is zero.
#[derive(Debug)]
pub struct XorVal {
    /// Of what.
    pub srcs: Sources,
    /// Empty, or [`SumCheck::P`]. `None` until the check was made.
    pub found: Option<SumCheck>,
}

/// Computes the two parities of RAID 6 over one or more sources, or one of them.
#[derive(Debug)]
pub struct Pq {
    /// Where P goes. Linux leaves it out by DMA_PREP_PQ_DISABLE_P.
    pub p: Option<Destination>,
    /// Where Q goes. Linux leaves it out by DMA_PREP_PQ_DISABLE_Q.
    pub q: Option<Destination>,
    /// Of what.
    pub srcs: Weighted,
}

/// Checks the two parities of RAID 6 over one or more sources, or one of them.
#[derive(Debug)]
pub struct PqVal {
    /// The P that should be.
    pub p: Option<Source>,
    /// The Q that should be.
    pub q: Option<Source>,
    /// Of what.
    pub srcs: Weighted,
    /// Which are wrong. `None` until the check was made.
    pub found: Option<SumCheck>,
}

impl XorVal {
    /// A check that is to be made.
    pub fn new(srcs: Sources) -> Self {
        Self { srcs, found: None }
    }
}

/// Refuses a list with less than `least` sources.
fn enough(sources: usize, least: usize) -> Result<usize, PrepReason> {
    match sources >= least {
        true => Ok(sources),
        false => Err(PrepReason::TooFewSources { least }),
    }
}

/// What the CPU reads for an exclusive or, which has no coefficients.
fn plain(srcs: &[Source]) -> SmallVec<[Block<'_>; INLINE]> {
    srcs.iter().map(|src| (src.bytes(), 0)).collect()
}

fn weighted(srcs: &[(Source, u8)]) -> SmallVec<[Block<'_>; INLINE]> {
    srcs.iter().map(|(src, by)| (src.bytes(), *by)).collect()
}

impl Xor {
    pub(crate) fn shape(&self) -> Result<Shape, PrepReason> {
        let sources = enough(self.srcs.len(), 2)?;
        let buffers = self.srcs.iter().map(src).chain([dst(&self.dst)]);
        Shape::new(Self::CAPABILITY, sources, buffers)
    }

    pub(crate) fn run(&mut self) {
        let Self { dst, srcs } = self;
        let len = dst.len();
        let to = dst.bytes_mut();
        for (at, p, _) in gf::parities(&plain(srcs), len) {
            gf::store(to, at, p);
        }
    }
}

impl XorVal {
    pub(crate) fn shape(&self) -> Result<Shape, PrepReason> {
        let sources = enough(self.srcs.len(), 2)?;
        Shape::new(Self::CAPABILITY, sources, self.srcs.iter().map(src))
    }

    pub(crate) fn run(&mut self) {
        let len = self.srcs.first().map_or(0, Source::len);
        let wrong = gf::parities(&plain(&self.srcs), len).any(|(_, p, _)| p != 0);
        let mut found = SumCheck::empty();
        found.set(SumCheck::P, wrong);
        self.found = Some(found);
    }
}

impl Pq {
    pub(crate) fn shape(&self) -> Result<Shape, PrepReason> {
        let sources = enough(self.srcs.len(), 1)?;
        let parities = self.p.iter().chain(&self.q).map(dst);
        if parities.clone().next().is_none() {
            return Err(PrepReason::NoParity);
        }
        let buffers = self.srcs.iter().map(|(source, _)| src(source));
        Shape::new(Self::CAPABILITY, sources, buffers.chain(parities))
    }

    pub(crate) fn run(&mut self) {
        let Self { p, q, srcs } = self;
        let len = srcs.first().map_or(0, |(source, _)| source.len());
        let mut to_p = p.as_mut().map(Destination::bytes_mut);
        let mut to_q = q.as_mut().map(Destination::bytes_mut);
        for (at, p, q) in gf::parities(&weighted(srcs), len) {
            if let Some(to) = &mut to_p {
                gf::store(to, at, p);
            }
            if let Some(to) = &mut to_q {
                gf::store(to, at, q);
            }
        }
    }
}

impl PqVal {
    pub(crate) fn shape(&self) -> Result<Shape, PrepReason> {
        let sources = enough(self.srcs.len(), 1)?;
        let parities = self.p.iter().chain(&self.q).map(src);
        if parities.clone().next().is_none() {
            return Err(PrepReason::NoParity);
        }
        let buffers = self.srcs.iter().map(|(source, _)| src(source));
        Shape::new(Self::CAPABILITY, sources, buffers.chain(parities))
    }

    pub(crate) fn run(&mut self) {
        let len = self.srcs.first().map_or(0, |(source, _)| source.len());
        let differs = |parity: &Option<Source>, at, is| {
            let should = parity.as_ref().map(|parity| gf::load(parity.bytes(), at));
            should.is_some_and(|should| should != is)
        };
        let mut found = SumCheck::empty();
        for (at, p, q) in gf::parities(&weighted(&self.srcs), len) {
            found.set(
                SumCheck::P,
                found.contains(SumCheck::P) || differs(&self.p, at, p),
            );
            found.set(
                SumCheck::Q,
                found.contains(SumCheck::Q) || differs(&self.q, at, q),
            );
        }
        self.found = Some(found);
    }
}

macro_rules! kind {
    ($kind:ident, $capability:ident) => {
        impl Kind for $kind {
            type Buffers = Box<Self>;
            const CAPABILITY: Capabilities = Capabilities::$capability;
        }

        impl Sealed for $kind {
            fn unwrap(record: Box<Record>) -> Option<Box<Self>> {
                match record.work {
                    Work::$kind(buffers) => Some(buffers),
                    _ => None,
                }
            }
        }
    };
}

kind!(Xor, XOR);
kind!(XorVal, XOR_VAL);
kind!(Pq, PQ);
kind!(PqVal, PQ_VAL);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gf::{coefficient, invert, multiply};
    use crate::mock::{self, Mock};
    use crate::{Channel, Descriptor, DeviceInfo, Finished, Flags, PrepError, Registry};
    use hal::dma::Memory;
    use hal::host::block_on;
    use hal::time::Duration;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::vec::Vec;

    /// Off the alignment of words: nobody may rely on it.
    const OFFSET: usize = 3;

    fn source(bytes: &[u8]) -> Source {
        let mut memory = Memory::new(OFFSET + bytes.len()).unwrap();
        memory[OFFSET..].copy_from_slice(bytes);
        Source::new(Arc::new(memory), OFFSET..OFFSET + bytes.len()).unwrap()
    }

    fn room(len: usize) -> Destination {
        Destination::new(Memory::new(len + 2 * OFFSET).unwrap(), OFFSET..len + OFFSET).unwrap()
    }

    /// What was written, with nothing before and behind it.
    fn written(dst: Destination) -> Vec<u8> {
        let len = dst.len();
        let memory = dst.into_memory();
        let (before, rest) = memory.split_at(OFFSET);
        let (inside, behind) = rest.split_at(len);
        assert!(before.iter().chain(behind).all(|&byte| byte == 0));
        inside.to_vec()
    }

    fn done<K: Kind + core::fmt::Debug>(
        channel: &Channel,
        descriptor: Result<Descriptor<K>, PrepError<K>>,
    ) -> K::Buffers {
        let submitted = channel.submit(descriptor.unwrap()).unwrap();
        channel.issue_pending();
        let Finished { buffers, result } = block_on(submitted.finish());
        assert_eq!(result, Ok(()));
        buffers.unwrap()
    }

    fn cpu() -> Channel {
        block_on(Registry::new().cpu().share()).unwrap()
    }

    fn with_coefficients(data: &[Vec<u8>]) -> Weighted {
        let weighted = |(i, bytes): (usize, &Vec<u8>)| (source(bytes), coefficient(i));
        data.iter().enumerate().map(weighted).collect()
    }

    fn xor(channel: &Channel, srcs: Sources) -> Vec<u8> {
        let dst = room(srcs[0].len());
        written(done(channel, channel.prep_xor(Xor { dst, srcs }, Flags::empty())).dst)
    }

    /// Q alone: any linear combination.
    fn combine(channel: &Channel, srcs: Weighted) -> Vec<u8> {
        let q = Some(room(srcs[0].0.len()));
        let pq = channel.prep_pq(Pq { p: None, q, srcs }, Flags::empty());
        written(done(channel, pq).q.unwrap())
    }

    fn parities(channel: &Channel, data: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
        let (p, q) = (Some(room(data[0].len())), Some(room(data[0].len())));
        let srcs = with_coefficients(data);
        let pq = done(channel, channel.prep_pq(Pq { p, q, srcs }, Flags::empty()));
        (written(pq.p.unwrap()), written(pq.q.unwrap()))
    }

    /// Two to twenty blocks, equally long.
    fn blocks() -> impl Strategy<Value = Vec<Vec<u8>>> {
        (2usize..20, 1usize..70).prop_flat_map(|(blocks, len)| {
            let block = prop::collection::vec(any::<u8>(), len);
            prop::collection::vec(block, blocks)
        })
    }

    proptest! {
        #[test]
        fn parities_are_those_of_the_definition(data in blocks()) {
            let channel = cpu();
            let (p, q) = parities(&channel, &data);
            for at in 0..data[0].len() {
                let column = || data.iter().map(|block| block[at]).enumerate();
                prop_assert_eq!(p[at], column().fold(0, |p, (_, byte)| p ^ byte));
                let add = |q, (i, byte)| q ^ multiply(coefficient(i), byte);
                prop_assert_eq!(q[at], column().fold(0, add));
            }
            let srcs = data.iter().map(|bytes| source(bytes)).collect();
            prop_assert_eq!(xor(&channel, srcs), p);
        }

        /// With g the coefficients, x < y the lost blocks, and P', Q' the parities of the rest:
        /// Dx = (g^(y-x) (P + P') + g^-x (Q + Q')) / (g^(y-x) + 1), and Dy = P + P' + Dx.
        #[test]
        fn two_lost_blocks_come_back(data in blocks(), x in any::<prop::sample::Index>(),
            y in any::<prop::sample::Index>())
        {
            let (x, y) = (x.index(data.len()), y.index(data.len()));
            prop_assume!(x < y);
            let channel = cpu();
            let (p, q) = parities(&channel, &data);
            let apart = coefficient(y - x);
            let divisor = invert(apart ^ 1).unwrap();
            let of_p = multiply(apart, divisor);
            let of_q = multiply(invert(coefficient(x)).unwrap(), divisor);
            let rest = || (0..data.len()).filter(|&i| i != x && i != y);
            let of_rest = |i: usize| (source(&data[i]), of_p ^ multiply(of_q, coefficient(i)));
            let parities = [(source(&p), of_p), (source(&q), of_q)];
            let dx = combine(&channel, parities.into_iter().chain(rest().map(of_rest)).collect());
            prop_assert_eq!(&dx, &data[x]);
            let others = [source(&p), source(&dx)].into_iter();
            let dy = xor(&channel, others.chain(rest().map(|i| source(&data[i]))).collect());
            prop_assert_eq!(&dy, &data[y]);
        }

        #[test]
        fn checks_find_what_is_wrong(data in blocks(), at in any::<prop::sample::Index>(),
            flip in 0u8.., wrong in 0u8..4)
        {
            let channel = cpu();
            let wrong = SumCheck::from_bits_truncate(wrong);
            let (mut p, mut q) = parities(&channel, &data);
            let at = at.index(p.len());
            let flip = flip.max(1);
            if wrong.contains(SumCheck::P) {
                p[at] ^= flip;
            }
            if wrong.contains(SumCheck::Q) {
                q[at] ^= flip;
            }
            let check = |p, q| PqVal { p, q, srcs: with_coefficients(&data), found: None };
            let found = |check| done(&channel, channel.prep_pq_val(check, Flags::empty())).found;
            prop_assert_eq!(found(check(Some(source(&p)), Some(source(&q)))), Some(wrong));
            prop_assert_eq!(found(check(Some(source(&p)), None)), Some(wrong & SumCheck::P));
            prop_assert_eq!(found(check(None, Some(source(&q)))), Some(wrong & SumCheck::Q));
            let srcs = data.iter().chain([&p]).map(|bytes| source(bytes)).collect();
            let xor = done(&channel, channel.prep_xor_val(XorVal::new(srcs), Flags::empty()));
            prop_assert_eq!(xor.found, Some(wrong & SumCheck::P));
        }
    }

    #[test]
    fn a_source_may_be_there_twice() {
        let channel = cpu();
        let twice = source(&[0x5a; 100]);
        assert_eq!(
            xor(&channel, Sources::from_elem(twice.clone(), 2)),
            [0; 100]
        );
        let three = Sources::from_elem(twice, 3);
        assert_eq!(xor(&channel, three), [0x5a; 100]);
        assert_eq!(channel.counters().parities, 2);
        assert_eq!(channel.counters().bytes, 200);
    }

    #[test]
    fn the_box_is_used_again() {
        let channel = cpu();
        let srcs = [source(&[1; 10]), source(&[2; 10])].into_iter().collect();
        let first = done(
            &channel,
            channel.prep_xor(
                Xor {
                    dst: room(10),
                    srcs,
                },
                Flags::empty(),
            ),
        );
        let place: *const Xor = &*first;
        let again = done(&channel, channel.prep_xor(first, Flags::empty()));
        assert!(core::ptr::eq(place, &*again));
        assert!(!again.srcs.spilled());
        assert_eq!(written(again.dst), [3; 10]);
    }

    #[test]
    fn other_kinds_stay_small() {
        assert!(size_of::<Work>() <= size_of::<(Destination, Source)>() + size_of::<usize>());
    }

    fn raid_info() -> DeviceInfo {
        DeviceInfo {
            capabilities: Capabilities::XOR | Capabilities::PQ_VAL,
            max_xor: 3,
            max_pq: 3,
            ..mock::info()
        }
    }

    #[test]
    fn what_a_device_leaves_is_done_elsewhere() {
        let registry = Registry::new();
        let stuck = registry
            .register(raid_info(), std::vec![Mock::new(4)])
            .unwrap();
        let narrow = DeviceInfo {
            max_xor: 2,
            ..raid_info()
        };
        registry
            .register(narrow, std::vec![Mock::eager(4)])
            .unwrap();
        let channel = block_on(stuck.channels().next().unwrap().request()).unwrap();
        let of = |n| Sources::from_elem(source(&[9; 64]), n);
        let prepare = |n| {
            channel.prep_xor(
                Xor {
                    dst: room(64),
                    srcs: of(n),
                },
                Flags::empty(),
            )
        };
        let two = channel.submit(prepare(2).unwrap()).unwrap();
        let three = channel.submit(prepare(3).unwrap()).unwrap();
        let srcs = with_coefficients(&[[7; 64].to_vec()]);
        let (p, q) = (Some(source(&[7; 64])), Some(source(&[8; 64])));
        let check = PqVal {
            p,
            q,
            srcs,
            found: None,
        };
        let check = channel.prep_pq_val(check, Flags::empty()).unwrap();
        let check = channel.submit(check).unwrap();
        let removal = block_on(registry.unregister(&stuck, Duration::from_millis(5)));
        assert_eq!(
            (removal.failed_over, removal.by_cpu, removal.lost),
            (2, 1, 0),
            "three sources are too many for the other engine"
        );
        let two = block_on(two.finish()).buffers.unwrap();
        let three = block_on(three.finish()).buffers.unwrap();
        assert_eq!(
            (written(two.dst), written(three.dst)),
            ([0; 64].to_vec(), [9; 64].to_vec())
        );
        let found = block_on(check.finish()).buffers.unwrap().found;
        assert_eq!(found, Some(SumCheck::Q));
    }
}
