//! Vectors: who owns which, and telling them that their interrupt came.
//!
//! The handler (in [`crate::arch::x86_64::traps`]) marks a vector as pending on its CPU. Here, in
//! task context on that CPU, every subscriber's event is raised and its task woken. A
//! level-triggered input is masked by the handler and unmasked when all its subscribers have said
//! that their devices are quiet.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use hal::irq::IrqEvent;
use spin::Mutex;

use crate::acpi::madt::Trigger;
use crate::arch::x86_64::percpu::{self, PerCpu};
use crate::arch::x86_64::traps::{self, FIRST_DEVICE, LAST_DEVICE};
use crate::arch::x86_64::{apic, ioapic};
use crate::time::timers;

/// A vector on a CPU, to which a device can send messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector {
    /// The CPU's number.
    pub cpu: usize,
    /// The CPU's local APIC.
    pub apic_id: u32,
    /// The vector.
    pub vector: u8,
}

/// Who wants to know, and whether they are still at it.
struct Subscriber {
    event: Arc<IrqEvent>,
    busy: bool,
}

/// Whoever programs a device's messages.
pub trait Retarget: Send + Sync {
    /// Sends the interrupt that raises `event` to `vector` from now on.
    fn retarget(&self, event: &Arc<IrqEvent>, vector: Vector);
}

struct Binding {
    vector: Vector,
    /// For messages: who sends them elsewhere when their CPU is parked.
    sender: Option<Weak<dyn Retarget>>,
    name: &'static str,
    /// The I/O APIC input, for interrupts that come by one.
    gsi: Option<(u32, Trigger)>,
    subscribers: Vec<Subscriber>,
}

static BINDINGS: Mutex<Vec<Binding>> = Mutex::new(Vec::new());
/// Interrupts that came by a vector which is nobody's.
static UNOWNED: AtomicUsize = AtomicUsize::new(0);
/// Vectors go round the CPUs.
static NEXT_CPU: AtomicUsize = AtomicUsize::new(0);

/// Vectors are unique over all CPUs, so that a level-triggered input is found by its vector alone,
/// and a vector can move.
fn free_vector(bindings: &[Binding], highest_apic_id: u32) -> Option<Vector> {
    let vector = (FIRST_DEVICE..=LAST_DEVICE).find(|&vector| {
        bindings
            .iter()
            .all(|binding| binding.vector.vector != vector)
    })?;
    let cpu = next_cpu(highest_apic_id)?;
    Some(Vector {
        cpu: cpu.index(),
        apic_id: cpu.apic_id(),
        vector,
    })
}

/// The next online CPU in turn, up to an APIC ID.
fn next_cpu(highest_apic_id: u32) -> Option<&'static PerCpu> {
    let count = percpu::possible();
    let start = NEXT_CPU.fetch_add(1, Ordering::Relaxed);
    (0..count)
        .filter_map(|n| percpu::get((start + n) % count))
        .find(|cpu| cpu.online.load(Ordering::Acquire) && cpu.apic_id() <= highest_apic_id)
}

/// Binds `event` to a vector of its own, for a message-signalled interrupt that `sender` programs.
/// `None` where no vector is left. Without interrupt remapping, messages reach APIC IDs up to 254
/// alone.
pub fn bind_message(
    name: &'static str,
    event: Arc<IrqEvent>,
    sender: Option<Weak<dyn Retarget>>,
) -> Option<Vector> {
    let mut bindings = BINDINGS.lock();
    let vector = free_vector(&bindings, 254)?;
    let subscribers = alloc::vec![Subscriber { event, busy: false }];
    bindings.push(Binding {
        vector,
        sender,
        name,
        gsi: None,
        subscribers,
    });
    Some(vector)
}

/// Sends all interrupts of a CPU that takes no new work to others. Those that arrive there until
/// it has parked may be lost: see [`look_again`]. Returns the vectors.
pub fn move_away(cpu: usize) -> Vec<u8> {
    let mut moved = Vec::new();
    let mut messages = Vec::new();
    {
        let mut bindings = BINDINGS.lock();
        for index in 0..bindings.len() {
            if bindings[index].vector.cpu != cpu {
                continue;
            }
            let Some(target) = next_cpu(254) else { break };
            let binding = &mut bindings[index];
            binding.vector = Vector {
                cpu: target.index(),
                apic_id: target.apic_id(),
                ..binding.vector
            };
            moved.push(binding.vector.vector);
            match binding.gsi {
                Some((gsi, trigger)) => {
                    let vector = binding.vector;
                    ioapic::route(gsi, vector, trigger);
                    let busy = binding.subscribers.iter().any(|subscriber| subscriber.busy);
                    ioapic::set_masked(gsi, trigger.level && busy);
                }
                None => messages.extend(
                    binding
                        .sender
                        .as_ref()
                        .and_then(Weak::upgrade)
                        .map(|sender| {
                            (sender, binding.subscribers[0].event.clone(), binding.vector)
                        }),
                ),
            }
        }
    }
    for (sender, event, vector) in messages {
        sender.retarget(&event, vector);
    }
    moved
}

/// Tells the owners of vectors that moved to look at their devices: an interrupt may have come to
/// the CPU that they left after it had parked.
pub fn look_again(vectors: &[u8]) {
    vectors.iter().copied().for_each(tell);
}

/// Binds `event` to I/O APIC input `gsi`, shared with whoever is bound to it already. `false` where there is no such input, or no vector.
pub fn bind_input(name: &'static str, gsi: u32, trigger: Trigger, event: Arc<IrqEvent>) -> bool {
    if !ioapic::has(gsi) {
        return false;
    }
    let mut bindings = BINDINGS.lock();
    let subscriber = Subscriber { event, busy: false };
    if let Some(shared) = bindings
        .iter_mut()
        .find(|b| b.gsi.is_some_and(|(g, _)| g == gsi))
    {
        shared.subscribers.push(subscriber);
        return true;
    }
    let Some(vector) = free_vector(&bindings, 254) else {
        return false;
    };
    let level = trigger.level.then(|| u16::try_from(gsi).ok()).flatten();
    traps::set_level(vector.vector, level);
    ioapic::route(gsi, vector, trigger);
    let gsi = Some((gsi, trigger));
    bindings.push(Binding {
        vector,
        sender: None,
        name,
        gsi,
        subscribers: alloc::vec![subscriber],
    });
    true
}

/// Says that `event`'s device is quiet: its level-triggered input may interrupt again.
pub fn unmask_input(gsi: u32, event: &Arc<IrqEvent>) {
    let mut bindings = BINDINGS.lock();
    if let Some(binding) = bindings
        .iter_mut()
        .find(|b| b.gsi.is_some_and(|(g, _)| g == gsi))
    {
        for subscriber in &mut binding.subscribers {
            if Arc::ptr_eq(&subscriber.event, event) {
                subscriber.busy = false;
            }
        }
        if binding
            .subscribers
            .iter()
            .all(|subscriber| !subscriber.busy)
        {
            ioapic::set_masked(gsi, false);
        }
    }
}

/// Takes `event` off its vector; a vector that nobody is left on is free again.
pub fn unbind(event: &Arc<IrqEvent>) {
    let mut bindings = BINDINGS.lock();
    bindings.retain_mut(|binding| {
        binding
            .subscribers
            .retain(|subscriber| !Arc::ptr_eq(&subscriber.event, event));
        if let Some((gsi, trigger)) = binding.gsi {
            let idle = binding
                .subscribers
                .iter()
                .all(|subscriber| !subscriber.busy);
            ioapic::set_masked(
                gsi,
                binding.subscribers.is_empty() || (trigger.level && !idle),
            );
        }
        if binding.subscribers.is_empty() {
            traps::set_level(binding.vector.vector, None);
        }
        !binding.subscribers.is_empty()
    });
}

/// Whether a handler has run on this CPU whose owners do not know yet.
pub fn any_pending(cpu: &PerCpu) -> bool {
    cpu.pending
        .iter()
        .any(|word| word.load(Ordering::Acquire) != 0)
}

/// Tells the owners of the interrupts that came on this CPU. For its executor.
pub fn tell_owners(cpu: &PerCpu) {
    for (index, word) in cpu.pending.iter().enumerate() {
        if word.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let mut bits = word.swap(0, Ordering::AcqRel);
        while bits != 0 {
            let vector = (index * 64) as u8 + bits.trailing_zeros() as u8;
            bits &= bits - 1;
            match vector {
                traps::NMI => {
                    // Bits 7 and 6 of the PC's status port B.
                    let reason = match cpu.nmi_reason.load(Ordering::Relaxed) >> 6 {
                        0 => "no reason given",
                        1 => "I/O channel check",
                        _ => "memory parity or SERR#",
                    };
                    let index = cpu.index();
                    log::warn!("WARN non-maskable interrupt on CPU {index}: {reason}");
                }
                traps::TIMER => timers::rearm(cpu.index()),
                traps::APIC_ERROR => {
                    log::warn!("WARN local APIC error {:#x}", apic::take_errors());
                }
                _ => tell(vector),
            }
        }
    }
}

fn tell(vector: u8) {
    let events: smallvec::SmallVec<[Arc<IrqEvent>; 4]> = {
        let mut bindings = BINDINGS.lock();
        let Some(binding) = bindings.iter_mut().find(|b| b.vector.vector == vector) else {
            UNOWNED.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let level = binding.gsi.is_some_and(|(_, trigger)| trigger.level);
        binding
            .subscribers
            .iter_mut()
            .map(|subscriber| {
                subscriber.busy = level;
                subscriber.event.clone()
            })
            .collect()
    };
    for event in events {
        event.raise();
        event.wake();
    }
}

/// What `irqs` shows of a vector.
#[derive(Clone, Debug)]
pub struct Line {
    /// Where it arrives.
    pub vector: Vector,
    /// Whose it is.
    pub name: &'static str,
    /// The I/O APIC input, where it comes by one.
    pub gsi: Option<u32>,
    /// How often it came, on its CPU.
    pub arrivals: u64,
}

/// All vectors that are bound.
pub fn list() -> Vec<Line> {
    let bindings = BINDINGS.lock();
    bindings
        .iter()
        .map(|binding| Line {
            vector: binding.vector,
            name: binding.name,
            gsi: binding.gsi.map(|(gsi, _)| gsi),
            arrivals: percpu::get(binding.vector.cpu).map_or(0, |cpu| {
                cpu.arrivals[usize::from(binding.vector.vector)].load(Ordering::Relaxed)
            }),
        })
        .collect()
}

/// Interrupts that nobody asked for, on all CPUs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unasked {
    /// Spurious ones of the local APICs.
    pub spurious: u64,
    /// By vectors that are nobody's.
    pub unowned: usize,
    /// Errors of the local APICs.
    pub errors: u64,
    /// Non-maskable ones.
    pub nmi: u64,
}

/// How many interrupts came that nobody asked for.
pub fn unasked() -> Unasked {
    let sum = |vector: u8| {
        let of = |cpu: &PerCpu| cpu.arrivals[usize::from(vector)].load(Ordering::Relaxed);
        percpu::all().map(of).sum()
    };
    Unasked {
        spurious: sum(traps::SPURIOUS),
        unowned: UNOWNED.load(Ordering::Relaxed),
        errors: sum(traps::APIC_ERROR),
        nmi: sum(traps::NMI),
    }
}

/// How many vectors are bound.
pub fn bound() -> usize {
    BINDINGS.lock().len()
}
