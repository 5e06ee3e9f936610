//! Archives in the "newc" format of cpio, as Linux unpacks them into its first root file system.
//!
//! A header of 110 characters, hex fields of eight digits, then the name with a zero byte, then the
//! contents, each padded to four bytes; an entry `TRAILER!!!` ends it. Linux, "initramfs buffer
//! format".

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CONSOLE: u32 = 0o020_600;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// A directory; its parents must have been added before.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// A file that may be run.
    pub fn program(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, PROGRAM, (0, 0), contents);
    }

    /// The device node of the console, which the first program needs before it can make others.
    pub fn console(&mut self, path: &str) {
        self.entry(path, CONSOLE, (5, 1), &[]);
    }

    /// The archive, ended.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name = path.len() as u32 + 1;
        let fields = [
            self.entries, // inode
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            size,
            0, // device of the file
            0,
            device.0,
            device.1,
            name,
            0, // checksum: none in this format
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        let len = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(len, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_and_the_archive_ends() {
        let mut archive = Archive::default();
        archive.directory("d");
        archive.program("d/f", b"hello");
        archive.console("console");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("07070100000001000041ed"));
        let starts: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|at| at % 4 == 0));
        // The file: its size, the length of its name, its name and its contents.
        let file = &text[starts[1]..starts[2]];
        assert_eq!(&file[54..62], "00000005");
        assert_eq!(&file[94..102], "00000004");
        assert_eq!(&file[110..114], "d/f\0");
        assert_eq!(&file[116..121], "hello");
        // The console's numbers.
        assert_eq!(&text[starts[2] + 78..starts[2] + 94], "0000000500000001");
        assert!(text.contains("TRAILER!!!"));
    }
}
