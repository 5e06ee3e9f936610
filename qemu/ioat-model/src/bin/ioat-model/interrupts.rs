//! Interrupts to QEMU: a file descriptor for each vector, and one for the pin.
//!
//! The pin is level-triggered, a file descriptor is not: as in VFIO, each trigger masks the pin,
//! and QEMU unmasks it once the guest has looked at the device. If the level still stands then, it
//! is triggered anew.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ioat_model::{InterruptSink, Irq};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX,
};

/// Where the engine's interrupts go.
pub(crate) struct Interrupts {
    /// The index of the kind of messages that the engine sends.
    messages: Option<u32>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    pin: Option<File>,
    level: bool,
    masked: bool,
    vectors: Vec<Vector>,
}

#[derive(Default)]
struct Vector {
    event: Option<File>,
    /// A message came before QEMU had said where to: the guest enables messages in the device
    /// first.
    early: bool,
}

impl Interrupts {
    /// The interrupts of an engine with `vectors` messages of kind `irq`.
    pub(crate) fn new(irq: Irq, vectors: usize) -> Self {
        let inner = Inner {
            vectors: (0..vectors).map(|_| Vector::default()).collect(),
            ..Inner::default()
        };
        Self {
            messages: match irq {
                Irq::Msi => Some(VFIO_PCI_MSI_IRQ_INDEX),
                Irq::MsiX => Some(VFIO_PCI_MSIX_IRQ_INDEX),
                Irq::Intx => None,
            },
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// QEMU's request for interrupt `index`: `files` are for vectors `start` on.
    pub(crate) fn set(&self, index: u32, flags: u32, start: u32, count: u32, files: Vec<File>) {
        let mut inner = self.lock();
        let action = flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;
        if index == VFIO_PCI_INTX_IRQ_INDEX {
            match action {
                VFIO_IRQ_SET_ACTION_MASK => inner.masked = true,
                VFIO_IRQ_SET_ACTION_UNMASK => inner.masked = false,
                VFIO_IRQ_SET_ACTION_TRIGGER => {
                    inner.pin = files.into_iter().next();
                    inner.masked = false;
                }
                _ => {}
            }
            inner.trigger_pin();
        } else if Some(index) == self.messages && action == VFIO_IRQ_SET_ACTION_TRIGGER {
            if count == 0 {
                inner.vectors.fill_with(Vector::default);
                return;
            }
            let mut files = files.into_iter();
            let vectors = inner.vectors.iter_mut().skip(start as usize);
            for vector in vectors.take(count as usize) {
                vector.event = files.next();
                if vector.early && vector.event.is_some() {
                    vector.early = false;
                    vector.trigger();
                }
            }
        }
    }
}

impl Inner {
    fn trigger_pin(&mut self) {
        if self.level
            && !self.masked
            && let Some(event) = &mut self.pin
        {
            self.masked = true;
            signal(event);
        }
    }
}

impl Vector {
    fn trigger(&mut self) {
        match &mut self.event {
            Some(event) => signal(event),
            None => self.early = true,
        }
    }
}

impl InterruptSink for Interrupts {
    fn message(&self, vector: usize) {
        if let Some(vector) = self.lock().vectors.get_mut(vector) {
            vector.trigger();
        }
    }

    fn set_intx(&self, asserted: bool) {
        let mut inner = self.lock();
        inner.level = asserted;
        inner.trigger_pin();
    }
}

fn signal(event: &mut File) {
    if let Err(error) = event.write_all(&1u64.to_ne_bytes()) {
        log::warn!("an interrupt was lost: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use vfio_bindings::bindings::vfio::{VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE};

    const SET: u32 = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
    const NONE: u32 = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_NONE;
    const UNMASK: u32 = VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE;

    /// Stands in for an eventfd: every trigger is eight bytes.
    fn event() -> (File, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (File::from(OwnedFd::from(theirs)), ours)
    }

    fn triggers(stream: &mut UnixStream) -> usize {
        let mut bytes = [0; 256];
        stream.read(&mut bytes).map_or(0, |len| len / 8)
    }

    #[test]
    fn messages_reach_their_vector() {
        let interrupts = Interrupts::new(Irq::MsiX, 2);
        let (first, mut first_end) = event();
        let (second, mut second_end) = event();
        interrupts.set(VFIO_PCI_MSIX_IRQ_INDEX, SET, 0, 1, vec![first]);
        interrupts.set(VFIO_PCI_MSIX_IRQ_INDEX, SET, 1, 1, vec![second]);
        interrupts.message(1);
        interrupts.message(1);
        interrupts.message(7);
        assert_eq!(triggers(&mut first_end), 0);
        assert_eq!(triggers(&mut second_end), 2);
    }

    #[test]
    fn an_early_message_is_kept_until_it_has_somewhere_to_go() {
        let interrupts = Interrupts::new(Irq::Msi, 1);
        interrupts.set(VFIO_PCI_MSI_IRQ_INDEX, NONE, 0, 0, vec![]);
        interrupts.message(0);
        let (file, mut end) = event();
        interrupts.set(VFIO_PCI_MSI_IRQ_INDEX, SET, 0, 1, vec![]);
        interrupts.set(VFIO_PCI_MSI_IRQ_INDEX, SET, 0, 1, vec![file]);
        assert_eq!(triggers(&mut end), 1);
        // Once disabled, it is forgotten.
        interrupts.set(VFIO_PCI_MSI_IRQ_INDEX, NONE, 0, 0, vec![]);
        interrupts.message(0);
        interrupts.set(VFIO_PCI_MSI_IRQ_INDEX, NONE, 0, 0, vec![]);
        let (file, mut end) = event();
        interrupts.set(VFIO_PCI_MSI_IRQ_INDEX, SET, 0, 1, vec![file]);
        assert_eq!(triggers(&mut end), 0);
    }

    #[test]
    fn a_standing_level_triggers_again_when_unmasked() {
        let interrupts = Interrupts::new(Irq::Intx, 0);
        let (file, mut end) = event();
        interrupts.set(VFIO_PCI_INTX_IRQ_INDEX, SET, 0, 1, vec![file]);
        interrupts.set_intx(true);
        interrupts.set_intx(true);
        assert_eq!(triggers(&mut end), 1, "masked by the first");
        interrupts.set(VFIO_PCI_INTX_IRQ_INDEX, UNMASK, 0, 1, vec![]);
        assert_eq!(triggers(&mut end), 1, "it still stands");
        interrupts.set_intx(false);
        interrupts.set(VFIO_PCI_INTX_IRQ_INDEX, UNMASK, 0, 1, vec![]);
        assert_eq!(triggers(&mut end), 0);
        interrupts.set(VFIO_PCI_INTX_IRQ_INDEX, NONE, 0, 0, vec![]);
        interrupts.set_intx(true);
        assert_eq!(triggers(&mut end), 0);
    }
}
