//! A line editor: bytes in, terminal output and finished lines out.
//!
//! Understands the arrow, home, end and delete keys, Ctrl-A E B F D H K U W P N L C, a history
//! and completion. Everything is bounded.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

const LINE_MAX: usize = 1024;
const HISTORY_MAX: usize = 64;

/// What a byte led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Still editing.
    None,
    /// A line is finished.
    Line(String),
    /// Ctrl-C: the line was given up.
    Interrupt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Plain,
    Escape,
    /// After `ESC [`, with the number read so far.
    Bracket(u8),
}

/// A line being edited, and those before it.
#[derive(Debug)]
pub struct Editor {
    prompt: &'static str,
    line: Vec<u8>,
    cursor: usize,
    history: Vec<String>,
    /// Where in the history we are; its length for the line being typed.
    at: usize,
    typed: Vec<u8>,
    state: State,
    after_return: bool,
}

impl Editor {
    /// An empty line after `prompt`.
    pub fn new(prompt: &'static str) -> Self {
        Self {
            prompt,
            line: Vec::new(),
            cursor: 0,
            history: Vec::new(),
            at: 0,
            typed: Vec::new(),
            state: State::Plain,
            after_return: false,
        }
    }

    /// Takes a byte. What the terminal shall show is appended to `out`; `complete` gives the words
    /// that start with the one given.
    pub fn byte(
        &mut self,
        byte: u8,
        out: &mut String,
        complete: &dyn Fn(&str) -> Vec<&'static str>,
    ) -> Event {
        let after_return = core::mem::take(&mut self.after_return);
        match self.state {
            State::Plain => return self.plain(byte, after_return, out, complete),
            State::Escape => {
                self.state = if matches!(byte, b'[' | b'O') {
                    State::Bracket(0)
                } else {
                    State::Plain
                };
            }
            State::Bracket(number) => {
                if byte.is_ascii_digit() {
                    let number = number.wrapping_mul(10).wrapping_add(byte - b'0');
                    self.state = State::Bracket(number);
                } else {
                    self.state = State::Plain;
                    self.key(byte, number, out);
                }
            }
        }
        Event::None
    }

    fn plain(
        &mut self,
        byte: u8,
        after_return: bool,
        out: &mut String,
        complete: &dyn Fn(&str) -> Vec<&'static str>,
    ) -> Event {
        match byte {
            b'\n' if after_return => {}
            b'\r' | b'\n' => {
                self.after_return = byte == b'\r';
                out.push('\n');
                return Event::Line(self.finish());
            }
            3 => {
                out.push_str("^C\n");
                self.replace(Vec::new());
                self.at = self.history.len();
                return Event::Interrupt;
            }
            0x1b => self.state = State::Escape,
            b'\t' => self.complete(out, complete),
            0x7f | 8 if self.cursor > 0 => {
                self.cursor -= 1;
                self.line.remove(self.cursor);
                self.redraw(out);
            }
            1 => self.move_to(0, out),
            2 => self.move_to(self.cursor.saturating_sub(1), out),
            4 => self.delete(out),
            5 => self.move_to(self.line.len(), out),
            6 => self.move_to(self.cursor + 1, out),
            11 => {
                self.line.truncate(self.cursor);
                self.redraw(out);
            }
            12 => {
                out.push_str("\x1b[2J\x1b[H");
                self.redraw(out);
            }
            14 => self.browse(1, out),
            16 => self.browse(-1, out),
            21 => {
                self.line.drain(..self.cursor);
                self.cursor = 0;
                self.redraw(out);
            }
            23 => {
                let kept = &self.line[..self.cursor];
                let end = kept.iter().rposition(|&b| b != b' ').map_or(0, |p| p + 1);
                let start = kept[..end]
                    .iter()
                    .rposition(|&b| b == b' ')
                    .map_or(0, |p| p + 1);
                self.line.drain(start..self.cursor);
                self.cursor = start;
                self.redraw(out);
            }
            b' '..=b'~' if self.line.len() < LINE_MAX => {
                self.line.insert(self.cursor, byte);
                self.cursor += 1;
                if self.cursor == self.line.len() {
                    out.push(byte.into());
                } else {
                    self.redraw(out);
                }
            }
            _ => {}
        }
        Event::None
    }

    fn key(&mut self, byte: u8, number: u8, out: &mut String) {
        match (byte, number) {
            (b'A', _) => self.browse(-1, out),
            (b'B', _) => self.browse(1, out),
            (b'C', _) => self.move_to(self.cursor + 1, out),
            (b'D', _) => self.move_to(self.cursor.saturating_sub(1), out),
            (b'H', _) | (b'~', 1 | 7) => self.move_to(0, out),
            (b'F', _) | (b'~', 4 | 8) => self.move_to(self.line.len(), out),
            (b'~', 3) => self.delete(out),
            _ => {}
        }
    }

    fn delete(&mut self, out: &mut String) {
        if self.cursor < self.line.len() {
            self.line.remove(self.cursor);
            self.redraw(out);
        }
    }

    fn move_to(&mut self, cursor: usize, out: &mut String) {
        self.cursor = cursor.min(self.line.len());
        self.redraw(out);
    }

    fn finish(&mut self) -> String {
        let line = self.text();
        if !line.trim().is_empty() && self.history.last() != Some(&line) {
            if self.history.len() == HISTORY_MAX {
                self.history.remove(0);
            }
            self.history.push(line.clone());
        }
        self.replace(Vec::new());
        self.at = self.history.len();
        line
    }

    fn browse(&mut self, step: isize, out: &mut String) {
        let Some(at) = self
            .at
            .checked_add_signed(step)
            .filter(|&at| at <= self.history.len())
        else {
            return;
        };
        if self.at == self.history.len() {
            self.typed = self.line.clone();
        }
        self.at = at;
        let line = self
            .history
            .get(at)
            .map_or_else(|| self.typed.clone(), |line| line.clone().into());
        self.replace(line);
        self.redraw(out);
    }

    fn complete(&mut self, out: &mut String, complete: &dyn Fn(&str) -> Vec<&'static str>) {
        let before = &self.line[..self.cursor];
        let start = before
            .iter()
            .rposition(|&b| matches!(b, b' ' | b';'))
            .map_or(0, |p| p + 1);
        let word = String::from_utf8_lossy(&before[start..]).into_owned();
        let found = complete(&word);
        let Some(first) = found.first() else { return };
        let common = found.iter().fold(first.len(), |len, other| {
            first
                .bytes()
                .zip(other.bytes())
                .take(len)
                .take_while(|(a, b)| a == b)
                .count()
        });
        let mut rest = first.as_bytes()[word.len().min(common)..common].to_vec();
        if found.len() == 1 {
            rest.push(b' ');
        }
        if rest.is_empty() {
            out.push('\n');
            for name in found {
                let _ = write!(out, "{name}  ");
            }
            out.push('\n');
        }
        for byte in rest {
            if self.line.len() < LINE_MAX {
                self.line.insert(self.cursor, byte);
                self.cursor += 1;
            }
        }
        self.redraw(out);
    }

    fn replace(&mut self, line: Vec<u8>) {
        self.cursor = line.len();
        self.line = line;
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.line).into_owned()
    }

    /// Draws prompt and line anew, and puts the cursor where it belongs.
    pub fn redraw(&self, out: &mut String) {
        let _ = write!(out, "\r{}{}\x1b[K", self.prompt, self.text());
        let back = self.line.len() - self.cursor;
        if back > 0 {
            let _ = write!(out, "\x1b[{back}D");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(word: &str) -> Vec<&'static str> {
        ["dma", "dmatest", "dmesg", "help"]
            .into_iter()
            .filter(|n| n.starts_with(word))
            .collect()
    }

    fn type_in(editor: &mut Editor, bytes: &[u8]) -> (Vec<Event>, String) {
        let mut out = String::new();
        let events = bytes
            .iter()
            .map(|&byte| editor.byte(byte, &mut out, &complete))
            .filter(|event| *event != Event::None)
            .collect();
        (events, out)
    }

    fn line(bytes: &[u8]) -> String {
        match type_in(&mut Editor::new("> "), &[bytes, b"\r"].concat())
            .0
            .pop()
        {
            Some(Event::Line(line)) => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_edit_the_line() {
        assert_eq!(line(b"abc\x7fd"), "abd");
        assert_eq!(line(b"bc\x1b[D\x1b[Da"), "abc");
        assert_eq!(line(b"bc\x01a\x05d"), "abcd");
        assert_eq!(line(b"one two  \x17three"), "one three");
        assert_eq!(line(b"abc\x02\x0b"), "ab");
        assert_eq!(line(b"abc\x02\x15"), "c");
        assert_eq!(line(b"abc\x1b[H\x1b[3~"), "bc");
        assert_eq!(line(b"abc\x01\x04\x1b[F!"), "bc!");
    }

    #[test]
    fn returns_and_line_feeds_end_one_line_each() {
        let (events, _) = type_in(&mut Editor::new(""), b"a\r\nb\n\nc\r");
        let lines = ["a", "b", "", "c"].map(|line| Event::Line(line.into()));
        assert_eq!(events, lines);
    }

    #[test]
    fn history_is_browsed_and_the_typed_line_kept() {
        let mut editor = Editor::new("");
        type_in(&mut editor, b"one\rtwo\rtwo\r");
        let (events, _) = type_in(&mut editor, b"new\x1b[A\x1b[A\x1b[A\x1b[B\x1b[B\r");
        assert_eq!(events, [Event::Line("new".into())]);
        let (events, _) = type_in(&mut editor, b"\x10\x10\x10\r");
        assert_eq!(events, [Event::Line("one".into())]);
    }

    #[test]
    fn completion_goes_as_far_as_it_is_sure() {
        assert_eq!(line(b"he\t"), "help ");
        assert_eq!(line(b"dmat\t"), "dmatest ");
        assert_eq!(line(b"d\t"), "dm");
        assert_eq!(line(b"x\t"), "x");
        assert_eq!(line(b"help;dme\t"), "help;dmesg ");
        let (_, out) = type_in(&mut Editor::new("> "), b"dm\t");
        assert!(out.contains("dma  dmatest  dmesg"), "{out}");
    }

    #[test]
    fn ctrl_c_gives_the_line_up() {
        let (events, out) = type_in(&mut Editor::new("> "), b"abc\x03d\r");
        assert_eq!(events, [Event::Interrupt, Event::Line("d".into())]);
        assert!(out.contains("^C"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let mut editor = Editor::new("> ");
            type_in(&mut editor, &bytes);
            proptest::prop_assert!(editor.cursor <= editor.line.len());
        }
    }
}
