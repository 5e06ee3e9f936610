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

impl RegionKind {
    /// What a BIOS means by a type in its memory map, and loaders after it. ACPI 6.5, 15.1.
    pub fn of_e820(kind: u32) -> Self {
        match kind {
            1 => Self::Usable,
            3 => Self::AcpiReclaimable,
            4 => Self::AcpiNvs,
            _ => Self::Reserved,
        }
    }
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

/// A picture that firmware left on the screen, which the kernel may draw over: direct colour, rows
/// from top to bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framebuffer {
    /// Physical address of the upper left pixel.
    pub address: u64,
    /// Bytes from one row to the next.
    pub pitch: u32,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Bits of a pixel, padding included.
    pub bits: u8,
    /// Red, green and blue: the lowest bit of each in a pixel, and how many bits it has.
    pub colours: [(u8, u8); 3],
}

impl Framebuffer {
    /// Whether it can be drawn on: rows that hold their pixels, colours within a pixel, and all of
    /// it inside the address space.
    pub fn is_sound(&self) -> bool {
        let row = u64::from(self.width) * u64::from(self.bits.div_ceil(8));
        let size = u64::from(self.pitch) * u64::from(self.height);
        let inside = |&(low, bits): &(u8, u8)| {
            bits > 0 && low.checked_add(bits).is_some_and(|end| end <= self.bits)
        };
        (15..=32).contains(&self.bits)
            && row > 0
            && row <= self.pitch.into()
            && (1..=FRAMEBUFFER_MAX).contains(&size)
            && self.address != 0
            && self.address < ADDRESS_END
            && self.colours.iter().all(inside)
    }
}

/// More than 16384 times 16384 pixels of four bytes there are not.
const FRAMEBUFFER_MAX: u64 = 1 << 30;
/// Where physical addresses end on any machine. Intel SDM volume 3, 4.1.4.
const ADDRESS_END: u64 = 1 << 52;
const REGIONS: usize = 128;
const COMMAND_LINE: usize = 2048;

/// What a boot loader tells. Holds copies: the loader's memory is not looked at again, but for the
/// ACPI root pointer, whose memory no usable region may hold.
#[derive(Clone)]
pub struct BootInfo {
    /// The protocol it came by.
    pub protocol: &'static str,
    /// Where the ACPI root pointer lies, where the loader said so.
    pub rsdp: Option<u64>,
    /// The screen, where the loader has set one up for drawing.
    pub framebuffer: Option<Framebuffer>,
    /// What made no sense in what the loader left.
    pub malformed: Option<&'static str>,
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
            framebuffer: None,
            malformed: None,
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

    /// Notes a region. Empty ones, and those that leave the address space, are ignored; one that
    /// goes on where another of its kind ends becomes part of it. Where there is no room, the
    /// smallest region of usable memory is left out: that costs memory alone, where anything else
    /// might be taken for free.
    pub fn add_region(&mut self, region: Region) {
        if region.len == 0 || region.start.checked_add(region.len).is_none() {
            return;
        }
        let (known, free) = self.regions.split_at_mut(self.region_count);
        let before = |r: &&mut Region| r.kind == region.kind && r.start + r.len == region.start;
        if let Some(before) = known.iter_mut().find(before) {
            before.len += region.len;
            return;
        }
        if let Some(slot) = free.first_mut() {
            *slot = region;
            self.region_count += 1;
            return;
        }
        self.regions_dropped += 1;
        let usable = known.iter_mut().filter(|r| r.kind == RegionKind::Usable);
        let smallest = usable.min_by_key(|r| r.len);
        let gives_way = |r: &&mut Region| region.kind != RegionKind::Usable || r.len < region.len;
        if let Some(smallest) = smallest.filter(gives_way) {
            *smallest = region;
        }
    }

    /// The memory map, as the loader ordered it.
    pub fn regions(&self) -> &[Region] {
        &self.regions[..self.region_count]
    }

    /// The memory that is free for use, in disjoint ranges: where regions overlap, the one that is
    /// not usable wins, and what is listed twice counts once.
    pub fn usable(&self) -> impl Iterator<Item = (u64, u64)> + Clone + '_ {
        let regions = self.regions();
        let is_usable = |region: &Region| region.kind == RegionKind::Usable;
        regions
            .iter()
            .enumerate()
            .filter(move |(_, r)| is_usable(r))
            .flat_map(move |(index, region)| {
                let blockers = regions
                    .iter()
                    .enumerate()
                    .filter(move |(other, r)| !is_usable(r) || *other < index)
                    .map(|(_, r)| (r.start, r.start + r.len));
                let end = region.start + region.len;
                let mut cursor = region.start;
                core::iter::from_fn(move || {
                    // Past everything that covers the cursor, then up to what begins next.
                    while let Some((_, after)) = blockers
                        .clone()
                        .find(|&(from, to)| from <= cursor && cursor < to)
                    {
                        cursor = after;
                    }
                    if cursor >= end {
                        return None;
                    }
                    let start = cursor;
                    let next = blockers.clone().map(|b| b.0).filter(|&from| from > start);
                    cursor = next.min().unwrap_or(end).min(end);
                    Some((start, cursor))
                })
            })
    }

    /// The highest usable page on which a CPU can start: below 640 KiB, above which no start-up
    /// message leads (Intel SDM volume 3, 11.6.1), and not the first, which firmware goes on using.
    pub fn low_page(&self) -> Option<u64> {
        const PAGE: u64 = 4096;
        let pages = self.usable().filter_map(|(start, end)| {
            let page = (end.min(0xa_0000) & !(PAGE - 1)).checked_sub(PAGE)?;
            (page >= start.max(PAGE)).then_some(page)
        });
        pages.max()
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
    }

    #[test]
    fn what_finds_no_room_costs_usable_memory_alone() {
        let mut info = BootInfo::new("test");
        let mut add = |start, len, kind| info.add_region(Region { start, len, kind });
        for index in 0..REGIONS as u64 {
            add(10 * index, 5, RegionKind::Usable);
        }
        add(5000, 4, RegionKind::Usable);
        add(5010, 6, RegionKind::Usable);
        add(5020, 1, RegionKind::Reserved);
        assert_eq!((info.regions().len(), info.regions_dropped()), (REGIONS, 3));
        let has = |start: u64| info.regions().iter().any(|region| region.start == start);
        let there = [0, 10, 20, 5000, 5010, 5020].map(has);
        assert_eq!(there, [false, false, true, false, true, true]);
    }

    #[test]
    fn regions_that_touch_are_one() {
        let mut info = BootInfo::new("test");
        for start in 0..3 * REGIONS as u64 {
            let kind = RegionKind::Usable;
            info.add_region(Region {
                start,
                len: 1,
                kind,
            });
        }
        let kind = RegionKind::Reserved;
        let start = 3 * REGIONS as u64;
        info.add_region(Region {
            start,
            len: 1,
            kind,
        });
        assert_eq!((info.regions().len(), info.regions_dropped()), (2, 0));
        assert_eq!(info.regions()[0].len, start);
    }

    #[test]
    fn cpus_start_below_640_kib_and_not_where_firmware_is() {
        let page = |regions: &[(u64, u64, RegionKind)]| {
            let mut info = BootInfo::new("test");
            for &(start, len, kind) in regions {
                info.add_region(Region { start, len, kind });
            }
            info.low_page()
        };
        let usable = RegionKind::Usable;
        assert_eq!(page(&[(0, 0x9_fc00, usable)]), Some(0x9_e000));
        assert_eq!(page(&[(0, 1 << 30, usable)]), Some(0x9_f000));
        let firmware = [(0, 1 << 30, usable), (0x2000, 1 << 20, RegionKind::AcpiNvs)];
        assert_eq!(page(&firmware), Some(0x1000));
        assert_eq!(page(&[(0, 0x1fff, usable)]), None);
        assert_eq!(page(&[(0x5001, 0x1ffe, usable)]), None);
        assert_eq!(page(&[(1 << 20, 1 << 30, usable)]), None);
        assert_eq!(page(&[]), None);
    }

    #[test]
    fn overlaps_are_resolved_against_use() {
        let mut info = BootInfo::new("test");
        let mut add = |start, len, kind| info.add_region(Region { start, len, kind });
        add(0, 100, RegionKind::Usable);
        add(50, 100, RegionKind::Usable);
        add(20, 10, RegionKind::Reserved);
        add(90, 5, RegionKind::AcpiNvs);
        add(140, 100, RegionKind::Reserved);
        add(400, 10, RegionKind::Usable);
        let usable: alloc::vec::Vec<_> = info.usable().collect();
        assert_eq!(
            usable,
            [(0, 20), (30, 90), (95, 100), (100, 140), (400, 410)]
        );
    }

    proptest::proptest! {
        #[test]
        fn usable_ranges_are_disjoint_and_not_reserved(
            regions: alloc::vec::Vec<(u8, u8, bool)>,
        ) {
            let mut info = BootInfo::new("test");
            let mut bytes = [None; 512];
            for (start, len, usable) in regions {
                let kind = if usable { RegionKind::Usable } else { RegionKind::Reserved };
                info.add_region(Region { start: start.into(), len: len.into(), kind });
            }
            for region in info.regions() {
                for byte in &mut bytes[region.start as usize..][..region.len as usize] {
                    let usable = region.kind == RegionKind::Usable;
                    *byte = Some(byte.unwrap_or(true) && usable);
                }
            }
            let mut seen = [false; 512];
            for (start, end) in info.usable() {
                for byte in start..end {
                    proptest::prop_assert!(!seen[byte as usize]);
                    seen[byte as usize] = true;
                }
            }
            for (byte, seen) in bytes.iter().zip(seen) {
                proptest::prop_assert_eq!(byte.unwrap_or(false), seen);
            }
        }
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
