//! What the kernel says on its console, read while it passes through.
//!
//! [`Watch`] gets the bytes as they arrive and gives them back unchanged, but for two additions:
//! the lines of a backtrace get their source lines, and the first prompt is pointed out.

/// What the kernel shows when it takes commands.
pub const PROMPT: &str = "longshore> ";
/// The kernel's closing line when `run=` is done.
const RUN_SUMMARY: &str = "run: commands=";
/// Longest line that is looked at as a whole, in bytes; all of it is passed on.
const LINE_LIMIT: usize = 4096;

/// How a machine's `run=` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunSummary {
    /// Commands that ran.
    pub commands: u64,
    /// Commands that did not end in `ok`.
    pub failed: u64,
}

impl RunSummary {
    /// Reads `run: commands=N failed=N`.
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.trim_end().strip_prefix(RUN_SUMMARY)?;
        let (commands, failed) = rest.split_once(" failed=")?;
        Some(Self {
            commands: commands.parse().ok()?,
            failed: failed.parse().ok()?,
        })
    }
}

/// A line of a backtrace, `  #3 0xffffffff80112233 name+0x42`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// 0 is where the processor stopped; the others are return addresses.
    pub number: u32,
    /// Virtual address.
    pub address: u64,
}

impl Frame {
    /// Reads a line.
    pub fn parse(line: &str) -> Option<Self> {
        let (number, rest) = line.trim().strip_prefix('#')?.split_once(' ')?;
        let hex = rest.trim_start().strip_prefix("0x")?;
        let end = hex
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(hex.len());
        Some(Self {
            number: number.parse().ok()?,
            address: u64::from_str_radix(&hex[..end], 16).ok()?,
        })
    }

    /// The address to look up: a return address belongs to the instruction after the call.
    pub fn lookup_address(&self) -> u64 {
        if self.number == 0 {
            self.address
        } else {
            self.address.wrapping_sub(1)
        }
    }
}

/// Output to pass on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes for the terminal.
    Bytes(Vec<u8>),
    /// The first prompt comes next.
    FirstPrompt,
}

/// Reads the console as it passes through.
pub struct Watch<S> {
    source_of: S,
    line: Vec<u8>,
    held: Vec<u8>,
    prompt_seen: bool,
    panicked: bool,
    summary: Option<RunSummary>,
}

impl<S: FnMut(Frame) -> Option<String>> Watch<S> {
    /// `source_of` names the source line of a frame.
    pub fn new(source_of: S) -> Self {
        Self {
            source_of,
            line: Vec::new(),
            held: Vec::new(),
            prompt_seen: false,
            panicked: false,
            summary: None,
        }
    }

    /// Has a line begun with `PANIC`?
    pub fn panicked(&self) -> bool {
        self.panicked
    }

    /// The closing line of `run=`, once it was seen.
    pub fn summary(&self) -> Option<RunSummary> {
        self.summary
    }

    /// Takes bytes and gives what to pass on now. Until the first prompt, bytes that may be its
    /// beginning are held back; [`Self::release`] gives them after a moment.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut out = std::mem::take(&mut self.held);
        for &byte in bytes {
            if matches!(byte, b'\r' | b'\n') {
                out.extend(self.end_of_line().into_iter().flatten());
                out.push(byte);
                continue;
            }
            out.push(byte);
            if self.line.len() < LINE_LIMIT {
                self.line.push(byte);
            }
            if !self.prompt_seen && self.line == PROMPT.as_bytes() {
                self.prompt_seen = true;
                let prompt = out.split_off(out.len().saturating_sub(PROMPT.len()));
                pieces.extend((!out.is_empty()).then(|| Piece::Bytes(std::mem::take(&mut out))));
                pieces.push(Piece::FirstPrompt);
                out = prompt;
            }
        }
        if !self.prompt_seen && PROMPT.as_bytes().starts_with(&self.line) {
            let held = out.len().saturating_sub(self.line.len());
            self.held = out.split_off(held);
        }
        pieces.extend((!out.is_empty()).then_some(Piece::Bytes(out)));
        pieces
    }

    /// Gives what was held back.
    pub fn release(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Looks at the line that ends now; gives what to append to it.
    fn end_of_line(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        if line.starts_with("PANIC") {
            self.panicked = true;
        }
        if let Some(summary) = RunSummary::parse(&line) {
            self.summary = Some(summary);
        }
        let source = (self.source_of)(Frame::parse(&line)?)?;
        Some(format!("  ({source})").into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch<impl FnMut(Frame) -> Option<String>> {
        Watch::new(|frame| Some(format!("x.rs:{}", frame.number)))
    }

    fn text(pieces: &[Piece]) -> String {
        let text = |piece: &Piece| match piece {
            Piece::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            Piece::FirstPrompt => "<!>".into(),
        };
        pieces.iter().map(text).collect()
    }

    #[test]
    fn the_first_prompt_is_pointed_out_however_it_is_cut() {
        let all = b"hello\r\nlongshore> version\r\nok\r\nlongshore> ";
        for cut in 0..all.len() {
            let mut watch = watch();
            let mut pieces = watch.feed(&all[..cut]);
            pieces.extend(watch.feed(&all[cut..]));
            assert_eq!(
                text(&pieces),
                "hello\r\n<!>longshore> version\r\nok\r\nlongshore> "
            );
        }
        let mut watch = watch();
        let bytewise: Vec<_> = all.iter().flat_map(|byte| watch.feed(&[*byte])).collect();
        assert_eq!(
            text(&bytewise),
            "hello\r\n<!>longshore> version\r\nok\r\nlongshore> "
        );
    }

    #[test]
    fn held_bytes_are_not_lost() {
        let mut watch = watch();
        assert_eq!(text(&watch.feed(b"a\nlong")), "a\n");
        assert_eq!(watch.release(), b"long");
        assert_eq!(text(&watch.feed(b"er> ")), "er> ");
        assert_eq!(text(&watch.feed(b"\nlongshore")), "\n");
        let mut rest = text(&watch.feed(b"> "));
        rest.push_str(&String::from_utf8(watch.release()).unwrap());
        assert_eq!(rest, "<!>longshore> ");
    }

    #[test]
    fn the_prompts_text_inside_a_line_is_no_prompt() {
        assert_eq!(
            text(&watch().feed(b"say longshore> x\n")),
            "say longshore> x\n"
        );
    }

    #[test]
    fn frames_get_their_source_lines() {
        let mut watch = watch();
        let line = b"  #3 0xffffffff80112233 longshore::console::run+0x42\r\n#x 0x1 y\n# 1\n";
        assert_eq!(
            text(&watch.feed(line)),
            "  #3 0xffffffff80112233 longshore::console::run+0x42  (x.rs:3)\r\n#x 0x1 y\n# 1\n"
        );
        let frame = Frame::parse("  #3 0xffffffff80112233 a+0x4").unwrap();
        assert_eq!(frame.lookup_address(), 0xffffffff80112232);
        assert_eq!(Frame::parse("#0 0x10").unwrap().lookup_address(), 0x10);
        assert_eq!(Frame::parse("#0 0x"), None);
        assert_eq!(Frame::parse("#0 0x11112222333344445"), None);
    }

    #[test]
    fn verdicts_are_read_from_whole_lines_only() {
        let mut watch = watch();
        watch.feed(b"no PANIC here\r\nsay run: commands=1 failed=0\r\n");
        assert!(!watch.panicked() && watch.summary().is_none());
        watch.feed(b"run: commands=3 failed=1\r\nPANIC cpu=0 x at y\r\n");
        assert!(watch.panicked());
        assert_eq!(
            watch.summary(),
            Some(RunSummary {
                commands: 3,
                failed: 1
            })
        );
        assert_eq!(RunSummary::parse("run: commands=3 failed="), None);
    }

    #[test]
    fn bytes_pass_unchanged() {
        let bytes: Vec<u8> = (0..20_000u32).map(|n| (n * 7 % 256) as u8).collect();
        let mut watch = Watch::new(|_| None);
        let mut out = Vec::new();
        for chunk in bytes.chunks(13) {
            for piece in watch.feed(chunk) {
                if let Piece::Bytes(bytes) = piece {
                    out.extend(bytes);
                }
            }
        }
        out.extend(watch.release());
        assert!(out == bytes);
    }
}
