//! Per-CPU tables: which public channel a CPU uses for which transaction.
//!
//! Each CPU's table is one cache line that only a rebuild writes, so that finding a channel
//! touches nothing that another CPU's finding writes.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU8, Ordering};

use hal::cpu::MAX_CPUS;

use super::Transaction;
use super::slot::Number;
use crate::capability::Capabilities;

/// One CPU's table: for each transaction a slot, 0 for none. 64 bytes is the cache line of every
/// x86-64 CPU.
#[repr(align(64))]
struct Line([AtomicU8; Transaction::ALL.len()]);

/// The tables of all CPUs. Cloning it gives another handle to the same.
#[derive(Clone)]
pub(crate) struct Tables {
    lines: Arc<[Line; MAX_CPUS]>,
}

impl Tables {
    pub(crate) fn new() -> Self {
        let line = || Line([const { AtomicU8::new(0) }; Transaction::ALL.len()]);
        let lines: Arc<[Line]> = (0..MAX_CPUS).map(|_| line()).collect();
        match lines.try_into() {
            Ok(lines) => Self { lines },
            Err(_) => unreachable!("as many lines as were collected"),
        }
    }

    #[inline(always)]
    pub(crate) fn entry(&self, cpu: usize, transaction: Transaction) -> &AtomicU8 {
        &self.lines[cpu].0[transaction as usize]
    }

    /// Where `cpu`'s table lies.
    pub(crate) fn place(&self, cpu: usize) -> Range<*const AtomicU8> {
        self.lines[cpu].0.as_ptr_range()
    }

    /// The slot that `cpu` uses, if any.
    pub(crate) fn get(&self, cpu: usize, transaction: Transaction) -> Option<Number> {
        Number::new(self.entry(cpu, transaction).load(Ordering::SeqCst))
    }

    /// Writes what has changed. On return every later load sees it.
    pub(crate) fn publish(&self, cpus: &[Cpu], candidates: &[Candidate]) {
        for transaction in Transaction::ALL {
            let capability = transaction.capability();
            let mut groups = groups(candidates, capability);
            for cpu in cpus {
                let slot = choose(&mut groups, cpu).map_or(0, Number::get);
                let entry = self.entry(cpu.number, transaction);
                if entry.load(Ordering::Relaxed) != slot {
                    // Sequentially consistent: the sums that a drain reads come after it.
                    entry.store(slot, Ordering::SeqCst);
                }
            }
        }
    }
}

/// A CPU as the distribution sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    pub(crate) number: usize,
    pub(crate) online: bool,
    /// Its NUMA node, where it is known.
    pub(crate) node: Option<u32>,
}

/// A channel as the distribution sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) slot: Number,
    pub(crate) capabilities: Capabilities,
    /// Its device's NUMA node, where it is known.
    pub(crate) node: Option<u32>,
}

/// Channels of one node, which CPUs get in turn.
struct Group {
    node: Option<u32>,
    /// Each with its place among all candidates.
    members: Vec<(usize, Number)>,
    /// How many CPUs have got one.
    given: usize,
}

impl Group {
    /// How many CPUs use the next one, its place, and its slot.
    fn next(&self) -> (usize, usize, Number) {
        let turn = self.given % self.members.len();
        let (place, slot) = self.members[turn];
        (self.given / self.members.len(), place, slot)
    }
}

/// The candidates that are capable. None of the groups is empty.
fn groups(candidates: &[Candidate], capability: Capabilities) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (place, candidate) in candidates.iter().enumerate() {
        if !candidate.capabilities.contains(capability) {
            continue;
        }
        let node = candidate.node;
        let index = groups.iter().position(|group| group.node == node);
        let index = index.unwrap_or_else(|| {
            groups.push(Group {
                node,
                members: Vec::with_capacity(candidates.len()),
                given: 0,
            });
            groups.len() - 1
        });
        groups[index].members.push((place, candidate.slot));
    }
    groups
}

/// The least used channel for one more CPU, near ones first; the first of several.
fn choose(groups: &mut [Group], cpu: &Cpu) -> Option<Number> {
    if !cpu.online {
        return None;
    }
    // What is unknown is taken for near.
    let far = |node: Option<u32>| node.is_some() && cpu.node.is_some() && node != cpu.node;
    let group = groups
        .iter_mut()
        .min_by_key(|group| (far(group.node), group.next()))?;
    let (_, _, slot) = group.next();
    group.given += 1;
    Some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{align_of, size_of};

    fn cpu(number: usize, node: Option<u32>) -> Cpu {
        Cpu {
            number,
            online: true,
            node,
        }
    }

    fn candidate(slot: u8, capabilities: Capabilities, node: Option<u32>) -> Candidate {
        Candidate {
            slot: Number::new(slot).unwrap(),
            capabilities,
            node,
        }
    }

    fn row(tables: &Tables, cpus: usize, transaction: Transaction) -> Vec<u8> {
        (0..cpus)
            .map(|cpu| tables.entry(cpu, transaction).load(Ordering::SeqCst))
            .collect()
    }

    #[test]
    fn s1_3_each_cpu_reads_a_cache_line_of_its_own() {
        let tables = Tables::new();
        assert_eq!((size_of::<Line>(), align_of::<Line>()), (64, 64));
        let line =
            |cpu, transaction| core::ptr::from_ref(tables.entry(cpu, transaction)).addr() / 64;
        let mut seen = std::collections::HashSet::new();
        for cpu in 0..MAX_CPUS {
            let own = line(cpu, Transaction::Memcpy);
            assert!(
                Transaction::ALL
                    .iter()
                    .all(|&other| line(cpu, other) == own)
            );
            assert!(seen.insert(own), "CPU {cpu} shares its line");
        }
    }

    #[test]
    fn s1_2_channels_are_spread_over_cpus() {
        let tables = Tables::new();
        let both = Capabilities::MEMCPY | Capabilities::XOR;
        let channels = [
            candidate(1, both, None),
            candidate(2, Capabilities::MEMCPY, None),
            candidate(3, both, Some(1)),
        ];
        let mut cpus: Vec<_> = (0..7).map(|number| cpu(number, None)).collect();
        tables.publish(&cpus, &channels);
        assert_eq!(row(&tables, 7, Transaction::Memcpy), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(row(&tables, 7, Transaction::Xor), [1, 3, 1, 3, 1, 3, 1]);
        assert_eq!(row(&tables, 7, Transaction::Pq), [0; 7]);
        cpus[1].online = false;
        tables.publish(&cpus, &channels[..2]);
        assert_eq!(row(&tables, 7, Transaction::Memcpy), [1, 0, 2, 1, 2, 1, 2]);
        tables.publish(&cpus, &[]);
        assert_eq!(row(&tables, 7, Transaction::Memcpy), [0; 7]);
    }

    #[test]
    fn s1_2_near_channels_come_first() {
        let tables = Tables::new();
        let channels = [
            candidate(1, Capabilities::MEMCPY, Some(0)),
            candidate(2, Capabilities::MEMCPY, Some(1)),
            candidate(3, Capabilities::MEMCPY, Some(1)),
        ];
        let node = |node| {
            (0..4)
                .map(|number| cpu(number, Some(node)))
                .collect::<Vec<_>>()
        };
        tables.publish(&node(0), &channels);
        assert_eq!(row(&tables, 4, Transaction::Memcpy), [1, 1, 1, 1]);
        tables.publish(&node(1), &channels);
        assert_eq!(row(&tables, 4, Transaction::Memcpy), [2, 3, 2, 3]);
        tables.publish(&node(2), &channels);
        assert_eq!(
            row(&tables, 4, Transaction::Memcpy),
            [1, 2, 3, 1],
            "far is better than none"
        );
        let nodes = [Some(0), Some(1), None, Some(1), None, Some(0), Some(2)];
        let cpus: Vec<_> = nodes
            .into_iter()
            .enumerate()
            .map(|(number, node)| cpu(number, node))
            .collect();
        tables.publish(&cpus, &channels);
        assert_eq!(
            row(&tables, 7, Transaction::Memcpy),
            [1, 2, 3, 2, 1, 1, 3],
            "the least used of the near ones, or of all where nothing is known"
        );
        let everywhere = candidate(4, Capabilities::MEMCPY, None);
        tables.publish(&node(1), &[channels[0], channels[1], everywhere]);
        assert_eq!(
            row(&tables, 4, Transaction::Memcpy),
            [2, 4, 2, 4],
            "what is near everywhere is near"
        );
    }
}
