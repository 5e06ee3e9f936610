//! Guest memory as QEMU lends it: ranges of guest addresses, most with a file to map.
//!
//! QEMU announces and withdraws ranges while the machine runs, in pieces of its own choosing: some
//! are read-only, and some (the firmware flash) come without a file, so that nothing can reach
//! them from here. Behind an IOMMU a range is a page of what the guest maps for DMA, and there may be
//! tens of thousands, most of one file: a file is mapped once, as a whole, whatever part of it is lent
//! how often, and ranges alone say what can be reached. The files are mapped shared; the guest writes them at the same time, so that all
//! access is by volatile copies and atomic words (the crate `vm-memory`).
//!
//! A copy holds the map for reading; withdrawing a range waits for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::{Bound, Range};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use ioat_model::{CopyError, GuestMemory, MemoryError};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// One range of guest addresses.
#[derive(Clone)]
struct Window {
    len: u64,
    /// The mapping and where in it the window starts; `None` where no file came with it.
    ram: Option<(Arc<MmapRegion>, u64)>,
    writable: bool,
}

type Windows = BTreeMap<u64, Window>;

/// Device, number and length of a file: who maps it keeps it, so that nobody else gets these.
type FileId = (u64, u64, u64);

/// The guest's memory.
#[derive(Default)]
pub(crate) struct GuestRam {
    windows: RwLock<Windows>,
    /// Those that some window is a part of.
    files: Mutex<Vec<(FileId, Weak<MmapRegion>)>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl GuestRam {
    /// A range appears. Where a file comes with it that cannot be mapped, the range stays out of
    /// reach, as one without a file.
    pub(crate) fn announce(&self, addr: u64, len: u64, writable: bool, file: Option<(File, u64)>) {
        if len == 0 || addr.checked_add(len - 1).is_none() {
            log::warn!("guest memory {addr:#x}+{len:#x} makes no sense");
            return;
        }
        let ram = file.and_then(|(file, offset)| {
            self.map(file, offset, len)
                .inspect_err(|error| log::warn!("guest memory {addr:#x}+{len:#x}: {error}"))
                .ok()
                .map(|region| (region, offset))
        });
        let mut windows = self.write_windows();
        cut(&mut windows, addr, len);
        windows.insert(addr, Window { len, ram, writable });
    }

    /// A range disappears, whether it was announced so, as a part of another, or as several.
    pub(crate) fn withdraw(&self, addr: u64, len: u64) {
        cut(&mut self.write_windows(), addr, len);
    }

    /// All ranges disappear.
    pub(crate) fn withdraw_all(&self) {
        self.write_windows().clear();
    }

    /// The ranges there are.
    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        let windows = self.read_windows();
        let range = |(start, window): (&u64, &Window)| *start..start.saturating_add(window.len);
        windows.iter().map(range).collect()
    }

    /// Maps `file`, of which `len` bytes from `offset` on must be there: an access behind a file's end
    /// would end the process.
    fn map(&self, file: File, offset: u64, len: u64) -> io::Result<Arc<MmapRegion>> {
        let metadata = file.metadata()?;
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > metadata.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let id = (metadata.dev(), metadata.ino(), metadata.len());
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let known = files.iter().find(|(other, _)| *other == id);
        if let Some(region) = known.and_then(|(_, region)| region.upgrade()) {
            return Ok(region);
        }
        let size = usize::try_from(metadata.len()).map_err(io::Error::other)?;
        let region = MmapRegion::from_file(FileOffset::new(file, 0), size);
        let region = Arc::new(region.map_err(io::Error::other)?);
        files.retain(|(_, region)| region.strong_count() > 0);
        files.push((id, Arc::downgrade(&region)));
        Ok(region)
    }

    fn write_windows(&self) -> RwLockWriteGuard<'_, Windows> {
        self.windows.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_windows(&self) -> RwLockReadGuard<'_, Windows> {
        self.windows.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes `len` bytes at `addr`; what is left of a window on either side stays.
fn cut(windows: &mut Windows, addr: u64, len: u64) {
    let end = u128::from(addr) + u128::from(len);
    let first = windows
        .range(..=addr)
        .next_back()
        .filter(|(start, window)| addr - **start < window.len)
        .map_or(addr, |(start, _)| *start);
    let hit: Vec<u64> = windows
        .range(first..)
        .map(|(start, _)| *start)
        .take_while(|start| u128::from(*start) < end)
        .collect();
    for start in hit {
        let Some(window) = windows.remove(&start) else {
            continue;
        };
        let window_end = u128::from(start) + u128::from(window.len);
        if start < addr {
            let left = Window {
                len: addr - start,
                ..window.clone()
            };
            windows.insert(start, left);
        }
        if window_end > end {
            // Below `window_end`, so it fits.
            let right = end as u64;
            let ram = window
                .ram
                .map(|(region, offset)| (region, offset + (right - start)));
            windows.insert(
                right,
                Window {
                    len: (window_end - end) as u64,
                    ram,
                    ..window
                },
            );
        }
    }
}

/// The memory from `addr` on, at most `len` bytes: less where the window ends.
fn part(
    windows: &Windows,
    addr: u64,
    len: usize,
    access: Access,
) -> Result<VolatileSlice<'_>, MemoryError> {
    let (start, window) = windows
        .range((Bound::Unbounded, Bound::Included(addr)))
        .next_back()
        .ok_or(MemoryError)?;
    let at = addr - start;
    if at >= window.len || access == Access::Write && !window.writable {
        return Err(MemoryError);
    }
    let (region, offset) = window.ram.as_ref().ok_or(MemoryError)?;
    let len = (len as u64).min(window.len - at) as usize;
    region
        .get_slice((offset + at) as usize, len)
        .map_err(|_| MemoryError)
}

impl GuestMemory for GuestRam {
    fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let windows = self.read_windows();
        let mut done = 0;
        while done < bytes.len() {
            let at = addr.checked_add(done as u64).ok_or(MemoryError)?;
            let slice = part(&windows, at, bytes.len() - done, Access::Read)?;
            slice.copy_to(&mut bytes[done..done + slice.len()]);
            done += slice.len();
        }
        Ok(())
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let windows = self.read_windows();
        let mut done = 0;
        while done < bytes.len() {
            let at = addr.checked_add(done as u64).ok_or(MemoryError)?;
            let slice = part(&windows, at, bytes.len() - done, Access::Write)?;
            slice.copy_from(&bytes[done..done + slice.len()]);
            done += slice.len();
        }
        Ok(())
    }

    fn copy(&self, src: u64, dst: u64, len: usize) -> Result<(), CopyError> {
        let windows = self.read_windows();
        let mut done = 0;
        while done < len {
            let at = |addr: u64| addr.checked_add(done as u64).ok_or(MemoryError);
            let from = at(src)
                .and_then(|at| part(&windows, at, len - done, Access::Read))
                .map_err(|_| CopyError::Source)?;
            let to = at(dst)
                .and_then(|at| part(&windows, at, from.len(), Access::Write))
                .map_err(|_| CopyError::Destination)?;
            from.copy_to_volatile_slice(to);
            done += to.len();
        }
        Ok(())
    }

    fn load64(&self, addr: u64) -> Result<u64, MemoryError> {
        let windows = self.read_windows();
        let word: u64 = part(&windows, addr, 8, Access::Read)?
            .load(0, Ordering::Acquire)
            .map_err(|_| MemoryError)?;
        Ok(u64::from_le(word))
    }

    fn store64(&self, addr: u64, value: u64) -> Result<(), MemoryError> {
        let windows = self.read_windows();
        part(&windows, addr, 8, Access::Write)?
            .store(value.to_le(), 0, Ordering::Release)
            .map_err(|_| MemoryError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An unnamed file of `len` bytes.
    fn file(len: u64) -> File {
        let path = std::env::temp_dir().join(format!(
            "ioat-model-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn ram() -> (GuestRam, File) {
        let ram = GuestRam::default();
        let file = file(0x10000);
        ram.announce(0x1000, 0x8000, true, Some((file.try_clone().unwrap(), 0)));
        ram.announce(
            0x9000,
            0x8000,
            true,
            Some((file.try_clone().unwrap(), 0x8000)),
        );
        (ram, file)
    }

    #[test]
    fn accesses_cross_from_window_to_window() {
        let (ram, _file) = ram();
        let data: Vec<u8> = (0..0x3000).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        ram.write(0x7abc, &data).unwrap();
        ram.copy(0x7abc, 0xb123, data.len()).unwrap();
        let mut back = vec![0; data.len()];
        ram.read(0xb123, &mut back).unwrap();
        assert_eq!(back, data);
        ram.store64(0x8ff8, 0x1122_3344_5566_7788).unwrap();
        assert_eq!(ram.load64(0x8ff8), Ok(0x1122_3344_5566_7788));
        let mut word = [0; 8];
        ram.read(0x8ff8, &mut word).unwrap();
        assert_eq!(word, 0x1122_3344_5566_7788u64.to_le_bytes());
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let (ram, file) = ram();
        assert_eq!(ram.load64(0), Err(MemoryError));
        assert_eq!(ram.load64(0x11000), Err(MemoryError));
        assert_eq!(ram.load64(!7), Err(MemoryError));
        assert_eq!(ram.store64(0x1001, 0), Err(MemoryError), "misaligned");
        assert_eq!(ram.copy(0x10fff, 0x1000, 2), Err(CopyError::Source));
        assert_eq!(ram.copy(0x1000, 0x10fff, 2), Err(CopyError::Destination));
        assert_eq!(ram.read(u64::MAX, &mut [0; 2]), Err(MemoryError));
        // No file, and more than the file has: known, out of reach.
        ram.announce(0xfffc_0000, 0x4_0000, false, None);
        assert_eq!(ram.load64(0xfffc_0000), Err(MemoryError));
        ram.announce(0x10_0000, 0x2_0000, true, Some((file, 0)));
        assert_eq!(ram.load64(0x10_0000), Err(MemoryError));
        // Nonsense is refused.
        ram.announce(u64::MAX, 2, true, None);
        ram.announce(0x5000, 0, true, None);
        assert!(ram.load64(0x5000).is_ok());
    }

    #[test]
    fn read_only_ranges_are_not_written() {
        let (ram, file) = ram();
        ram.announce(0x4000, 0x1000, false, Some((file, 0x3000)));
        assert!(ram.load64(0x4000).is_ok());
        assert_eq!(ram.store64(0x4000, 1), Err(MemoryError));
        assert_eq!(ram.write(0x3fff, &[1, 2]), Err(MemoryError));
        assert_eq!(ram.copy(0x1000, 0x4ff0, 32), Err(CopyError::Destination));
        assert!(ram.copy(0x4000, 0x1000, 0x1000).is_ok());
    }

    #[test]
    fn ranges_are_withdrawn_in_pieces() {
        let (ram, _file) = ram();
        ram.store64(0x6000, 42).unwrap();
        ram.store64(0xa000, 43).unwrap();
        // Over the border of both.
        ram.withdraw(0x7000, 0x3000);
        for gone in [0x7000, 0x8ff8, 0x9ff8] {
            assert_eq!(ram.load64(gone), Err(MemoryError), "{gone:#x}");
        }
        assert_eq!((ram.load64(0x6000), ram.load64(0xa000)), (Ok(42), Ok(43)));
        assert!(ram.load64(0x6ff8).is_ok());
        // From the middle of one.
        ram.withdraw(0xb000, 0x1000);
        assert_eq!(ram.load64(0xb000), Err(MemoryError));
        assert!(ram.load64(0xaff8).is_ok() && ram.load64(0xc000).is_ok());
        ram.withdraw(0, u64::MAX);
        assert_eq!(ram.load64(0x6000), Err(MemoryError));
        ram.withdraw_all();
    }

    #[test]
    fn a_file_is_mapped_once_for_however_many_ranges() {
        let (ram, file) = ram();
        let regions = || {
            let windows = ram.read_windows();
            let region = |window: &Window| Arc::as_ptr(&window.ram.as_ref().unwrap().0) as usize;
            let regions: std::collections::BTreeSet<_> = windows.values().map(region).collect();
            (windows.len(), regions.len())
        };
        for page in 0..16 {
            let file = file.try_clone().unwrap();
            let addr = 0x10_0000 + 0x2000 * page;
            ram.announce(addr, 0x1000, true, Some((file, 0x1000 * (15 - page))));
            ram.store64(addr + 8, page).unwrap();
        }
        assert_eq!(regions(), (18, 1));
        assert_eq!((ram.load64(0x1008), ram.load64(0x10008)), (Ok(15), Ok(0)));
        // The ranges' ends are ends, though the mapping goes on.
        assert_eq!(ram.load64(0x10_1000), Err(MemoryError));
        // Another file of this length is another.
        let other = super::tests::file(0x10000);
        ram.announce(0x20_0000, 0x1000, true, Some((other, 0)));
        assert_eq!((regions(), ram.load64(0x20_0008)), ((19, 2), Ok(0)));
        ram.withdraw_all();
        ram.announce(0x1000, 0x1000, true, Some((file, 0)));
        assert_eq!((regions(), ram.load64(0x1008)), ((1, 1), Ok(15)));
        assert_eq!(ram.files.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_new_range_replaces_what_it_covers() {
        let (ram, file) = ram();
        ram.store64(0x1000, 1).unwrap();
        ram.store64(0x3000, 3).unwrap();
        // The same file's first page, again, where the third was.
        ram.announce(0x3000, 0x1000, true, Some((file, 0)));
        assert_eq!(ram.load64(0x3000), Ok(1));
        assert!(ram.load64(0x4000).is_ok());
    }
}
