//! Whatever is done with a context, in any order, a model of it agrees.

use alloc::sync::Arc;
use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::fake::{Fake, Frames, K, piece};
use crate::tests::{BOTH, assert_empty};
use crate::{Error, PageSizes, Physical, Request, Reservation, Vcm};

#[derive(Clone, Debug)]
enum Step {
    Reserve { pages: u64, align: u32, guard: bool },
    Clone(usize),
    Bind(usize, u64),
    Unbind(usize),
    Drop(usize),
    Stream(u64),
    Unstream(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u64..20, 0u32..3, any::<bool>())
            .prop_map(|(pages, align, guard)| Step::Reserve { pages, align, guard }),
        1 => any::<usize>().prop_map(Step::Clone),
        3 => (any::<usize>(), 1u64..20).prop_map(|(which, pages)| Step::Bind(which, pages)),
        2 => any::<usize>().prop_map(Step::Unbind),
        2 => any::<usize>().prop_map(Step::Drop),
        2 => (1u64..20).prop_map(Step::Stream),
        1 => any::<usize>().prop_map(Step::Unstream),
    ]
}

/// A reservation, as it should be.
#[derive(Debug)]
struct Known {
    owners: Vec<Reservation>,
    bound: Option<Physical>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 256 }))]
    #[test]
    fn whatever_is_done_each_address_leads_where_it_should(
        steps in prop::collection::vec(step(), 1..if cfg!(miri) { 20 } else { 150 })
    ) {
        let all = 3 * K..100 * K;
        let fake = Fake::new(all.clone(), PageSizes::KIB4);
        let vcm = Vcm::new("model", fake.clone()).unwrap();
        vcm.activate().unwrap();
        let freed = Arc::default();
        let mut known: Vec<Known> = Vec::new();
        let mut streams: Vec<(u64, Physical)> = Vec::new();
        let mut next = 1u64 << 32;
        let mut memory = |pages: u64| {
            let pieces = (0..pages).map(|_| { next += 2 * K; piece(next, K) });
            Physical::new(pieces)
        };
        for step in steps {
            match step {
                Step::Reserve { pages, align, guard } => {
                    let request = Request::new(pages * K).aligned(K << align);
                    let request = if guard { request.guarded() } else { request };
                    match vcm.reserve(request) {
                        Ok(new) => {
                            prop_assert!(new.start().is_multiple_of(K << align));
                            known.push(Known { owners: vec![new], bound: None });
                        }
                        Err(error) => prop_assert_eq!(error, Error::Exhausted),
                    }
                }
                Step::Stream(pages) => {
                    let memory = memory(pages);
                    match vcm.map_streaming(memory.pieces(), BOTH) {
                        Ok(at) => streams.push((at, memory)),
                        Err(error) => prop_assert_eq!(error, Error::Exhausted),
                    }
                }
                Step::Unstream(which) if !streams.is_empty() => {
                    let (at, memory) = streams.swap_remove(which % streams.len());
                    let range = at..at + memory.len();
                    vcm.unmap_streaming(&[range]).unwrap();
                    prop_assert!(memory.pieces().iter().all(|piece| !fake.reaches(*piece)));
                }
                _ if known.is_empty() => {}
                Step::Clone(which) => {
                    let which = which % known.len();
                    let one = &mut known[which];
                    one.owners.push(one.owners[0].clone());
                }
                Step::Bind(which, pages) => {
                    let which = which % known.len();
                    let one = &mut known[which];
                    let memory = memory(pages);
                    let owned = Frames::own(memory.clone(), &fake, &freed);
                    let bound = one.owners[0].bind(owned, BOTH);
                    if one.bound.is_some() {
                        prop_assert_eq!(bound, Err(Error::Bound));
                    } else if memory.len() > one.owners[0].size() {
                        prop_assert_eq!(bound, Err(Error::TooLarge));
                    } else {
                        prop_assert_eq!(bound, Ok(()));
                        one.bound = Some(memory);
                    }
                }
                Step::Unbind(which) => {
                    let which = which % known.len();
                    let one = &mut known[which];
                    let unbound = one.owners.last().unwrap().unbind();
                    match one.bound.take() {
                        Some(memory) => {
                            let back = unbound.unwrap();
                            prop_assert_eq!(back.pieces(), memory.pieces());
                        }
                        None => prop_assert_eq!(unbound.unwrap_err(), Error::NotBound),
                    }
                }
                Step::Drop(which) => {
                    let which = which % known.len();
                    let owners = &mut known[which].owners;
                    drop(owners.swap_remove(which % owners.len()));
                    if owners.is_empty() {
                        known.swap_remove(which);
                    }
                }
                Step::Unstream(_) => {}
            }
            // The model. Looking fills the device's cache everywhere.
            let mut leads = BTreeMap::new();
            let mut ranges: Vec<_> = known.iter().map(|one| one.owners[0].range()).collect();
            let bound = known.iter().filter_map(|one| {
                one.bound.as_ref().map(|memory| (one.owners[0].start(), memory))
            });
            let streaming = streams.iter().map(|(at, memory)| (*at, memory));
            for (at, memory) in bound.chain(streaming) {
                for (n, piece) in memory.pieces().iter().enumerate() {
                    leads.insert(at + n as u64 * K, piece.phys);
                }
            }
            ranges.extend(streams.iter().map(|(at, memory)| *at..at + memory.len()));
            ranges.sort_by_key(|range| range.start);
            prop_assert!(ranges.windows(2).all(|two| two[0].end <= two[1].start));
            prop_assert!(ranges.iter().all(|r| all.start <= r.start && r.end <= all.end));
            for at in all.clone().step_by(K as usize) {
                prop_assert_eq!(fake.read(at), leads.get(&at).copied(), "{:#x}", at);
            }
            let refs: Vec<_> = vcm.reservations().iter().map(|info| info.refs).collect();
            let mut owners: Vec<_> = known.iter().collect();
            owners.sort_by_key(|one| one.owners[0].start());
            prop_assert_eq!(refs, owners.iter().map(|one| one.owners.len()).collect::<Vec<_>>());
            prop_assert_eq!(vcm.statistics().bound, leads.len() as u64 * K);
        }
        for (at, memory) in streams {
            let range = at..at + memory.len();
            vcm.unmap_streaming(&[range]).unwrap();
        }
        drop(known);
        assert_empty(&vcm, &fake);
        drop(vcm.reserve(97 * K).unwrap());
    }
}
