//! What one device reaches: a domain of its own.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU8, Ordering};

use hal::pci::Address;
use spin::Mutex;

use crate::capabilities::Features;
use crate::error::Error;
use crate::tables::{Permissions, Stale, Tables, Translation};
use crate::unit::{Unit, source_id};

/// What one device reaches, while it is attached. Dropping it takes the device's access.
///
/// [`Domain::map`] and [`Domain::unmap`] change tables; [`Domain::flush`] has the unit see it. Only
/// after a flush that succeeded is what was unmapped out of reach, and what was mapped within it.
pub struct Domain {
    unit: Arc<Unit>,
    id: u16,
    device: Address,
    tables: Arc<Mutex<Tables>>,
    /// Held while the unit is told, so that whoever finds nothing stale knows that the unit was.
    stale: Mutex<Stale>,
    /// A [`State`]; changes while the tables are locked.
    state: AtomicU8,
}

/// Where a domain is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum State {
    /// The unit does not know it.
    Detached,
    /// The device is translated by it.
    Attached,
    /// The device's access was taken, for good.
    Revoked,
}

impl Domain {
    /// A domain for `device` that maps nothing, and is not attached yet.
    pub fn new(unit: &Arc<Unit>, device: Address) -> Result<Arc<Self>, Error> {
        let tables = Tables::new(unit.memory(), unit.capabilities())?;
        Ok(Arc::new(Self {
            unit: unit.clone(),
            id: unit.take_id()?,
            device,
            tables: Arc::new(Mutex::new(tables)),
            stale: Mutex::new(Stale::default()),
            state: AtomicU8::new(State::Detached as u8),
        }))
    }

    fn is(&self, state: State) -> bool {
        self.state.load(Ordering::Acquire) == state as u8
    }

    fn enter(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Has the device translated by this domain from here on. An error where it has another.
    pub fn attach(&self) -> Result<(), Error> {
        let tables = self.tables.lock();
        if self.is(State::Revoked) {
            return Err(Error::Revoked);
        }
        if self.is(State::Attached) {
            return Ok(());
        }
        self.unit
            .attach(self.device, self.id, tables.root(), tables.levels())?;
        self.enter(State::Attached);
        Ok(())
    }

    /// Takes the device's access until it is attached again; what is mapped stays so.
    pub fn detach(&self) -> Result<(), Error> {
        self.leave(State::Detached)
    }

    /// Takes all access from the device for good, whether it answers or not: on `Ok` it reaches
    /// nothing until another domain is attached to it.
    pub fn revoke(&self) -> Result<(), Error> {
        self.leave(State::Revoked)
    }

    fn leave(&self, next: State) -> Result<(), Error> {
        let _tables = self.tables.lock();
        let attached = self.is(State::Attached);
        if !self.is(State::Revoked) {
            self.enter(next);
        }
        if attached {
            return self.unit.detach(self.device, self.id);
        }
        // It was done before, and may have failed then.
        if self.unit.failed() {
            return Err(Error::Failed);
        }
        Ok(())
    }

    /// Whether the device's access was revoked.
    pub fn is_revoked(&self) -> bool {
        self.is(State::Revoked)
    }

    /// Whether the device is translated by this domain.
    pub fn is_attached(&self) -> bool {
        self.is(State::Attached)
    }

    /// The unit.
    pub fn unit(&self) -> &Arc<Unit> {
        &self.unit
    }

    /// The domain's identifier.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// The device.
    pub fn device(&self) -> Address {
        self.device
    }

    /// Maps `len` bytes at `iova` to the memory at `phys`, in whole pages: all of it, or none.
    pub fn map(
        &self,
        iova: u64,
        phys: u64,
        len: u64,
        permissions: Permissions,
    ) -> Result<(), Error> {
        let mut tables = self.tables.lock();
        if self.is_revoked() {
            return Err(Error::Revoked);
        }
        let mut stale = Stale::default();
        let result = tables.map(iova, phys, len, permissions, &mut stale);
        // Who remembers what is not there, or does not look by itself, has to be told of what came.
        let told = Features::CACHING_MODE | Features::WRITE_BUFFER;
        if result.is_err() || self.unit.capabilities().features.intersects(told) {
            self.note(stale);
        }
        result
    }

    /// Unmaps what is mapped in the `len` bytes at `iova`; says how many bytes were.
    pub fn unmap(&self, iova: u64, len: u64) -> Result<u64, Error> {
        let mut tables = self.tables.lock();
        let mut stale = Stale::default();
        let result = tables.unmap(iova, len, &mut stale);
        self.note(stale);
        result
    }

    fn note(&self, more: Stale) {
        self.stale.lock().add(more);
    }

    /// Has the unit see all changes: on `Ok` it goes by the tables alone. Several changes cost one
    /// wait. An error means that the unit has failed: [`Unit::failed`].
    pub fn flush(&self) -> Result<(), Error> {
        if self.stale.lock().is_empty() {
            return Ok(());
        }
        if !self.is_attached() {
            // Who takes the device's access away has this until the unit has said so.
            let _tables = self.tables.lock();
            if !self.is_attached() {
                if self.unit.failed() {
                    return Err(Error::Failed);
                }
                // The unit has forgotten all of the domain, and does not look at it.
                *self.stale.lock() = Stale::default();
                return Ok(());
            }
        }
        let mut stale = self.stale.lock();
        self.unit.forget_stale(self.id, &stale)?;
        *stale = Stale::default();
        Ok(())
    }

    /// Where `iova` leads for the device, by the tables.
    pub fn translate(&self, iova: u64) -> Option<Translation> {
        if !self.is_attached() {
            return None;
        }
        self.tables.lock().translate(iova)
    }

    /// How many pages of 4 KiB, 2 MiB and 1 GiB the device reaches, counted in the tables; none
    /// where it is not attached.
    pub fn pages(&self) -> [usize; 3] {
        if !self.is_attached() {
            return [0; 3];
        }
        self.tables.lock().count().0
    }

    /// How many tables there are, those that wait for a flush included.
    pub fn tables(&self) -> usize {
        self.tables.lock().count().1 + self.stale.lock().tables()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // On an error the unit has failed.
        let _ = self.revoke();
        let stale = core::mem::take(self.stale.get_mut());
        if self.unit.failed() {
            self.unit.bury(self.tables.clone(), stale);
        } else {
            self.unit.give_id(self.id);
        }
    }
}

impl core::fmt::Debug for Domain {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (id, device) = (self.id, self.device);
        write!(f, "Domain({id}, {device}, {:#06x})", source_id(device))
    }
}
