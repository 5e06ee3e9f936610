//! The screen as a console: text on a framebuffer that firmware left.
//!
//! [`text`] keeps what is written, [`font`] has the letters, [`pixels`] the memory. Cells are drawn
//! where they differ from what was drawn last, which is kept in memory, for video memory is never
//! read: a screen that scrolls is drawn without being moved. Owned by [`console`], whose lock is
//! taken in task context alone.

#[cfg(target_os = "none")]
pub mod console;
pub mod font;
pub mod pixels;
pub mod text;

use alloc::vec::Vec;

use font::{Font, HEIGHT, WIDTH};
use pixels::Pixels;
use text::Text;

/// No screen has more columns or rows of text.
const CELLS_MAX: (usize, usize) = (400, 200);
/// Marks the cell of the cursor, which is drawn inverted.
const CURSOR: u8 = 0x80;

/// Text, and how much of it has been drawn.
pub struct Screen {
    text: Text,
    font: Font,
    pixels: Pixels,
    /// What each cell shows.
    drawn: Vec<u8>,
}

impl Screen {
    /// A cleared screen. Pixels beyond the last whole cell are left as they are.
    pub fn new(pixels: Pixels) -> Self {
        let geometry = pixels.geometry();
        let columns = (geometry.width / WIDTH).min(CELLS_MAX.0);
        let rows = (geometry.height / HEIGHT).min(CELLS_MAX.1);
        let text = Text::new(columns, rows);
        let cells = text.columns() * text.rows();
        let mut screen = Self {
            text,
            font: Font::new(),
            pixels,
            // Shown by no cell, so that all are drawn.
            drawn: alloc::vec![0; cells],
        };
        screen.draw();
        screen
    }

    /// The text.
    pub fn text(&mut self) -> &mut Text {
        &mut self.text
    }

    /// Has the next drawing draw everything.
    pub fn forget(&mut self) {
        self.drawn.fill(0);
    }

    /// Draws what has changed.
    pub fn draw(&mut self) {
        let Self {
            text,
            font,
            pixels,
            drawn,
        } = self;
        let cursor = text.cursor();
        for (y, drawn) in drawn.chunks_exact_mut(text.columns()).enumerate() {
            let line = text.line(y);
            let mark = cursor.filter(|at| at.1 == y).map(|at| at.0);
            let wanted = |x: usize| line[x] | if mark == Some(x) { CURSOR } else { 0 };
            let mut x = 0;
            while x < drawn.len() {
                // The cells up to the next one that is right.
                let start = x;
                while x < drawn.len() && drawn[x] != wanted(x) {
                    drawn[x] = wanted(x);
                    x += 1;
                }
                if x > start {
                    draw_cells(font, pixels, (start, y), &drawn[start..x]);
                } else {
                    x += 1;
                }
            }
        }
    }
}

/// Draws neighbouring cells, row of pixels by row of pixels.
fn draw_cells(font: &Font, pixels: &mut Pixels, (x, y): (usize, usize), cells: &[u8]) {
    for row in 0..HEIGHT {
        let lit = cells.iter().flat_map(|&cell| {
            let inverted = cell & CURSOR != 0;
            let bits = font.row(cell & !CURSOR, row);
            (0..WIDTH).map(move |x| (bits >> x & 1 != 0) != inverted)
        });
        pixels.put(x * WIDTH, y * HEIGHT + row, lit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_info::{BootInfo, Framebuffer, Region, RegionKind};
    use alloc::string::String;
    use embedded_graphics::Pixel;
    use embedded_graphics::draw_target::DrawTarget;
    use embedded_graphics::geometry::{OriginDimensions, Point, Size};
    use embedded_graphics::mono_font::{MonoTextStyle, ascii::FONT_9X18_BOLD};
    use embedded_graphics::pixelcolor::BinaryColor;
    use embedded_graphics::prelude::Drawable;
    use embedded_graphics::text::{Baseline, Text as Drawing};
    use pixels::{Geometry, Refused, check};

    /// Colour masks by bits of a pixel, as firmware tends to have them.
    fn told(bits: u8, width: u32, height: u32, more: u32) -> Framebuffer {
        Framebuffer {
            address: 0x8000_0000,
            pitch: width * u32::from(bits.div_ceil(8)) + more,
            width,
            height,
            bits,
            colours: match bits {
                15 => [(10, 5), (5, 5), (0, 5)],
                16 => [(11, 5), (5, 6), (0, 5)],
                _ => [(16, 8), (8, 8), (0, 8)],
            },
        }
    }

    /// What memory that nothing was written to holds.
    const UNTOUCHED: u8 = 0x5a;

    /// A screen on memory of the host, with a margin of `EDGE` bytes behind.
    struct Played {
        told: Framebuffer,
        memory: Vec<u8>,
        screen: Screen,
    }

    const EDGE: usize = 64;

    impl Played {
        fn new(told: Framebuffer) -> Self {
            let geometry = Geometry::new(&told).unwrap();
            let mut memory = alloc::vec![UNTOUCHED; geometry.bytes() + EDGE];
            // SAFETY: the vector's own memory, which does not move; it is looked at while nothing
            // is drawn.
            let pixels = unsafe { Pixels::new(geometry, memory.as_mut_ptr()) };
            Self {
                told,
                memory,
                screen: Screen::new(pixels),
            }
        }

        fn write(&mut self, bytes: &[u8]) {
            self.screen.text().write(bytes);
            self.screen.draw();
        }

        fn lit(&self, x: usize, y: usize) -> bool {
            let size = usize::from(self.told.bits.div_ceil(8));
            let at = y * self.told.pitch as usize + x * size;
            let pixel = &self.memory[at..at + size];
            let value = pixel
                .iter()
                .rev()
                .fold(0u32, |value, &b| value << 8 | u32::from(b));
            assert!(
                value == 0
                    || self.told.colours.iter().all(|&(low, bits)| {
                        (value >> low) & ((1 << bits) - 1) == 0xe0 >> (8 - bits)
                    }),
                "a pixel that is neither of a letter nor beside one: {value:#x}"
            );
            value != 0
        }

        /// The text on it, by comparing glyphs; the cursor's cell is `_`.
        fn read(&self) -> Vec<String> {
            let cell = |column: usize, row: usize| {
                let rows: Vec<u16> = (0..HEIGHT)
                    .map(|y| {
                        (0..WIDTH).fold(0, |bits, x| {
                            bits | u16::from(self.lit(column * WIDTH + x, row * HEIGHT + y)) << x
                        })
                    })
                    .collect();
                if rows.iter().all(|&row| row == (1 << WIDTH) - 1) {
                    return '_';
                }
                let known = LETTERS.with(|all| {
                    all.iter()
                        .find(|(_, glyph)| *glyph == rows)
                        .map(|(letter, _)| *letter)
                });
                known.unwrap_or('\u{fffd}')
            };
            let (columns, rows) = (
                self.told.width as usize / WIDTH,
                self.told.height as usize / HEIGHT,
            );
            (0..rows)
                .map(|row| {
                    let line: String = (0..columns).map(|column| cell(column, row)).collect();
                    String::from(line.trim_end())
                })
                .collect()
        }
    }

    std::thread_local! {
        /// Every letter as `embedded-graphics` itself draws it.
        static LETTERS: Vec<(char, Vec<u16>)> = font::LETTERS
            .map(|letter| {
                let mut rows = Rows(alloc::vec![0; HEIGHT]);
                let style = MonoTextStyle::new(&FONT_9X18_BOLD, BinaryColor::On);
                let text = String::from(char::from(letter));
                Drawing::with_baseline(&text, Point::zero(), style, Baseline::Top)
                    .draw(&mut rows)
                    .unwrap();
                (char::from(letter), rows.0)
            })
            .collect();
    }

    struct Rows(Vec<u16>);

    impl OriginDimensions for Rows {
        fn size(&self) -> Size {
            Size::new(WIDTH as u32, HEIGHT as u32)
        }
    }

    impl DrawTarget for Rows {
        type Color = BinaryColor;
        type Error = core::convert::Infallible;

        fn draw_iter<I: IntoIterator<Item = Pixel<BinaryColor>>>(
            &mut self,
            pixels: I,
        ) -> Result<(), Self::Error> {
            for Pixel(at, colour) in pixels {
                if colour == BinaryColor::On {
                    self.0[at.y as usize] |= 1 << at.x;
                }
            }
            Ok(())
        }
    }

    /// A screen of so many cells, and a few pixels more.
    fn cells(bits: u8, columns: usize, rows: usize) -> Framebuffer {
        told(
            bits,
            (columns * WIDTH + 5) as u32,
            (rows * HEIGHT + 7) as u32,
            12,
        )
    }

    #[test]
    fn every_letter_is_drawn_in_every_format() {
        for bits in [15, 16, 24, 32] {
            let mut played = Played::new(cells(bits, 40, 4));
            let letters: Vec<u8> = font::LETTERS.collect();
            played.write(&letters);
            let shown = played.read().concat();
            assert!(shown.starts_with(" !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFG"));
            let all = String::from_utf8(letters).unwrap();
            assert_eq!(shown.trim_end_matches('_'), all, "{bits} bits");
        }
    }

    #[test]
    fn scrolling_and_looking_back_show_on_the_screen() {
        let mut played = Played::new(cells(32, 10, 3));
        played.write(b"one\ntwo\nthree\nfour");
        assert_eq!(played.read(), ["two", "three", "four_"]);
        played.screen.text().look(true);
        played.screen.draw();
        assert_eq!(played.read(), ["one", "two", "three"]);
        played.screen.text().look_ahead();
        played.write(b"\r\x1b[K");
        assert_eq!(played.read(), ["two", "three", "_"]);
    }

    #[test]
    fn what_does_not_change_is_not_drawn_again() {
        let mut played = Played::new(cells(32, 10, 3));
        played.write(b"same\nsame\nlast");
        // Behind the screen's back.
        played.memory.fill(UNTOUCHED);
        played.write(b"\r");
        let drawn = played
            .memory
            .iter()
            .filter(|&&byte| byte != UNTOUCHED)
            .count();
        assert_eq!(
            drawn,
            2 * WIDTH * HEIGHT * 4,
            "the cursor left a cell for another"
        );
    }

    #[test]
    fn nothing_is_written_beside_the_cells() {
        for bits in [15, 24, 32] {
            let mut played = Played::new(cells(bits, 7, 2));
            played.write(&[b'#'; 200]);
            let size = usize::from(bits.div_ceil(8));
            let pitch = played.told.pitch as usize;
            for (at, byte) in played.memory.iter().enumerate() {
                let inside = at % pitch < 7 * WIDTH * size && at / pitch < 2 * HEIGHT;
                assert!(inside || *byte == UNTOUCHED, "byte {at} at {bits} bits");
            }
        }
    }

    #[test]
    fn screens_smaller_than_a_letter_are_harmless() {
        for (width, height) in [(1, 1), (WIDTH as u32 - 1, 40), (40, HEIGHT as u32 - 1)] {
            let mut played = Played::new(told(24, width, height, 0));
            played.write(b"text\nand more");
            let end = played.memory.len() - EDGE;
            assert!(played.memory[end..].iter().all(|&byte| byte == UNTOUCHED));
        }
    }

    #[test]
    fn absurd_framebuffers_are_refused() {
        let good = told(32, 1024, 768, 0);
        assert!(Geometry::new(&good).is_ok());
        let refused = |change: fn(&mut Framebuffer)| {
            let mut bad = good;
            change(&mut bad);
            Geometry::new(&bad).unwrap_err()
        };
        assert_eq!(refused(|f| f.bits = 8), Refused::Format);
        assert_eq!(refused(|f| f.bits = 0), Refused::Format);
        assert_eq!(refused(|f| f.bits = 64), Refused::Format);
        assert_eq!(refused(|f| f.colours[1] = (8, 0)), Refused::Format);
        assert_eq!(refused(|f| f.colours[0] = (25, 8)), Refused::Format);
        assert_eq!(refused(|f| f.colours[0] = (255, 255)), Refused::Format);
        assert_eq!(refused(|f| f.pitch = 4095), Refused::Size);
        assert_eq!(refused(|f| f.width = 0), Refused::Size);
        assert_eq!(refused(|f| f.height = 0), Refused::Size);
        assert_eq!(refused(|f| f.height = u32::MAX), Refused::Size);
        assert_eq!(
            refused(|f| (f.width, f.pitch) = (u32::MAX, u32::MAX)),
            Refused::Size
        );
        assert_eq!(
            refused(|f| f.height = 16385),
            Refused::Size,
            "more than 64 MiB"
        );
        assert_eq!(refused(|f| f.address = u64::MAX - 4096), Refused::Address);
        assert_eq!(refused(|f| f.address = 0), Refused::Address);
    }

    #[test]
    fn a_framebuffer_in_memory_of_ours_is_refused() {
        let screen = told(32, 640, 480, 0);
        let mut info = BootInfo::new("test");
        let mut add = |start, len, kind| info.add_region(Region { start, len, kind });
        add(0, 0x8000_0000, RegionKind::Usable);
        add(0x8000_0000, 0x100_0000, RegionKind::Reserved);
        add(1 << 32, 1 << 32, RegionKind::Usable);
        assert!(check(&screen, &info).is_ok());
        for address in [0x1000, 0x7fff_ffff, (1 << 32) - 1, 1 << 32] {
            let moved = Framebuffer { address, ..screen };
            assert_eq!(check(&moved, &info), Err(Refused::Address), "{address:#x}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

        /// Whatever a loader tells is refused, or can be drawn on.
        #[test]
        fn any_geometry_is_refused_or_drawn_on(
            bits in proptest::prop_oneof![0u8..=40, proptest::strategy::Just(32)],
            size in (0u32..200, 0u32..80),
            pitch in proptest::prop_oneof![0u32..1000, proptest::prelude::any::<u32>()],
            colours: [(u8, u8); 3],
            usual: bool,
            text: Vec<u8>,
        ) {
            let usual_colours = told(bits, 1, 1, 0).colours;
            let told = Framebuffer {
                address: 0x1000,
                pitch,
                width: size.0,
                height: size.1,
                bits,
                colours: if usual { usual_colours } else { colours },
            };
            if let Ok(geometry) = Geometry::new(&told) {
                proptest::prop_assert!(geometry.bytes() <= 64 << 20);
                let mut played = Played::new(told);
                played.write(&text);
                let end = played.memory.len() - EDGE;
                proptest::prop_assert!(played.memory[end..].iter().all(|&b| b == UNTOUCHED));
            }
        }

        /// What is on the screen is what the text says, whatever was written in whatever pieces.
        #[test]
        fn the_screen_shows_the_text(
            bits in proptest::sample::select(&[15u8, 16, 24, 32][..]),
            columns in 1usize..20,
            rows in 1usize..6,
            pieces: Vec<(Vec<u8>, u8)>,
        ) {
            let mut played = Played::new(cells(bits, columns, rows));
            for (piece, what) in pieces {
                played.screen.text().set_step(usize::from(what) + 1);
                played.write(&piece);
                if what % 3 == 0 {
                    played.screen.text().look(what % 2 == 0);
                    played.screen.draw();
                }
            }
            let text = played.screen.text();
            let cursor = text.cursor();
            let wanted: Vec<Vec<u8>> = (0..rows).map(|y| text.line(y).to_vec()).collect();
            for (y, (line, shown)) in wanted.iter().zip(played.read()).enumerate() {
                let mut shown = shown.chars();
                for (x, &letter) in line.iter().enumerate() {
                    let shown = shown.next().unwrap_or(' ');
                    // The cell of the cursor shows no letter.
                    if cursor != Some((x, y)) {
                        proptest::prop_assert_eq!(shown, char::from(letter));
                    }
                }
            }
        }
    }
}
