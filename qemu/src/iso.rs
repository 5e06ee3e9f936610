//! The bootable image: `boot/make-iso.sh`, given the kernel without what only debuggers read.
//!
//! GRUB loads each section that a file has beside its segments, and refuses one that says of itself
//! that it has none: one empty section is left.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use object::Endianness;
use object::read::elf::{ElfFile64, ProgramHeader};

use crate::failure::{Context, Failure};
use crate::qemu::script_output;

/// Where the image is.
pub const ISO: &str = "build/longshore.iso";
/// What it is made of, besides the kernel.
const PARTS: [&str; 2] = ["boot/grub.cfg", "boot/make-iso.sh"];

/// Makes the image, if it is older than what it is made of. Needs the current directory to be the
/// repository.
pub fn ensure(root: &Path, kernel: &str) -> Result<(), Failure> {
    let _lock = lock()?;
    let time = |path: &str| fs::metadata(path).and_then(|file| file.modified()).ok();
    let newest = PARTS.into_iter().chain([kernel]).map(time).max().flatten();
    match time(ISO) {
        Some(made) if newest.is_some_and(|newest| newest < made) => Ok(()),
        _ => build(root, kernel),
    }
}

/// Makes the image, and says what it is.
pub fn make(root: &Path, kernel: &str) -> Result<String, Failure> {
    let _lock = lock()?;
    build(root, kernel)?;
    let size = fs::metadata(ISO).context(ISO)?.len() >> 10;
    Ok(format!(
        "{ISO}: {size} KiB, for BIOS and UEFI, CD and USB stick; Secure Boot must be off"
    ))
}

/// One at a time.
fn lock() -> Result<File, Failure> {
    let path = format!("{ISO}.lock");
    let lock = File::create(&path).context(&path)?;
    lock.lock().context(&path)?;
    Ok(lock)
}

fn build(root: &Path, kernel: &str) -> Result<(), Failure> {
    let tools = script_output(&root.join("qemu/get-grub.sh"), &[])?;
    let image = fs::read(kernel).context(kernel)?;
    let stripped = strip(&image).ok_or_else(|| Failure::run(format!("{kernel}: no ELF file")))?;
    let file = PathBuf::from(format!("{ISO}.elf"));
    fs::write(&file, stripped).context(file.display())?;
    let script = root.join("boot/make-iso.sh");
    let made = Command::new(&script)
        .args([Path::new(tools.trim_end()), &file, Path::new(ISO)])
        .stdin(Stdio::null())
        .status();
    let _ = fs::remove_file(&file);
    match made.context(script.display())?.code() {
        Some(0) => Ok(()),
        status => Err(Failure::told(status.map_or(1, |status| status as u8))),
    }
}

/// The file as far as its segments go, and an empty section. ELF-64 Object File Format 1.5, 3 and 5.
fn strip(elf: &[u8]) -> Option<Vec<u8>> {
    const SECTION: usize = 64;
    let file = ElfFile64::<Endianness>::parse(elf).ok()?;
    let end = file
        .elf_program_headers()
        .iter()
        .map(|header| header.p_offset(file.endian()) + header.p_filesz(file.endian()));
    let mut image = elf.get(..usize::try_from(end.max()?).ok()?)?.to_vec();
    image.resize(image.len().next_multiple_of(8), 0);
    let sections = image.len() as u64;
    image.resize(image.len() + SECTION, 0);
    // e_shoff; e_shentsize, e_shnum and e_shstrndx.
    image
        .get_mut(40..48)?
        .copy_from_slice(&sections.to_le_bytes());
    image
        .get_mut(58..64)?
        .copy_from_slice(&[SECTION as u8, 0, 1, 0, 0, 0]);
    Some(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of one segment, `extra` bytes behind it.
    fn elf(extra: usize) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56 + 5 + extra];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &[2, 0, 62, 0, 1]);
        put(32, &[64]);
        put(40, &200u64.to_le_bytes());
        put(52, &[64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        put(64, &[1]);
        put(64 + 8, &120u64.to_le_bytes());
        put(64 + 32, &5u64.to_le_bytes());
        put(120, b"image");
        elf
    }

    #[test]
    fn segments_stay_and_all_else_goes() {
        let stripped = strip(&elf(1000)).unwrap();
        assert_eq!(stripped.len(), 128 + 64);
        assert_eq!(&stripped[120..128], b"image\0\0\0");
        assert_eq!(stripped[..40], elf(1000)[..40]);
        assert_eq!(stripped[40..48], 128u64.to_le_bytes(), "where sections are");
        assert_eq!(stripped[58..64], [64, 0, 1, 0, 0, 0], "one, and no names");
        assert!(strip(b"no ELF").is_none());
        let mut beyond = elf(0);
        beyond.truncate(123);
        assert!(strip(&beyond).is_none());
    }
}
