//! What a Multiboot2 loader left: its information structure, read tag by tag. Multiboot2
//! Specification 2.0, 3.6.
//!
//! Loaders build it from what firmware told them. Every access is bounded, every step goes forward,
//! and what makes no sense is left out and noted: nothing in it stops the kernel but a memory map
//! without memory.

use crate::acpi::bytes::{u8_at, u32_at, u64_at};
use crate::boot_info::{BootInfo, Framebuffer, Region, RegionKind};

/// What EAX holds when a Multiboot2 loader has loaded us.
pub const LOADER_MAGIC: u32 = 0x36d7_6289;
/// No loader leaves more bytes; what lies beyond is not looked at.
pub const SIZE_MAX: u32 = 1 << 20;

/// Tags and entries of tables begin at multiples of this.
const ALIGN: usize = 8;
/// Type and size of a tag; of the structure as a whole, size and nothing.
const HEADER: usize = 8;
/// Two words more: size and version of the entries.
const TABLE_HEADER: usize = 16;

const END: u32 = 0;
const COMMAND_LINE: u32 = 1;
const MEMORY_MAP: u32 = 6;
const FRAMEBUFFER: u32 = 8;
const RSDP_OLD: u32 = 14;
const RSDP_NEW: u32 = 15;
const EFI_MEMORY_MAP: u32 = 17;

/// Reads the structure, which lies at the physical address `address`.
///
/// The tag of the ACPI root pointer holds a copy of it: the structure's own memory is noted as
/// reserved, so that the copy stays.
pub fn read(bytes: &[u8], address: u64) -> BootInfo {
    let mut info = BootInfo::new("multiboot2");
    info.add_region(Region {
        start: address,
        len: bytes.len() as u64,
        kind: RegionKind::Reserved,
    });
    let own = info.regions().len();
    let (mut efi_map, mut rsdp_old) = (None, None);
    let mut at = HEADER;
    let end = loop {
        let (Some(kind), Some(size)) = (u32_at(bytes, at), u32_at(bytes, at + 4)) else {
            break Some("its tags have no end");
        };
        if kind == END {
            break None;
        }
        let Some(tag) = bytes[at..]
            .get(..size as usize)
            .filter(|t| t.len() >= HEADER)
        else {
            break Some("a tag's size makes no sense");
        };
        let body = address + (at + HEADER) as u64;
        match kind {
            COMMAND_LINE => {
                let line = &tag[HEADER..];
                let end = line.iter().position(|&byte| byte == 0);
                info.set_command_line(&line[..end.unwrap_or(line.len())]);
            }
            MEMORY_MAP => entries(tag).for_each(|entry| add(&mut info, region(entry))),
            EFI_MEMORY_MAP => efi_map = Some(tag),
            FRAMEBUFFER => info.framebuffer = framebuffer(tag),
            RSDP_OLD => rsdp_old = Some(body),
            RSDP_NEW => info.rsdp = Some(body),
            _ => {}
        }
        at += tag.len().next_multiple_of(ALIGN);
    };
    info.malformed = info.malformed.or(end);
    info.rsdp = info.rsdp.or(rsdp_old);
    if info.regions().len() == own {
        let descriptors = efi_map.into_iter().flat_map(entries);
        descriptors.for_each(|entry| add(&mut info, efi_region(entry)));
    }
    info
}

fn add(info: &mut BootInfo, region: Option<Region>) {
    match region {
        Some(region) => info.add_region(region),
        None => info.malformed = Some("an entry of its memory map is too short"),
    }
}

/// The entries of a table, whose size it states. Less than one byte has none.
fn entries(tag: &[u8]) -> impl Iterator<Item = &[u8]> {
    let size = u32_at(tag, HEADER).unwrap_or(0) as usize;
    let table = tag.get(TABLE_HEADER..).filter(|_| size > 0);
    table.unwrap_or_default().chunks(size.max(1))
}

/// An entry of the memory map, with the types of ACPI 6.5, 15.1.
fn region(entry: &[u8]) -> Option<Region> {
    Some(Region {
        start: u64_at(entry, 0)?,
        len: u64_at(entry, 8)?,
        kind: RegionKind::of_e820(u32_at(entry, 16)?),
    })
}

/// A descriptor of UEFI's memory map, after boot services have ended. UEFI 2.10, 7.2.3.
fn efi_region(entry: &[u8]) -> Option<Region> {
    let pages = u64_at(entry, 24)?;
    Some(Region {
        start: u64_at(entry, 8)?,
        // More than there can be is a region that makes no sense, which is left out.
        len: pages.saturating_mul(4096),
        kind: match u32_at(entry, 0)? {
            // The loader's, boot services', and what was free.
            1..=4 | 7 => RegionKind::Usable,
            9 => RegionKind::AcpiReclaimable,
            10 => RegionKind::AcpiNvs,
            _ => RegionKind::Reserved,
        },
    })
}

/// The screen, where it is one of direct colour.
fn framebuffer(tag: &[u8]) -> Option<Framebuffer> {
    const DIRECT_COLOUR: u8 = 1;
    let colour = |offset| Some((u8_at(tag, offset)?, u8_at(tag, offset + 1)?));
    if u8_at(tag, 29)? != DIRECT_COLOUR {
        return None;
    }
    let screen = Framebuffer {
        address: u64_at(tag, 8)?,
        pitch: u32_at(tag, 16)?,
        width: u32_at(tag, 20)?,
        height: u32_at(tag, 24)?,
        bits: u8_at(tag, 28)?,
        colours: [colour(32)?, colour(34)?, colour(36)?],
    };
    screen.is_sound().then_some(screen)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const AT: u64 = 0x1_2000;

    fn tag(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut tag = kind.to_le_bytes().to_vec();
        tag.extend((HEADER as u32 + body.len() as u32).to_le_bytes());
        tag.extend(body);
        tag.resize(tag.len().next_multiple_of(ALIGN), 0);
        tag
    }

    fn structure(tags: &[Vec<u8>]) -> Vec<u8> {
        let tags = tags.concat();
        let size = (HEADER + tags.len() + HEADER) as u32;
        [size, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .chain(tags)
            .chain(tag(END, &[]))
            .collect()
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// A table of 64-bit words; `entry` is the size that it states.
    fn table(kind: u32, entry: u32, rest: &[u64]) -> Vec<u8> {
        tag(kind, &words(&[&[u64::from(entry)], rest].concat()))
    }

    fn screen(kind: u8, bits: u8, pitch: u32) -> Vec<u8> {
        let mut body = words(&[0xfd00_0000, u64::from(pitch) | 1024 << 32]);
        body.extend(768u32.to_le_bytes());
        body.extend([bits, kind, 0, 0, 16, 8, 8, 8, 0, 8]);
        tag(FRAMEBUFFER, &body)
    }

    /// As GRUB leaves it on a BIOS, with the tags that mean nothing here.
    fn by_bios() -> Vec<u8> {
        let map = [
            [0, 0x9_fc00, 1],
            [0x9_fc00, 0x400, 2],
            [0x10_0000, 0x1fed_f000, 1],
            [0x1ffd_f000, 0x2_1000, 3],
            [0x2000_0000, 0x1000, 4],
        ];
        structure(&[
            tag(COMMAND_LINE, b"\"run=dma; audit\" iommu=on\0"),
            tag(2, b"GRUB 2.12\0"),
            tag(4, &words(&[0x7_fb40_027f])),
            table(MEMORY_MAP, 24, map.as_flattened()),
            screen(1, 32, 4096),
            tag(RSDP_OLD, b"RSD PTR old"),
            tag(21, &[0; 4]),
        ])
    }

    #[test]
    fn what_grub_leaves_on_a_bios_is_read() {
        let bytes = by_bios();
        let info = read(&bytes, AT);
        assert_eq!((info.protocol, info.malformed), ("multiboot2", None));
        assert_eq!(info.command_line(), "\"run=dma; audit\" iommu=on");
        let kinds: Vec<_> = info.regions().iter().map(|r| (r.start, r.kind)).collect();
        use RegionKind::*;
        assert_eq!(
            kinds,
            [
                (AT, Reserved),
                (0, Usable),
                (0x9_fc00, Reserved),
                (0x10_0000, Usable),
                (0x1ffd_f000, AcpiReclaimable),
                (0x2000_0000, AcpiNvs)
            ]
        );
        let colours = [(16, 8), (8, 8), (0, 8)];
        let found = info.framebuffer.unwrap();
        assert_eq!(
            (found.address, found.pitch, found.width, found.height),
            (0xfd00_0000, 4096, 1024, 768)
        );
        assert_eq!((found.bits, found.colours), (32, colours));
        let old = bytes.windows(11).position(|b| b == b"RSD PTR old").unwrap();
        assert_eq!(info.rsdp, Some(AT + old as u64));
        let kept = |range: (u64, u64)| range.1 <= AT || range.0 >= AT + bytes.len() as u64;
        assert!(info.usable().all(kept), "the copy's memory is handed out");
    }

    #[test]
    fn the_newer_root_pointer_wins_wherever_it_stands() {
        for order in [[RSDP_OLD, RSDP_NEW], [RSDP_NEW, RSDP_OLD]] {
            let bytes = structure(&order.map(|kind| tag(kind, &[kind as u8; 8])));
            let at = (read(&bytes, AT).rsdp.unwrap() - AT) as usize;
            assert_eq!(bytes[at..at + 8], [RSDP_NEW as u8; 8]);
        }
    }

    #[test]
    fn the_map_of_uefi_counts_where_there_is_no_other() {
        // Six words each, as firmware leaves room for more than it knows.
        let descriptor = |kind, start, pages| [kind, start, 0, pages, 0xf, 0];
        let efi = [
            descriptor(7, 0, 0xa0),
            descriptor(3, 0x10_0000, 0x700),
            descriptor(2, 0x80_0000, 8),
            descriptor(6, 0x80_8000, 8),
            descriptor(9, 0x81_0000, 1),
            descriptor(10, 0x81_1000, 1),
            descriptor(7, 0x100_0000, u64::MAX),
        ];
        let efi = table(EFI_MEMORY_MAP, 48, efi.as_flattened());
        let info = read(&structure(core::slice::from_ref(&efi)), AT);
        let usable: Vec<_> = info.usable().collect();
        let size = HEADER + efi.len() + HEADER;
        assert_eq!(
            usable,
            [
                (0, AT),
                (AT + size as u64, 0xa_0000),
                (0x10_0000, 0x80_8000)
            ]
        );
        assert_eq!(info.malformed, None);

        let plain = table(MEMORY_MAP, 24, &[0x20_0000, 0x1000, 1]);
        let info = read(&structure(&[efi, plain]), AT);
        assert_eq!(info.usable().collect::<Vec<_>>(), [(0x20_0000, 0x20_1000)]);
    }

    #[test]
    fn screens_that_cannot_be_drawn_on_are_left_out() {
        let found = |tag| read(&structure(&[tag]), AT).framebuffer.is_some();
        assert!(found(screen(1, 32, 4096)) && found(screen(1, 24, 3072)));
        let indexed_or_text = found(screen(0, 32, 4096)) || found(screen(2, 32, 4096));
        assert!(!indexed_or_text);
        let narrow_rows = found(screen(1, 32, 4095)) || found(screen(1, 32, 0));
        assert!(!narrow_rows);
        let pixels = [0, 8, 16, 33, 255].map(|bits| found(screen(1, bits, 8192)));
        assert_eq!(
            pixels, [false; 5],
            "too few bits for the colours, or too many"
        );
        assert!(!found(screen(1, 32, u32::MAX)));
        let whole = screen(1, 32, 4096);
        let cut = |len| tag(FRAMEBUFFER, &whole[HEADER..len]);
        assert!((HEADER..38).all(|len| !found(cut(len))));
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let said = |bytes: &[u8]| read(bytes, AT).malformed;
        let no_end = Some("its tags have no end");
        for len in 0..16 {
            assert_eq!(said(&structure(&[])[..len]), no_end, "{len} bytes");
        }
        let size = Some("a tag's size makes no sense");
        for bad in [0u32, 1, 7, 17, u32::MAX] {
            let mut bytes = structure(&[]);
            bytes[HEADER..][..8].copy_from_slice(&words(&[1 | u64::from(bad) << 32]));
            assert_eq!(said(&bytes), size, "{bad}");
        }
        let entry = Some("an entry of its memory map is too short");
        for (kind, least) in [(MEMORY_MAP, 20), (EFI_MEMORY_MAP, 32)] {
            for len in 1..least {
                assert_eq!(said(&structure(&[table(kind, len, &[1; 6])])), entry);
            }
            let none = read(&structure(&[table(kind, 0, &[1; 6])]), AT);
            assert_eq!(none.usable().count(), 0, "entries of no size");
        }
        // Every cut of a whole one.
        let whole = by_bios();
        for len in 0..whole.len() {
            assert!(said(&whole[..len]).is_some(), "{len}");
        }
        assert_eq!(said(&whole), None);
    }

    /// A structure whose tags are as they should be, cut short or too long, of any kind.
    fn any_structure() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            Just(0u64),
            Just(u64::MAX),
            0u64..64,
            any::<u64>(),
            any::<u32>().prop_map(u64::from)
        ];
        let body = prop::collection::vec(word, 0..20);
        let size = prop_oneof![3 => Just(None), 1 => any::<u32>().prop_map(Some),
            1 => (0u32..64).prop_map(Some)];
        let tags = prop::collection::vec((0u32..24, body, size), 0..8);
        (tags, any::<prop::sample::Index>(), any::<bool>()).prop_map(|(tags, cut, whole)| {
            let tags: Vec<_> = tags
                .into_iter()
                .map(|(kind, body, size)| {
                    let mut tag = tag(kind, &words(&body));
                    if let Some(size) = size {
                        tag[4..8].copy_from_slice(&size.to_le_bytes());
                    }
                    tag
                })
                .collect();
            let mut bytes = structure(&tags);
            if !whole {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        })
    }

    fn survives(bytes: &[u8], address: u64) {
        let info = read(bytes, address);
        let end = address + bytes.len() as u64;
        for (start, stop) in info.usable() {
            assert!(start < stop && (stop <= address || start >= end));
        }
        assert!(info.rsdp.is_none_or(|at| (address..=end).contains(&at)));
        assert!(info.framebuffer.is_none_or(|screen| screen.is_sound()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn malformed_structures_are_survived(bytes in any_structure(), at in 8u64..1 << 32) {
            survives(&bytes, at & !7);
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, address: u32) {
            survives(&bytes, address.into());
        }
    }
}
