//! Faults on order: an engine that misbehaves in one chosen way.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ioat_spec::ChanErr;

use crate::strays::{Aim, Stray, Way};

/// One fault. [`HELP`] says what each does; `N` counts data descriptors (copies and fills) of the
/// whole engine, or interrupts, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// CHANCNT reads this, whatever the engine has.
    ChanCnt(u8),
    /// XFERCAP reads this and limits the size of descriptors.
    XferCap(u8),
    /// The capability list loops.
    CapabilityLoop,
    /// BAR0 asks for this many bytes of address space.
    Bar(u64),
    /// The channel that meets the Nth data descriptor (0: its first descriptor of any kind) stays
    /// ACTIVE until RESET.
    Hang(u64),
    /// The Nth data descriptor fails with this bit of CHANERR.
    Error(u64, u8),
    /// Every data descriptor takes this many microseconds more.
    Slow(u64),
    /// The Nth interrupt is lost.
    DropIrq(u64),
    /// Every Nth interrupt is lost.
    DropIrqs(u64),
    /// After N data descriptors the engine is gone.
    AllOnes(u64),
    /// In the middle of the Nth data descriptor the engine stops for good, and answers no more.
    Freeze(u64),
    /// Every answer to a read takes this many microseconds more.
    Late(u64),
    /// The engine comes up as somebody left it.
    Dirty,
    /// RESET never ends.
    NoReset,
    /// The connection is accepted and nothing answered. The engine itself knows nothing of it.
    Silent,
    /// Memory is reached by requests to the client alone. The engine itself knows nothing of it.
    Messages,
    /// Accesses that nobody asked for.
    Stray(Stray),
}

/// Every fault in the form that [`Fault::from_str`] takes, a line each.
pub const HELP: &str = "\
chancnt=N        CHANCNT reads N (0 to 31); the channels there are stay as they are
xfercap=N        XFERCAP reads N (0, or 12 to 31), and descriptors longer than 2^N fail
caploop          the PCI capability lists, both of them, loop (QEMU itself never gets past them)
bar=SIZE         BAR0 asks for SIZE of address space: a power of two from 16K, as in bar=1T
hang@N           the channel that meets the Nth data descriptor stays ACTIVE until RESET; with
                 N=0, the first descriptor of any kind
error@N[:BIT]    the Nth data descriptor fails, once, with bit BIT of CHANERR (8, reading data)
slow=US          every data descriptor takes US microseconds more, up to 1000000
drop-irq@N       the Nth interrupt is lost on its way, once
drop-irq=N       every Nth interrupt is lost on its way; with N=1, all of them
allones@N        after N data descriptors the engine is gone: registers read all ones, DMA stops
freeze@N         the Nth data descriptor moves half of its bytes, then the engine stops for good:
                 no channel works, no request is answered, and only a signal ends the program
late=US          every answer to a read takes US microseconds more, up to 1000000
dirty            the engine comes up as somebody left it: even channels HALTED with CHANERR and
                 CHANERR_INT set, odd ones ACTIVE and stuck, all of them IN_USE
noreset          RESET stays set for ever and resets nothing
silent           the connection is accepted, and no request answered
dma=messages     memory is reached by the messages DMA_READ and DMA_WRITE alone, which QEMU carries
                 out, instead of being mapped: slow, and as its IOMMU sees it
stray@N:AIM[:WAY[:COUNT[:US]]]
                 from the Nth data descriptor on the engine makes COUNT accesses (10000), one every
                 US microseconds (0), that nobody asked for, whatever the guest does with it; what
                 they write begins with \"a stray!\". Several such orders run at once.
                 AIM   unmapped   what was unmapped a moment ago
                       edge       one byte before and behind each mapped window
                       foreign    what another engine has mapped, by --foreign
                       raw        guest memory by its physical address
                       completed  destinations that were completed and unmapped
                       removed    all these, but for foreign, once bus mastering is off or the slot
                                  empty
                       interrupt  messages that were never configured, by free entries of the IOMMU's
                                  table; by mapped or write
                 WAY   mapped     through the mapped files, by turns writing and reading: outside a
                                  mapped window there is nothing to hit
                       read       by the message DMA_READ
                       write      by the message DMA_WRITE";

/// The faults as the engine asks for them while it works.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) hang: Option<u64>,
    pub(crate) error: Option<(u64, ChanErr)>,
    /// More time for every data descriptor.
    pub(crate) slow: Option<Duration>,
    pub(crate) drop_irq: Option<u64>,
    pub(crate) drop_irqs: Option<u64>,
    pub(crate) all_ones: Option<u64>,
    pub(crate) freeze: Option<u64>,
    /// More time for every answer to a read.
    pub(crate) late: Duration,
    pub(crate) dirty: bool,
    pub(crate) no_reset: bool,
}

impl Plan {
    pub(crate) fn new(faults: &[Fault]) -> Self {
        let mut plan = Self::default();
        for fault in faults {
            match *fault {
                Fault::Hang(n) => plan.hang = Some(n),
                Fault::Error(n, bit) => {
                    plan.error = Some((n, ChanErr::from_bits_truncate(1 << bit)));
                }
                Fault::Slow(us) => plan.slow = Some(Duration::from_micros(us)),
                Fault::DropIrq(n) => plan.drop_irq = Some(n),
                Fault::DropIrqs(n) => plan.drop_irqs = Some(n),
                Fault::AllOnes(n) => plan.all_ones = Some(n),
                Fault::Freeze(n) => plan.freeze = Some(n),
                Fault::Late(us) => plan.late = Duration::from_micros(us),
                Fault::Dirty => plan.dirty = true,
                Fault::NoReset => plan.no_reset = true,
                // Registers that read so, and what only the transport can do.
                Fault::ChanCnt(_)
                | Fault::XferCap(_)
                | Fault::CapabilityLoop
                | Fault::Bar(_)
                | Fault::Silent
                | Fault::Messages
                | Fault::Stray(_) => {}
            }
        }
        plan
    }

    /// Whether the interrupt of this number, from 1, is lost.
    pub(crate) fn drops_irq(&self, n: u64) -> bool {
        self.drop_irq == Some(n) || self.drop_irqs.is_some_and(|every| n.is_multiple_of(every))
    }
}

/// A fault that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadFault(String);

impl fmt::Display for BadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no such fault: {:?} (see --help)", self.0)
    }
}

impl std::error::Error for BadFault {}

impl FromStr for Fault {
    type Err = BadFault;

    fn from_str(spec: &str) -> Result<Self, BadFault> {
        parse(spec).ok_or_else(|| BadFault(spec.to_string()))
    }
}

fn parse(spec: &str) -> Option<Fault> {
    match spec {
        "caploop" => return Some(Fault::CapabilityLoop),
        "dirty" => return Some(Fault::Dirty),
        "noreset" => return Some(Fault::NoReset),
        "silent" => return Some(Fault::Silent),
        "dma=messages" => return Some(Fault::Messages),
        _ => {}
    }
    if let Some((name, value)) = spec.split_once('=') {
        return match name {
            "chancnt" => Some(Fault::ChanCnt(number(value, 0..=31)? as u8)),
            "xfercap" => number(value, 0..=31)
                .filter(|&n| n == 0 || n >= 12)
                .map(|n| Fault::XferCap(n as u8)),
            "slow" => number(value, 1..=1_000_000).map(Fault::Slow),
            "late" => number(value, 1..=1_000_000).map(Fault::Late),
            "drop-irq" => number(value, 1..=u64::MAX).map(Fault::DropIrqs),
            "bar" => size(value).map(Fault::Bar),
            _ => None,
        };
    }
    let (name, value) = spec.split_once('@')?;
    let any = 1..=u64::MAX;
    match name {
        "hang" => number(value, 0..=u64::MAX).map(Fault::Hang),
        "drop-irq" => number(value, any).map(Fault::DropIrq),
        "allones" => number(value, 0..=u64::MAX).map(Fault::AllOnes),
        "freeze" => number(value, any).map(Fault::Freeze),
        "stray" => stray(value).map(Fault::Stray),
        "error" => {
            let (at, bit) = value.split_once(':').unwrap_or((value, "8"));
            Some(Fault::Error(number(at, any)?, number(bit, 0..=27)? as u8))
        }
        _ => None,
    }
}

/// `N:AIM[:WAY[:COUNT[:US]]]`
fn stray(text: &str) -> Option<Stray> {
    let mut words = text.split(':');
    let from = number(words.next()?, 1..=u64::MAX)?;
    let aim = Aim::named(words.next()?)?;
    let way = words.next().map_or(Some(Way::Mapped), Way::named)?;
    let count = words
        .next()
        .map_or(Some(10_000), |n| number(n, 1..=u64::MAX))?;
    let pause_us = words.next().map_or(Some(0), |n| number(n, 0..=1_000_000))?;
    let known = words.next().is_none() && (aim, way) != (Aim::Interrupt, Way::Read);
    known.then_some(Stray {
        from,
        aim,
        way,
        count,
        pause_us,
    })
}

fn number(text: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    text.parse().ok().filter(|value| range.contains(value))
}

fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.chars().last()? {
        'K' => (&text[..text.len() - 1], 10),
        'M' => (&text[..text.len() - 1], 20),
        'G' => (&text[..text.len() - 1], 30),
        'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (bytes.is_power_of_two() && (16 << 10..=1 << 62).contains(&bytes)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_the_help_is_understood() {
        let examples = [
            ("chancnt=0", Fault::ChanCnt(0)),
            ("xfercap=0", Fault::XferCap(0)),
            ("xfercap=12", Fault::XferCap(12)),
            ("caploop", Fault::CapabilityLoop),
            ("bar=1T", Fault::Bar(1 << 40)),
            ("bar=16384", Fault::Bar(16384)),
            ("hang@5", Fault::Hang(5)),
            ("error@7", Fault::Error(7, 8)),
            ("error@7:0", Fault::Error(7, 0)),
            ("slow=500", Fault::Slow(500)),
            ("drop-irq@1", Fault::DropIrq(1)),
            ("drop-irq=3", Fault::DropIrqs(3)),
            ("allones@100", Fault::AllOnes(100)),
            ("freeze@100", Fault::Freeze(100)),
            ("late=1000000", Fault::Late(1_000_000)),
            ("dirty", Fault::Dirty),
            ("noreset", Fault::NoReset),
            ("silent", Fault::Silent),
            ("dma=messages", Fault::Messages),
            (
                "stray@3:edge",
                Fault::Stray(Stray {
                    from: 3,
                    aim: Aim::Edge,
                    way: Way::Mapped,
                    count: 10_000,
                    pause_us: 0,
                }),
            ),
            (
                "stray@1:raw:write:5:20",
                Fault::Stray(Stray {
                    from: 1,
                    aim: Aim::Raw,
                    way: Way::Write,
                    count: 5,
                    pause_us: 20,
                }),
            ),
        ];
        for (spec, fault) in examples {
            assert_eq!(spec.parse(), Ok(fault), "{spec}");
            let at = spec.find(['=', '@']).map_or(spec.len(), |at| at + 1);
            let name = &spec[..at];
            assert!(HELP.lines().any(|line| line.starts_with(name)), "{name}");
        }
    }

    #[test]
    fn others_are_refused() {
        for spec in [
            "",
            "=",
            "@",
            "hang",
            "hang@",
            "hang@x",
            "error@0",
            "error@1:28",
            "xfercap=5",
            "bar=",
            "bar=3K",
            "bar=8K",
            "bar=99999999T",
            "chancnt=32",
            "drop-irq@0",
            "drop-irq=0",
            "freeze@0",
            "freeze=1",
            "late@1",
            "late=0",
            "late=1000001",
            "slow=0",
            "slow=1000001",
            "Dirty",
            "bar=é",
            "dma=",
            "stray@1",
            "stray@0:edge",
            "stray@1:void",
            "stray@1:edge:walk",
            "stray@1:interrupt:read",
            "stray@1:edge:read:0",
            "stray@1:edge:read:1:1000001",
            "stray@1:edge:read:1:1:1",
            "dma=mapped",
        ] {
            assert!(spec.parse::<Fault>().is_err(), "{spec}");
        }
    }
}
