//! Text in cells, as a terminal keeps it: what is visible, and what has left at the top.
//!
//! Understands carriage return, line feed (which returns as well), backspace and tab, and of the
//! escape sequences those that the line editor sends (ECMA-48: ED 2, EL 0, CUP home, CUB); all
//! others, colours among them, are read over. Any bytes are survived, and none takes memory.

use alloc::vec::Vec;

use super::font::LETTERS;

/// Lines that are kept above the visible ones.
pub const HISTORY: usize = 500;
const BLANK: u8 = b' ';

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Plain,
    Escape,
    /// After `ESC [`, with the first number read so far.
    Bracket(u16),
}

/// A screen of text, and its history.
pub struct Text {
    columns: usize,
    rows: usize,
    /// A ring of lines.
    cells: Vec<u8>,
    /// Where in the ring the uppermost visible line is, when nobody looks back.
    top: usize,
    /// Lines above it.
    above: usize,
    /// Lines by which people look back.
    back: usize,
    /// The cursor; `x` is `columns` when the line is full and the next letter begins another.
    x: usize,
    y: usize,
    state: State,
    /// Lines by which a full screen moves up at once.
    step: usize,
}

impl Text {
    /// An empty screen, with at least one cell.
    pub fn new(columns: usize, rows: usize) -> Self {
        let (columns, rows) = (columns.max(1), rows.max(1));
        Self {
            columns,
            rows,
            cells: alloc::vec![BLANK; columns * (rows + HISTORY)],
            top: 0,
            above: 0,
            back: 0,
            x: 0,
            y: 0,
            state: State::Plain,
            step: 1,
        }
    }

    /// Cells in a line.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Lines that are visible.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// By how many lines a full screen moves up at once: more than one for those who print faster
    /// than it is worth drawing.
    pub fn set_step(&mut self, step: usize) {
        self.step = step.clamp(1, self.rows);
    }

    /// Takes bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.byte(byte);
        }
    }

    fn byte(&mut self, byte: u8) {
        match (self.state, byte) {
            // Controls work, and end a sequence.
            (_, ..b' ' | 0x7f) => {
                self.state = State::Plain;
                match byte {
                    b'\n' => {
                        self.x = 0;
                        self.feed();
                    }
                    b'\r' => self.x = 0,
                    8 => self.x = self.column().saturating_sub(1),
                    b'\t' => self.x = (self.x / 8 * 8 + 8).min(self.columns),
                    0x1b => self.state = State::Escape,
                    _ => {}
                }
            }
            (State::Escape, b'[') => self.state = State::Bracket(0),
            (State::Escape, _) => self.state = State::Plain,
            (State::Bracket(number), b'0'..=b'9') => {
                let digit = u16::from(byte - b'0');
                self.state = State::Bracket(number.saturating_mul(10).saturating_add(digit));
            }
            (State::Bracket(_), b' '..=b'?') => {}
            (State::Bracket(number), _) => {
                self.state = State::Plain;
                self.sequence(byte, number.into());
            }
            // UTF-8: one cell for its first byte.
            (State::Plain, 0x80..=0xbf) => {}
            (State::Plain, _) => {
                if self.x >= self.columns {
                    self.x = 0;
                    self.feed();
                }
                let letter = if LETTERS.contains(&byte) { byte } else { b'?' };
                let x = self.x;
                if let Some(cell) = self.line_mut(self.y).get_mut(x) {
                    *cell = letter;
                }
                self.x += 1;
            }
        }
    }

    fn sequence(&mut self, last: u8, number: usize) {
        match (last, number) {
            (b'J', 2) => {
                // What was there can be looked for.
                self.scroll(self.y + 1);
                for y in 0..self.rows {
                    self.line_mut(y).fill(BLANK);
                }
            }
            (b'K', 0) => {
                let x = self.x;
                if let Some(rest) = self.line_mut(self.y).get_mut(x..) {
                    rest.fill(BLANK);
                }
            }
            (b'H', 0) => (self.x, self.y) = (0, 0),
            (b'D', _) => self.x = self.column().saturating_sub(number.max(1)),
            _ => {}
        }
    }

    /// One line down; at the bottom, everything up.
    fn feed(&mut self) {
        if self.y + 1 < self.rows {
            self.y += 1;
            return;
        }
        self.scroll(self.step);
        for y in self.rows - self.step..self.rows {
            self.line_mut(y).fill(BLANK);
        }
        self.y = self.rows - self.step;
    }

    /// Has lines leave at the top.
    fn scroll(&mut self, lines: usize) {
        self.top = (self.top + lines) % self.lines();
        self.above = (self.above + lines).min(HISTORY);
        // Who looks back goes on seeing the same lines, as long as they are kept.
        if self.back > 0 {
            self.back = (self.back + lines).min(self.above);
        }
    }

    /// The cursor's column, which is the last one where a line is full.
    fn column(&self) -> usize {
        self.x.min(self.columns - 1)
    }

    fn lines(&self) -> usize {
        self.rows + HISTORY
    }

    fn line_mut(&mut self, y: usize) -> &mut [u8] {
        let start = (self.top + y) % self.lines() * self.columns;
        &mut self.cells[start..][..self.columns]
    }

    /// A line of what people see, which is not the newest where they look back.
    pub fn line(&self, y: usize) -> &[u8] {
        let start = (self.top + self.lines() - self.back + y) % self.lines() * self.columns;
        &self.cells[start..][..self.columns]
    }

    /// The cursor's column and row, where it is visible.
    pub fn cursor(&self) -> Option<(usize, usize)> {
        let y = self.y + self.back;
        (y < self.rows).then(|| (self.column(), y))
    }

    /// Looks back by half a screen, or forward again. Says whether that changes anything.
    pub fn look(&mut self, back: bool) -> bool {
        let half = (self.rows / 2).max(1);
        let to = if back {
            (self.back + half).min(self.above)
        } else {
            self.back.saturating_sub(half)
        };
        core::mem::replace(&mut self.back, to) != to
    }

    /// Looks at the newest lines. Says whether that changes anything.
    pub fn look_ahead(&mut self) -> bool {
        core::mem::take(&mut self.back) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::{String, ToString};

    fn seen(text: &Text) -> Vec<String> {
        (0..text.rows())
            .map(|y| String::from_utf8_lossy(text.line(y)).trim_end().to_string())
            .collect()
    }

    fn written(columns: usize, rows: usize, bytes: &[u8]) -> Text {
        let mut text = Text::new(columns, rows);
        text.write(bytes);
        text
    }

    #[test]
    fn lines_follow_each_other_and_wrap() {
        let text = written(5, 4, b"one\nfourteen\r\n!");
        assert_eq!(seen(&text), ["one", "fourt", "een", "!"]);
        assert_eq!(text.cursor(), Some((1, 3)));
    }

    #[test]
    fn a_full_line_wraps_with_the_next_letter_only() {
        let mut text = written(4, 2, b"four\n");
        assert_eq!(text.cursor(), Some((0, 1)));
        text.write(b"full\x08!");
        assert_eq!(seen(&text), ["four", "fu!l"]);
    }

    #[test]
    fn what_leaves_at_the_top_is_found_by_looking_back() {
        let mut text = written(8, 4, b"1\n2\n3\n4\n5\n6\n7");
        assert_eq!(seen(&text), ["4", "5", "6", "7"]);
        assert!(text.look(true));
        assert_eq!(seen(&text), ["2", "3", "4", "5"]);
        assert_eq!(text.cursor(), None);
        // What is printed meanwhile moves nothing.
        text.write(b"\n8");
        assert_eq!(seen(&text), ["2", "3", "4", "5"]);
        assert!(text.look(true));
        assert!(!text.look(true));
        assert_eq!(seen(&text), ["1", "2", "3", "4"]);
        assert!(text.look(false));
        assert_eq!(seen(&text), ["3", "4", "5", "6"]);
        assert!(text.look_ahead());
        assert!(!text.look_ahead() && !text.look(false));
        assert_eq!(seen(&text), ["5", "6", "7", "8"]);
    }

    #[test]
    fn history_ends_with_its_oldest_line() {
        let mut text = Text::new(8, 3);
        for line in 0..2 * HISTORY {
            text.write(alloc::format!("{line}\n").as_bytes());
        }
        while text.look(true) {}
        let oldest = 2 * HISTORY - HISTORY - 2;
        assert_eq!(seen(&text)[0], alloc::format!("{oldest}"));
    }

    #[test]
    fn a_full_screen_moves_up_by_steps() {
        let mut text = Text::new(8, 4);
        text.set_step(2);
        text.write(b"1\n2\n3\n4\n5");
        assert_eq!(seen(&text), ["3", "4", "5", ""]);
        text.set_step(99);
        text.write(b"\n6\n7");
        assert_eq!(seen(&text), ["7", "", "", ""]);
    }

    #[test]
    fn sequences_of_the_line_editor_work() {
        let mut text = written(20, 3, b"\r> abc\x1b[K\x1b[2DX");
        assert_eq!(seen(&text)[0], "> aXc");
        text.write(b"\r> \x1b[K");
        assert_eq!(seen(&text)[0], ">");
        text.write(b"x\x1b[2J\x1b[Htop");
        assert_eq!(seen(&text), ["top", "", ""]);
        assert!(text.look(true));
        assert_eq!(seen(&text), ["> x", "top", ""]);
    }

    #[test]
    fn other_sequences_leave_no_trace() {
        let text = written(
            20,
            2,
            b"a\x1b[1;31mb\x1b[0mc\x1b(B\x1b[?25ld\x1b[99999999999De",
        );
        assert_eq!(seen(&text)[0], "ebcBd");
        let text = written(20, 2, b"a\x1b[12\nb\x07c");
        assert_eq!(seen(&text), ["a", "bc"]);
    }

    #[test]
    fn what_is_no_ascii_takes_one_cell() {
        assert_eq!(
            seen(&written(20, 1, "a\u{e4}\u{20ac}z".as_bytes()))[0],
            "a??z"
        );
        assert_eq!(seen(&written(20, 1, b"a\tb\tc"))[0], "a       b       c");
    }

    /// What a terminal without tricks would show: a list of lines, printable bytes and line feeds.
    fn expected(columns: usize, rows: usize, bytes: &[u8]) -> Vec<String> {
        let mut lines = alloc::vec![String::new()];
        for &byte in bytes {
            let last = lines.last_mut().unwrap();
            match byte {
                b'\n' => lines.push(String::new()),
                _ if last.len() < columns => last.push(byte.into()),
                _ => lines.push(String::from(char::from(byte))),
            }
        }
        let mut seen = lines.split_off(lines.len().saturating_sub(rows));
        seen.resize(rows, String::new());
        seen.iter()
            .map(|line| line.trim_end().to_string())
            .collect()
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(
            columns in 0usize..40,
            rows in 0usize..12,
            steps: Vec<(Vec<u8>, u8)>,
        ) {
            let mut text = Text::new(columns, rows);
            for (bytes, what) in steps {
                text.set_step(what.into());
                text.write(&bytes);
                match what % 4 {
                    0 => drop(text.look(true)),
                    1 => drop(text.look(false)),
                    2 => drop(text.look_ahead()),
                    _ => {}
                }
                for y in 0..text.rows() {
                    let line = text.line(y);
                    proptest::prop_assert_eq!(line.len(), text.columns());
                    proptest::prop_assert!(line.iter().all(|cell| LETTERS.contains(cell)));
                }
                if let Some((x, y)) = text.cursor() {
                    proptest::prop_assert!(x < text.columns() && y < text.rows());
                }
            }
        }

        #[test]
        fn plain_text_looks_as_anywhere(
            columns in 1usize..30,
            rows in 1usize..10,
            text in "[ -~\n]{0,400}",
        ) {
            let shown = seen(&written(columns, rows, text.as_bytes()));
            proptest::prop_assert_eq!(shown, expected(columns, rows, text.as_bytes()));
        }
    }
}
