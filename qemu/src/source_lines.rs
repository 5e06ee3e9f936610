//! From addresses in the kernel to lines of its source.

use std::path::{Path, PathBuf};

use addr2line::Loader;

use crate::failure::Failure;

/// Looks addresses up in an ELF file's line table.
pub struct SourceLines {
    loader: Loader,
    root: PathBuf,
}

impl SourceLines {
    /// Reads the line table of `elf`; paths under `root` are shown relative to it.
    pub fn load(elf: &Path, root: &Path) -> Result<Self, Failure> {
        let loader = Loader::new(elf)
            .map_err(|error| Failure::run(format!("{}: {error}", elf.display())))?;
        Ok(Self {
            loader,
            root: root.into(),
        })
    }

    /// `file:line` of an address; where functions were inlined there, the innermost place and the
    /// place in the function around it.
    pub fn find(&self, address: u64) -> Option<String> {
        // The look-up adds one to the address.
        address.checked_add(1)?;
        let mut places: Vec<String> = Vec::new();
        let mut frames = self.loader.find_frames(address).ok()?;
        while let Ok(Some(frame)) = frames.next() {
            if let Some(location) = frame.location
                && let (Some(file), Some(line)) = (location.file, location.line)
            {
                places.push(format!("{}:{line}", self.shorten(file)));
            }
        }
        match places.as_slice() {
            [] => None,
            [place] => Some(place.clone()),
            [inner, .., outer] => Some(format!("{inner} inlined at {outer}")),
        }
    }

    /// The name of the function at an address.
    pub fn function(&self, address: u64) -> Option<String> {
        let symbol = self.loader.find_symbol_info(address)?;
        let name = format!("{:#}", rustc_demangle::demangle(symbol.name()));
        Some(format!(
            "{name}+{:#x}",
            address.wrapping_sub(symbol.address())
        ))
    }

    fn shorten(&self, file: &str) -> String {
        if let Ok(relative) = Path::new(file).strip_prefix(&self.root) {
            return relative.to_string_lossy().into_owned();
        }
        // The standard library's and other crates' places on the builder's disk tell nobody anything.
        for mark in ["/library/", "/registry/src/"] {
            if let Some((_, rest)) = file.split_once(mark) {
                let registry = mark.starts_with("/registry");
                let rest = if registry {
                    rest.split_once('/').map_or(rest, |(_, r)| r)
                } else {
                    rest
                };
                return rest.into();
            }
        }
        file.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_own_code_is_found() {
        let exe = std::env::current_exe().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let lines = SourceLines::load(&exe, root).unwrap();
        // Some function of this crate's tests, by its address in the file.
        let image = std::fs::read(&exe).unwrap();
        let file = object::File::parse(image.as_slice()).unwrap();
        use object::{Object, ObjectSymbol};
        let symbol = file
            .symbols()
            .find(|symbol| {
                symbol
                    .name()
                    .is_ok_and(|name| name.contains("a_files_own_code_is"))
            })
            .unwrap();
        let place = lines.find(symbol.address()).unwrap();
        assert!(place.contains("qemu/src/source_lines.rs:"), "{place}");
        assert!(!place.starts_with('/'), "{place}");
        assert!(lines.function(symbol.address()).unwrap().ends_with("+0x0"));
        assert_eq!(lines.find(u64::MAX), None);
        assert_eq!(lines.find(u64::MAX - 1), None);
    }

    #[test]
    fn foreign_paths_are_shortened() {
        let exe = std::env::current_exe().unwrap();
        let lines = SourceLines::load(&exe, Path::new("/home/x")).unwrap();
        assert_eq!(lines.shorten("/home/x/kernel/src/a.rs"), "kernel/src/a.rs");
        assert_eq!(
            lines.shorten("/rustc/59807/library/core/src/fmt.rs"),
            "core/src/fmt.rs"
        );
        assert_eq!(
            lines.shorten("/c/registry/src/index-1/spin-0.12/src/lib.rs"),
            "spin-0.12/src/lib.rs"
        );
        assert_eq!(lines.shorten("/elsewhere/a.rs"), "/elsewhere/a.rs");
    }
}
