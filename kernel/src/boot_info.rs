//! What a boot loader tells, in one form for every loader.

/// What a region of physical memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Free for use.
    Usable,
    /// ACPI tables; could be reclaimed, is not.
    AcpiReclaimable,
    /// Firmware's own, to be preserved.
    AcpiNvs,
    /// Anything else.
    Reserved,
}

/// A region of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is for.
    pub kind: RegionKind,
}

const REGIONS: usize = 128;
const COMMAND_LINE: usize = 2048;

/// What a boot loader tells. Holds copies: the loader's memory is not looked at again.
#[derive(Clone)]
pub struct BootInfo {
    /// The protocol it came by.
    pub protocol: &'static str,
    /// Where the ACPI root pointer lies, where the loader said so.
    pub rsdp: Option<u64>,
    regions: [Region; REGIONS],
    region_count: usize,
    regions_dropped: usize,
    command_line: [u8; COMMAND_LINE],
    command_line_len: usize,
}

impl BootInfo {
    /// Nothing known yet but the protocol.
    pub const fn new(protocol: &'static str) -> Self {
        Self {
            protocol,
            rsdp: None,
            regions: [Region {
                start: 0,
                len: 0,
                kind: RegionKind::Reserved,
            }; REGIONS],
            region_count: 0,
            regions_dropped: 0,
            command_line: [0; COMMAND_LINE],
            command_line_len: 0,
        }
    }

    /// Notes a region. Empty ones, and those that leave the address space, are ignored; those
    /// that find no room are counted.
    pub fn add_region(&mut self, region: Region) {
        if region.len == 0 || region.start.checked_add(region.len).is_none() {
            return;
        }
        match self.regions.get_mut(self.region_count) {
            Some(slot) => {
                *slot = region;
                self.region_count += 1;
            }
            None => self.regions_dropped += 1,
        }
    }

    /// The memory map, as the loader ordered it.
    pub fn regions(&self) -> &[Region] {
        &self.regions[..self.region_count]
    }

    /// How many regions found no room.
    pub fn regions_dropped(&self) -> usize {
        self.regions_dropped
    }

    /// Keeps a copy of the command line; what is longer than 2 KiB is cut.
    pub fn set_command_line(&mut self, line: &[u8]) {
        let len = line.len().min(COMMAND_LINE);
        self.command_line[..len].copy_from_slice(&line[..len]);
        self.command_line_len = len;
    }

    /// The command line, up to the first byte that is not UTF-8.
    pub fn command_line(&self) -> &str {
        let bytes = &self.command_line[..self.command_line_len];
        match core::str::from_utf8(bytes) {
            Ok(line) => line,
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_that_make_no_sense_are_left_out() {
        let mut info = BootInfo::new("test");
        info.add_region(Region {
            start: 0,
            len: 0,
            kind: RegionKind::Usable,
        });
        info.add_region(Region {
            start: u64::MAX,
            len: 2,
            kind: RegionKind::Usable,
        });
        assert!(info.regions().is_empty());
        for start in 0..REGIONS as u64 + 3 {
            info.add_region(Region {
                start,
                len: 1,
                kind: RegionKind::Usable,
            });
        }
        assert_eq!((info.regions().len(), info.regions_dropped()), (REGIONS, 3));
    }

    #[test]
    fn command_lines_are_cut_not_trusted() {
        let mut info = BootInfo::new("test");
        info.set_command_line(b"loglevel=info \xff run=x");
        assert_eq!(info.command_line(), "loglevel=info ");
        info.set_command_line(&[b'a'; COMMAND_LINE + 1]);
        assert_eq!(info.command_line().len(), COMMAND_LINE);
    }
}
