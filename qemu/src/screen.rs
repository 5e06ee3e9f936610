//! A machine's screen and keyboard: pictures taken and keys pressed by QMP. The letters on a picture
//! are found by comparing glyphs with those that the font's own crate draws.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::ascii::FONT_9X18_BOLD;
use embedded_graphics::pixelcolor::BinaryColor;
use embedded_graphics::prelude::Drawable;
use embedded_graphics::text::{Baseline, Text};
use serde_json::json;

use crate::failure::{Context, Failure};
use crate::qmp::Qmp;
use crate::run_dir::RunDir;

const WIDTH: usize = FONT_9X18_BOLD.character_size.width as usize;
const HEIGHT: usize = FONT_9X18_BOLD.character_size.height as usize;

/// Where the cursor stands.
pub const CURSOR: char = '\u{2588}';
/// A cell with something else than a letter.
pub const UNKNOWN: char = '\u{fffd}';

/// How long a key is held down, in milliseconds: QEMU presses one after the other.
const HOLD_MS: u32 = 30;
/// Keys pressed before one waits for what they do: a PS/2 keyboard of QEMU remembers eight.
const KEYS: usize = 4;

/// Rows of pixels, the leftmost in bit 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Glyph([u32; HEIGHT]);

impl OriginDimensions for Glyph {
    fn size(&self) -> Size {
        FONT_9X18_BOLD.character_size
    }
}

impl DrawTarget for Glyph {
    type Color = BinaryColor;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<BinaryColor>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Infallible> {
        for Pixel(at, colour) in pixels {
            if let Some(row) = self.0.get_mut(at.y as usize) {
                *row |= u32::from(colour.is_on()) << at.x;
            }
        }
        Ok(())
    }
}

/// A picture: width, height, and which pixels are bright.
struct Picture {
    width: usize,
    height: usize,
    bright: Vec<bool>,
}

impl Picture {
    /// Reads a binary PPM of 8 bits a colour.
    fn parse(ppm: &[u8]) -> Option<Self> {
        let mut rest = ppm.strip_prefix(b"P6")?;
        let mut number = || {
            let start = rest.iter().position(u8::is_ascii_digit)?;
            let len = rest[start..]
                .iter()
                .position(|byte| !byte.is_ascii_digit())?;
            let text = std::str::from_utf8(&rest[start..start + len]).ok()?;
            rest = &rest[start + len..];
            text.parse::<usize>().ok()
        };
        let (width, height, most) = (number()?, number()?, number()?);
        let pixels = rest.get(1..)?;
        let complete =
            most == 255 && Some(pixels.len()) == width.checked_mul(height)?.checked_mul(3);
        complete.then(|| Self {
            width,
            height,
            bright: pixels.chunks_exact(3).map(|rgb| rgb[1] >= 0x80).collect(),
        })
    }

    fn glyph(&self, column: usize, row: usize) -> Glyph {
        Glyph(std::array::from_fn(|y| {
            let start = (row * HEIGHT + y) * self.width + column * WIDTH;
            let pixels = self.bright[start..start + WIDTH].iter().enumerate();
            pixels.fold(0, |bits, (x, &bright)| bits | u32::from(bright) << x)
        }))
    }
}

/// The letters of the font.
fn alphabet() -> HashMap<Glyph, char> {
    let glyph = |letter: char| {
        let mut glyph = Glyph::default();
        let style = MonoTextStyle::new(&FONT_9X18_BOLD, BinaryColor::On);
        let text = letter.to_string();
        let _ = Text::with_baseline(&text, Point::zero(), style, Baseline::Top).draw(&mut glyph);
        (glyph, letter)
    };
    let full = Glyph([(1 << WIDTH) - 1; HEIGHT]);
    (' '..='~').map(glyph).chain([(full, CURSOR)]).collect()
}

/// The lines of a picture, without the blanks at their ends.
fn lines(picture: &Picture, alphabet: &HashMap<Glyph, char>) -> Vec<String> {
    let letter = |column, row| {
        let found = alphabet.get(&picture.glyph(column, row));
        found.copied().unwrap_or(UNKNOWN)
    };
    (0..picture.height / HEIGHT)
        .map(|row| {
            let line: String = (0..picture.width / WIDTH)
                .map(|column| letter(column, row))
                .collect();
            line.trim_end().into()
        })
        .collect()
}

/// What QEMU calls the keys for a letter of a US keyboard.
fn keys(letter: char) -> Option<Vec<String>> {
    let key = match letter {
        'a'..='z' | '0'..='9' => letter.to_string(),
        'A'..='Z' => return Some(vec!["shift".into(), letter.to_ascii_lowercase().into()]),
        ' ' => "spc".into(),
        '\n' => "ret".into(),
        '-' => "minus".into(),
        '=' => "equal".into(),
        '.' => "dot".into(),
        ';' => "semicolon".into(),
        _ => return None,
    };
    Some(vec![key])
}

/// The screen and the keyboard of a machine.
pub struct Screen {
    qmp: Qmp,
    file: PathBuf,
    alphabet: HashMap<Glyph, char>,
}

impl Screen {
    /// Those of the machine that runs there.
    pub fn of(run_dir: &RunDir, patience: Duration) -> Result<Self, Failure> {
        Ok(Self {
            qmp: Qmp::connect(&run_dir.qmp(), patience)?,
            file: run_dir.path().join("screen.ppm"),
            alphabet: alphabet(),
        })
    }

    /// The lines that it shows.
    pub fn lines(&mut self) -> Result<Vec<String>, Failure> {
        let file = self.file.to_string_lossy();
        self.qmp
            .execute("screendump", json!({ "filename": file }))?;
        let ppm = std::fs::read(&self.file).context(file)?;
        let picture = Picture::parse(&ppm).ok_or_else(|| Failure::run("no picture"))?;
        Ok(lines(&picture, &self.alphabet))
    }

    /// Waits until it shows what is `wanted`, and gives its lines.
    pub fn await_lines(
        &mut self,
        patience: Duration,
        wanted: impl Fn(&[String]) -> bool,
    ) -> Result<Vec<String>, Failure> {
        let deadline = Instant::now() + patience;
        loop {
            let lines = self.lines()?;
            // A picture may be taken while it is drawn: two alike are whole.
            if wanted(&lines) && self.lines()? == lines {
                return Ok(lines);
            }
            if Instant::now() >= deadline {
                return Err(Failure::run(format!(
                    "the screen shows\n{}",
                    lines.join("\n")
                )));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Presses keys together, by QEMU's names.
    pub fn press(&mut self, keys: &[&str]) -> Result<(), Failure> {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| json!({ "type": "qcode", "data": key }))
            .collect();
        self.qmp
            .execute("send-key", json!({ "keys": keys, "hold-time": HOLD_MS }))?;
        Ok(())
    }

    /// Types at the prompt, and return; waits for each piece to be echoed.
    pub fn type_line(
        &mut self,
        prompt: &str,
        text: &str,
        patience: Duration,
    ) -> Result<(), Failure> {
        let letters: Vec<char> = text.chars().collect();
        let mut echo = prompt.to_string();
        for piece in letters.chunks(KEYS) {
            for &letter in piece {
                let keys =
                    keys(letter).ok_or_else(|| Failure::run(format!("no key for {letter:?}")))?;
                self.press(&keys.iter().map(String::as_str).collect::<Vec<_>>())?;
                echo.push(letter);
            }
            let line = format!("{echo}{CURSOR}");
            self.await_lines(patience, |lines| lines.contains(&line))?;
        }
        self.press(&["ret"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_found_on_a_picture() {
        let text = "Longshore, 0x1234: {~}";
        let (width, height) = (text.len() * WIDTH + 4, 2 * HEIGHT + 3);
        let mut ppm = format!("P6\n{width} {height}\n255\n").into_bytes();
        let start = ppm.len();
        ppm.resize(start + 3 * width * height, 0);
        let alphabet = alphabet();
        for (column, letter) in text.chars().enumerate() {
            let (glyph, _) = alphabet
                .iter()
                .find(|(_, known)| **known == letter)
                .unwrap();
            for (y, row) in glyph.0.iter().enumerate() {
                for x in (0..WIDTH).filter(|x| row >> x & 1 != 0) {
                    let at = start + 3 * (y * width + column * WIDTH + x);
                    ppm[at..at + 3].fill(0xe0);
                }
            }
        }
        // A dot that belongs to no letter.
        ppm[start + 3 * (HEIGHT + 1) * width + 1] = 0xff;
        let picture = Picture::parse(&ppm).unwrap();
        assert_eq!(lines(&picture, &alphabet), [text, &UNKNOWN.to_string()]);
        assert_eq!(alphabet.len(), 96, "no two letters look alike");
    }

    #[test]
    fn files_that_are_no_pictures_are_told() {
        for bad in [
            &b""[..],
            b"P6",
            b"P6 2 2 255\n123",
            b"P5 1 1 255\n1",
            b"P6 1 1 65535\n123456",
        ] {
            assert!(Picture::parse(bad).is_none());
        }
        assert!(Picture::parse(b"P6\n1 1\n255\nabc").is_some());
    }
}
