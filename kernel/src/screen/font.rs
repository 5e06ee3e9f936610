//! The letters: those of `embedded-graphics`, unpacked once, for its own access asks for every
//! pixel by its coordinates.

use alloc::vec::Vec;

use embedded_graphics::geometry::Point;
use embedded_graphics::image::GetPixel;
use embedded_graphics::mono_font::MonoFont;
use embedded_graphics::mono_font::ascii::FONT_9X18_BOLD;
use embedded_graphics::pixelcolor::BinaryColor;

const FONT: &MonoFont<'_> = &FONT_9X18_BOLD;
/// Pixels of a letter, from left to right.
pub const WIDTH: usize = FONT.character_size.width as usize;
/// Pixels of a letter, from top to bottom.
pub const HEIGHT: usize = FONT.character_size.height as usize;
/// The letters there are; others are shown as `?`.
pub const LETTERS: core::ops::RangeInclusive<u8> = b' '..=b'~';
/// Letters in a row of the font's picture.
const IN_ROW: usize = 16;

/// Unpacked letters.
pub struct Font(Vec<[u16; HEIGHT]>);

impl Font {
    /// Unpacks them.
    pub fn new() -> Self {
        let row = |letter: usize, y: usize| {
            let (left, top) = (letter % IN_ROW * WIDTH, letter / IN_ROW * HEIGHT);
            (0..WIDTH).fold(0, |row, x| {
                let point = Point::new((left + x) as i32, (top + y) as i32);
                let lit = FONT.image.pixel(point) == Some(BinaryColor::On);
                row | u16::from(lit) << x
            })
        };
        let letters = 0..usize::from(LETTERS.end() - LETTERS.start()) + 1;
        Self(
            letters
                .map(|letter| core::array::from_fn(|y| row(letter, y)))
                .collect(),
        )
    }

    /// Row `y` of a letter, its leftmost pixel in bit 0.
    pub fn row(&self, letter: u8, y: usize) -> u16 {
        let index = usize::from(letter.wrapping_sub(*LETTERS.start()));
        let rows = self
            .0
            .get(index)
            .or_else(|| self.0.get(usize::from(b'?' - b' ')));
        rows.and_then(|rows| rows.get(y)).copied().unwrap_or(0)
    }
}

impl Default for Font {
    fn default() -> Self {
        Self::new()
    }
}
