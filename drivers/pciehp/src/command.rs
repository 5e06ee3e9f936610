//! Commands to a slot, one at a time: a write of Slot Control is one, and the next has to wait until
//! the port has completed it. PCI Express Base 6.7.3.2.

use hal::time::{Duration, Instant};

use crate::port::Port;
use crate::registers::{SlotCapabilities, SlotControl};

/// What was commanded, and whether the port has obeyed.
#[derive(Debug)]
pub(crate) struct Command {
    /// What Slot Control holds.
    control: SlotControl,
    /// When the last command was issued that has not been completed.
    issued: Option<Instant>,
    /// It was said that the port completes nothing.
    warned: bool,
}

impl Command {
    /// None issued: Slot Control is as it was found.
    pub(crate) fn new(port: &Port) -> Self {
        Self {
            control: port.control() & !SlotControl::INTERLOCK,
            issued: None,
            warned: false,
        }
    }

    /// What Slot Control holds.
    pub(crate) fn control(&self) -> SlotControl {
        self.control
    }

    /// The port says that it has completed what it was told.
    pub(crate) fn completed(&mut self) {
        self.issued = None;
    }

    /// When the command that is out is not waited for any more.
    pub(crate) fn deadline(&self, limit: Duration) -> Option<Instant> {
        self.issued.map(|issued| issued + limit)
    }

    /// Brings Slot Control nearer to `wanted`; whether the slot is as wanted. Who completes nothing
    /// within `limit` is taken to have obeyed.
    pub(crate) fn drive(&mut self, port: &Port, wanted: SlotControl, limit: Duration) -> bool {
        if let Some(issued) = self.issued {
            if issued.elapsed() < limit {
                return false;
            }
            self.issued = None;
            if !self.warned {
                self.warned = true;
                log::warn!(
                    "{port}: completes no command within {} ms",
                    limit.as_millis()
                );
            }
        }
        if self.control != wanted {
            port.set_control(wanted);
            self.control = wanted;
            let tells = !port.slot().contains(SlotCapabilities::NO_COMMAND_COMPLETED);
            self.issued = tells.then(Instant::now);
        }
        self.issued.is_none()
    }
}
