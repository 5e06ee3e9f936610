//! The kernel's symbol table, which the kernel carries so that a panic report names functions.
//!
//! The linker script reserves the section `.ksyms`; [`embed`] fills it after linking, in place. All
//! numbers are little endian:
//!
//! | offset | what |
//! |---|---|
//! | 0 | magic, u32: `LSYM` |
//! | 4 | count, u32 |
//! | 8 | count entries by ascending address: u32 offset of the function from the symbol `__kernel_start`, u32 offset of its name from the start of the section |
//! | then | names: u16 length, UTF-8 bytes |

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::{fmt, fs};

use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

use crate::failure::{Context, Failure};

/// The section that is filled.
pub const SECTION: &str = ".ksyms";
/// `LSYM`
pub const MAGIC: u32 = u32::from_le_bytes(*b"LSYM");
/// Function offsets count from this symbol.
pub const BASE: &str = "__kernel_start";

const HEADER: usize = 8;
const ENTRY: usize = 8;
/// Shorter than this a name tells nothing.
const SHORTEST_NAME: usize = 16;
/// Longest name that is kept, in bytes.
const LONGEST_NAME: usize = 512;

/// What was put in.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    /// Functions.
    pub functions: usize,
    /// Bytes used and reserved.
    pub used: usize,
    /// Bytes the linker script reserves.
    pub reserved: usize,
    /// Names were cut to this many bytes, where they did not all fit.
    pub names_cut_to: Option<usize>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            functions,
            used,
            reserved,
            ..
        } = self;
        write!(
            f,
            "symbols: {functions} functions, {used} of {reserved} bytes"
        )?;
        match self.names_cut_to {
            Some(limit) => write!(f, "; long names cut to {limit} bytes to fit"),
            None => Ok(()),
        }
    }
}

/// Fills the section of an ELF file with the file's own functions.
pub fn embed(elf: &Path) -> Result<Summary, Failure> {
    let what = elf.display();
    let mut image = fs::read(elf).context(&what)?;
    let (functions, range) =
        read_functions(&image).map_err(|why| Failure::run(format!("{what}: {why}")))?;
    let reserved = range.len();
    let (table, summary) = table(&functions, reserved).ok_or_else(|| {
        Failure::run(format!(
            "{what}: {} functions do not fit into the {reserved} bytes of {SECTION}: enlarge it in linker.ld",
            functions.len()
        ))
    })?;
    let section = image
        .get_mut(range)
        .ok_or_else(|| Failure::run(format!("{what}: {SECTION} lies outside of the file")))?;
    section.fill(0);
    section[..table.len()].copy_from_slice(&table);
    fs::write(elf, image).context(&what)?;
    Ok(summary)
}

/// Offsets and names of all functions, and where in the file the section lies.
fn read_functions(image: &[u8]) -> Result<(BTreeMap<u32, String>, std::ops::Range<usize>), String> {
    let file = object::File::parse(image).map_err(|error| error.to_string())?;
    let section = file
        .section_by_name(SECTION)
        .ok_or(format!("no section {SECTION}"))?;
    let (start, len) = section
        .file_range()
        .ok_or(format!("{SECTION} has no bytes in the file"))?;
    let start = usize::try_from(start).map_err(|error| error.to_string())?;
    let len = usize::try_from(len).map_err(|error| error.to_string())?;

    let base = file
        .symbols()
        .find(|symbol| symbol.name() == Ok(BASE))
        .ok_or(format!("no symbol {BASE}"))?
        .address();
    let text: Vec<_> = file
        .sections()
        .filter(|section| section.kind() == object::SectionKind::Text)
        .map(|section| {
            (
                section.index(),
                section.address()..section.address() + section.size(),
            )
        })
        .collect();
    let mut functions = BTreeMap::new();
    for symbol in file.symbols() {
        let Ok(name) = symbol.name() else { continue };
        let Ok(offset) = u32::try_from(symbol.address().wrapping_sub(base)) else {
            continue;
        };
        // Labels of assembly code have no type; the linker script's own marks are not functions.
        let in_text = symbol.section_index().is_some_and(|index| {
            text.iter()
                .any(|(text, range)| *text == index && range.contains(&symbol.address()))
        });
        let label = symbol.kind() == SymbolKind::Label || symbol.kind() == SymbolKind::Unknown;
        let label = label && in_text && !name.starts_with(".L") && !name.starts_with("__");
        if name.is_empty() || !(symbol.kind() == SymbolKind::Text || label) {
            continue;
        }
        let name = format!("{:#}", rustc_demangle::demangle(name));
        functions.entry(offset).or_insert(name);
    }
    Ok((functions, start..start + len))
}

/// Builds the table, in at most `room` bytes: with names as long as fit.
fn table(functions: &BTreeMap<u32, String>, room: usize) -> Option<(Vec<u8>, Summary)> {
    let longest = functions
        .values()
        .map(String::len)
        .max()
        .unwrap_or(0)
        .min(LONGEST_NAME);
    let fits = |limit: usize| encode(functions, limit).filter(|table| table.len() <= room);
    let summary = |table: &Vec<u8>, names_cut_to| Summary {
        functions: functions.len(),
        used: table.len(),
        reserved: room,
        names_cut_to,
    };
    if let Some(table) = fits(longest) {
        let cut = functions
            .values()
            .any(|name| name.len() > longest)
            .then_some(longest);
        let summary = summary(&table, cut);
        return Some((table, summary));
    }
    let (mut low, mut high) = (SHORTEST_NAME, longest);
    let mut best = fits(low).map(|table| (low, table))?;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match fits(middle) {
            Some(table) => (low, best) = (middle, (middle, table)),
            None => high = middle,
        }
    }
    let (limit, table) = best;
    let summary = summary(&table, Some(limit));
    Some((table, summary))
}

/// The table with names of at most `limit` bytes; equal names are stored once. Nothing where it
/// would be too long for its own numbers.
fn encode(functions: &BTreeMap<u32, String>, limit: usize) -> Option<Vec<u8>> {
    let mut names = Vec::new();
    let mut known: HashMap<String, u32> = HashMap::new();
    let names_start = HEADER + functions.len() * ENTRY;
    let mut table = Vec::with_capacity(names_start);
    table.extend(MAGIC.to_le_bytes());
    table.extend(u32::try_from(functions.len()).ok()?.to_le_bytes());
    for (offset, name) in functions {
        let name = cut(name, limit);
        let place = match known.get(&name) {
            Some(place) => *place,
            None => {
                let place = u32::try_from(names_start + names.len()).ok()?;
                names.extend(u16::try_from(name.len()).ok()?.to_le_bytes());
                names.extend(name.bytes());
                known.insert(name, place);
                place
            }
        };
        table.extend(offset.to_le_bytes());
        table.extend(place.to_le_bytes());
    }
    table.extend(names);
    Some(table)
}

/// Cuts from the middle: the crate at the start and the function at the end tell most.
fn cut(name: &str, limit: usize) -> String {
    const GAP: &str = "..";
    if name.len() <= limit {
        return name.into();
    }
    let keep = limit.saturating_sub(GAP.len());
    let mut head = keep / 3;
    while !name.is_char_boundary(head) {
        head -= 1;
    }
    let mut tail = name.len() - (keep - head);
    while !name.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{}{GAP}{}", &name[..head], &name[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(table: &[u8], at: usize) -> usize {
        u32::from_le_bytes(table[at..at + 4].try_into().unwrap()) as usize
    }

    /// Reads a table as the kernel does.
    fn decode(table: &[u8]) -> Vec<(usize, String)> {
        assert_eq!(u32_at(table, 0), 0x4d59_534c);
        let entry = |n| {
            let (offset, name) = (u32_at(table, 8 + n * 8), u32_at(table, 12 + n * 8));
            let len = u16::from_le_bytes(table[name..name + 2].try_into().unwrap()) as usize;
            (
                offset,
                String::from_utf8(table[name + 2..name + 2 + len].to_vec()).unwrap(),
            )
        };
        (0..u32_at(table, 4)).map(entry).collect()
    }

    fn functions() -> BTreeMap<u32, String> {
        let name = |n: u32| format!("longshore::module_{}::a_rather_long_name_{}", n % 7, n % 50);
        (0..100).map(|n| (n * 16, name(n))).collect()
    }

    #[test]
    fn what_is_written_can_be_read() {
        let functions = functions();
        let (bytes, summary) = table(&functions, 1 << 20).unwrap();
        assert_eq!(summary.names_cut_to, None);
        let read = decode(&bytes);
        assert_eq!(read.len(), 100);
        assert!(
            read.iter()
                .zip(&functions)
                .all(|(a, (offset, name))| { a.0 == *offset as usize && a.1 == *name })
        );
    }

    #[test]
    fn names_are_cut_when_they_do_not_fit_and_it_is_said() {
        let functions = functions();
        let room = table(&functions, 1 << 20).unwrap().0.len() - 1;
        let (bytes, summary) = table(&functions, room).unwrap();
        let limit = summary.names_cut_to.unwrap();
        assert!(bytes.len() <= room && summary.to_string().contains("cut to"));
        let read = decode(&bytes);
        assert!(read.iter().all(|(_, name)| name.len() <= limit));
        assert!(read[1].1.starts_with("longshore::") && read[1].1.ends_with("_name_1"));
        assert!(table(&functions, 8 + 100 * 8).is_none());
    }

    #[test]
    fn names_are_cut_between_characters() {
        let name = "ä".repeat(100);
        for limit in 16..200 {
            assert!(cut(&name, limit).len() <= limit.max(name.len()));
        }
        assert_eq!(cut("short", 16), "short");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let error = embed(&std::env::current_exe().unwrap()).unwrap_err();
        assert!(error.message.contains(".ksyms"), "{error}");
        assert!(embed(Path::new("/nonexistent")).is_err());
        assert!(read_functions(b"not an ELF file").is_err());
    }
}
