//! Per-CPU tables: which public channel a CPU uses for which transaction.
//!
//! Each CPU's table is one cache line that only a rebuild writes, so that finding a channel
//! touches nothing that another CPU's finding writes.

use alloc::sync::Arc;
use alloc::vec::Vec;
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

    /// The slot that `cpu` uses, if any.
    pub(crate) fn get(&self, cpu: usize, transaction: Transaction) -> Option<Number> {
        Number::new(self.entry(cpu, transaction).load(Ordering::SeqCst))
    }

    /// Writes what has changed. On return every later load sees it.
    pub(crate) fn publish(&self, cpus: &[Cpu], candidates: &[Candidate]) {
        let mut uses = Vec::with_capacity(candidates.len());
        for transaction in Transaction::ALL {
            uses.clear();
            uses.extend(
                candidates
                    .iter()
                    .filter(|candidate| candidate.capabilities.contains(transaction.capability()))
                    .map(|candidate| (candidate, 0u32)),
            );
            for cpu in cpus {
                let slot = choose(&mut uses, cpu).map_or(0, Number::get);
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

/// The least used channel for one more CPU, near ones first; the first of several.
fn choose(uses: &mut [(&Candidate, u32)], cpu: &Cpu) -> Option<Number> {
    if !cpu.online {
        return None;
    }
    // What is unknown is taken for near.
    let far = |node: Option<u32>| node.is_some() && cpu.node.is_some() && node != cpu.node;
    let (candidate, used) = uses
        .iter_mut()
        .min_by_key(|(candidate, used)| (far(candidate.node), *used))?;
    *used += 1;
    Some(candidate.slot)
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
    }
}
