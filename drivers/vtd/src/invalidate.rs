//! Having a unit forget what it remembers of tables. Section 6.5.
//!
//! By the queue where there is one, by registers otherwise; either way the caller waits until it is
//! done, so that what was unmapped is out of reach on return. One at a time: who holds the lock
//! waits at most [`ANSWER_LIMIT`] for the unit, and after one that did not answer nobody does.

use core::ops::Range;
use core::sync::atomic::Ordering;

use hal::dma::{Coherent, DmaSpace};
use hal::mmio::MmioRegion;

use crate::capabilities::{Capabilities, Features};
use crate::error::Error;
use crate::registers::{ccmd, fsts, gcmd, iotlb, qi, reg};
use crate::tables::{PAGE, Stale};
use crate::unit::{command, within};

/// Entries of the queue: one page of them.
const QUEUE: usize = PAGE as usize / qi::BYTES;
/// Where in the queue's memory a wait descriptor leaves its word: behind the entries.
const STATUS: usize = PAGE as usize;
/// Ranges that are more than so many invalidations by page are invalidated with their whole domain.
const SELECTIVE_MAX: usize = 16;

/// What is to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forget {
    /// All context entries.
    Contexts,
    /// That of one device, remembered for one domain.
    Context { domain: u16, source: u16 },
    /// All translations.
    Translations,
    /// Those of one domain.
    Domain(u16),
    /// `1 << mask` pages of a domain from `iova` on, which is aligned so.
    Pages {
        domain: u16,
        iova: u64,
        mask: u8,
        leaves_only: bool,
    },
    /// All interrupt entries, or one.
    Interrupts(Option<u16>),
}

/// How a unit is told.
pub(crate) struct Invalidator {
    registers: MmioRegion,
    capabilities: Capabilities,
    queue: Option<Queue>,
    failed: bool,
}

struct Queue {
    memory: Coherent,
    tail: usize,
    /// What the last wait descriptor wrote.
    sequence: u32,
    snooped: bool,
}

impl Invalidator {
    /// Turns the queue on where there is one.
    pub(crate) fn new(
        registers: &MmioRegion,
        capabilities: &Capabilities,
        memory: &DmaSpace,
    ) -> Result<Self, Error> {
        let mut queue = None;
        if capabilities.has(Features::QUEUE) {
            let memory = memory.coherent(2 * PAGE as usize, PAGE as usize)?;
            // What an earlier owner has left in the error bits stops the queue: 6.5.2.8.
            registers.write32(reg::FSTS, fsts::QUEUE_ERRORS);
            registers.write64(reg::IQT, 0);
            registers.write64(reg::IQA, memory.addr().bits());
            command(registers, gcmd::QIE, true, "the invalidation queue")?;
            queue = Some(Queue {
                memory,
                tail: 0,
                sequence: 0,
                snooped: capabilities.has(Features::COHERENT),
            });
        }
        Ok(Self {
            registers: registers.clone(),
            capabilities: *capabilities,
            queue,
            failed: false,
        })
    }

    /// Has everything in `wanted` forgotten, in order; on `Ok` it is.
    pub(crate) fn forget(&mut self, wanted: &[Forget]) -> Result<(), Error> {
        if self.failed {
            return Err(Error::Failed);
        }
        let result = self.forget_all(wanted);
        self.failed = result.is_err();
        result
    }

    fn forget_all(&mut self, wanted: &[Forget]) -> Result<(), Error> {
        if self.capabilities.has(Features::WRITE_BUFFER) {
            flush_writes(&self.registers)?;
        }
        match &mut self.queue {
            Some(queue) => wanted
                .chunks(QUEUE - 2)
                .try_for_each(|some| queue.submit(&self.registers, &self.capabilities, some)),
            None => wanted.iter().try_for_each(|&one| self.by_register(one)),
        }
    }

    /// Has what is stale in `domain` forgotten: page by page, or where that is too much, the domain.
    pub(crate) fn forget_stale(&mut self, domain: u16, stale: &Stale) -> Result<(), Error> {
        let mut wanted = alloc::vec::Vec::new();
        for range in &stale.ranges {
            let pages = Pages {
                domain,
                left: range.clone(),
                largest_mask: self.capabilities.largest_mask,
                leaves_only: !stale.tables_changed,
            };
            wanted.extend(pages.take(SELECTIVE_MAX + 1 - wanted.len()));
            if wanted.len() > SELECTIVE_MAX {
                break;
            }
        }
        let selective = self.capabilities.has(Features::PAGE_SELECTIVE);
        if !selective || wanted.len() > SELECTIVE_MAX {
            wanted = alloc::vec![Forget::Domain(domain)];
        }
        self.forget(&wanted)
    }

    fn by_register(&self, forget: Forget) -> Result<(), Error> {
        let domain_field = |domain: u16| u64::from(domain) << iotlb::DID_SHIFT;
        let command = match forget {
            Forget::Contexts => return self.context(ccmd::GLOBAL),
            Forget::Context { domain, source } => {
                let source = u64::from(source) << ccmd::SID_SHIFT;
                return self.context(ccmd::DEVICE | source | u64::from(domain));
            }
            // Interrupts are remapped by units with a queue alone.
            Forget::Interrupts(_) => return Err(Error::NoRemapping),
            Forget::Translations => iotlb::GLOBAL,
            Forget::Domain(domain) => iotlb::DOMAIN | domain_field(domain),
            Forget::Pages {
                domain,
                iova,
                mask,
                leaves_only,
            } => {
                let hint = if leaves_only { iotlb::HINT } else { 0 };
                let at = self.capabilities.iotlb + reg::IVA;
                self.registers.write64(at, iova | hint | u64::from(mask));
                iotlb::PAGES | domain_field(domain)
            }
        };
        let at = self.capabilities.iotlb + reg::IOTLB;
        let idle = || self.registers.read64(at) & iotlb::IVT == 0;
        within("an invalidation", idle)?;
        let drain = self.drain(iotlb::DRAIN_READS, iotlb::DRAIN_WRITES);
        self.registers.write64(at, iotlb::IVT | command | drain);
        within("an invalidation", idle)?;
        if self.registers.read64(at) & iotlb::ACTUAL == 0 {
            return Err(Error::Refused);
        }
        Ok(())
    }

    fn context(&self, command: u64) -> Result<(), Error> {
        let idle = || self.registers.read64(reg::CCMD) & ccmd::ICC == 0;
        within("an invalidation of contexts", idle)?;
        self.registers.write64(reg::CCMD, ccmd::ICC | command);
        within("an invalidation of contexts", idle)?;
        if self.registers.read64(reg::CCMD) & ccmd::ACTUAL == 0 {
            return Err(Error::Refused);
        }
        Ok(())
    }

    fn drain(&self, reads: u64, writes: u64) -> u64 {
        drain(&self.capabilities, reads, writes)
    }
}

/// The bits that have requests under way done before an invalidation is, so far as the unit can.
fn drain(capabilities: &Capabilities, reads: u64, writes: u64) -> u64 {
    let mut bits = 0;
    if capabilities.has(Features::DRAIN_READS) {
        bits |= reads;
    }
    if capabilities.has(Features::DRAIN_WRITES) {
        bits |= writes;
    }
    bits
}

/// Has the unit look at what was written to tables. 6.8.
pub(crate) fn flush_writes(registers: &MmioRegion) -> Result<(), Error> {
    let kept = registers.read32(reg::GSTS) & gcmd::KEPT;
    registers.write32(reg::GCMD, kept | gcmd::WBF);
    within("a flush of its write buffer", || {
        registers.read32(reg::GSTS) & gcmd::WBF == 0
    })
}

impl Queue {
    /// Puts descriptors for `wanted` into the queue, one behind them that tells when they are done,
    /// and waits for it. At most two less than the queue holds.
    fn submit(
        &mut self,
        registers: &MmioRegion,
        capabilities: &Capabilities,
        wanted: &[Forget],
    ) -> Result<(), Error> {
        for &one in wanted {
            let (low, high) = descriptor(capabilities, one);
            self.push(low, high);
        }
        self.sequence = self.sequence.wrapping_add(1);
        let status = u64::from(self.sequence) << qi::STATUS_SHIFT;
        let address = self.memory.addr().bits() + STATUS as u64;
        self.push(qi::WAIT | qi::STATUS_WRITE | status, address);
        registers.write64(reg::IQT, (self.tail * qi::BYTES) as u64);
        let mut refused = false;
        within("the invalidation queue", || {
            let errors = registers.read32(reg::FSTS) & fsts::QUEUE_ERRORS;
            refused = errors != 0;
            refused || self.memory.load32(STATUS, Ordering::Acquire) == self.sequence
        })?;
        if refused {
            return Err(Error::Refused);
        }
        Ok(())
    }

    fn push(&mut self, low: u64, high: u64) {
        let at = self.tail * qi::BYTES;
        self.memory.store64s(at, &[low, high], Ordering::Release);
        if !self.snooped {
            self.memory.write_back(at..at + qi::BYTES);
        }
        self.tail = (self.tail + 1) % QUEUE;
    }
}

fn descriptor(capabilities: &Capabilities, forget: Forget) -> (u64, u64) {
    let drain = drain(capabilities, qi::DRAIN_READS, qi::DRAIN_WRITES);
    let domain_field = |domain: u16| u64::from(domain) << qi::DID_SHIFT;
    match forget {
        Forget::Contexts => (qi::CONTEXT | qi::GLOBAL, 0),
        Forget::Context { domain, source } => {
            let source = u64::from(source) << qi::SID_SHIFT;
            (qi::CONTEXT | qi::FINE | domain_field(domain) | source, 0)
        }
        Forget::Translations => (qi::IOTLB | qi::GLOBAL | drain, 0),
        Forget::Domain(domain) => (qi::IOTLB | qi::DOMAIN | drain | domain_field(domain), 0),
        Forget::Pages {
            domain,
            iova,
            mask,
            leaves_only,
        } => {
            let hint = if leaves_only { qi::HINT } else { 0 };
            let low = qi::IOTLB | qi::FINE | drain | domain_field(domain);
            (low, iova | hint | u64::from(mask))
        }
        Forget::Interrupts(None) => (qi::INTERRUPT, 0),
        Forget::Interrupts(Some(index)) => {
            let index = u64::from(index) << qi::INDEX_SHIFT;
            (qi::INTERRUPT | qi::INDEXED | index, 0)
        }
    }
}

/// A range as blocks that are as large as their alignment, which one invalidation each names.
struct Pages {
    domain: u16,
    left: Range<u64>,
    largest_mask: u8,
    leaves_only: bool,
}

impl Iterator for Pages {
    type Item = Forget;

    fn next(&mut self) -> Option<Forget> {
        if self.left.is_empty() {
            return None;
        }
        let iova = self.left.start;
        let pages = (self.left.end - iova) / PAGE;
        let aligned = (iova / PAGE).trailing_zeros();
        let mask = aligned.min(pages.ilog2()).min(self.largest_mask.into());
        self.left.start += PAGE << mask;
        Some(Forget::Pages {
            domain: self.domain,
            iova,
            mask: mask as u8,
            leaves_only: self.leaves_only,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_cover_a_range_and_nothing_else(
            start in 0u64..5000, pages in 1u64..5000, largest_mask in 0u8..20,
        ) {
            let range = start * PAGE..(start + pages) * PAGE;
            let blocks: Vec<_> = Pages {
                domain: 1, left: range.clone(), largest_mask, leaves_only: true,
            }.collect();
            let mut at = range.start;
            for block in blocks {
                let Forget::Pages { iova, mask, .. } = block else { panic!() };
                prop_assert_eq!(iova, at);
                prop_assert!(mask <= largest_mask && iova % (PAGE << mask) == 0);
                at += PAGE << mask;
            }
            prop_assert_eq!(at, range.end);
        }
    }
}
