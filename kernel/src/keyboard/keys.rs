//! From scan codes to what a terminal would send: letters of a US keyboard, and the escape
//! sequences that the line editor knows.

use pc_keyboard::layouts::Us104Key;
use pc_keyboard::{DecodedKey, HandleControl, KeyCode, Keyboard, ScancodeSet1};

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A byte.
    Byte(u8),
    /// A sequence of bytes.
    Sequence(&'static [u8]),
    /// Shift and a page key: looking back on the screen, or forward again.
    Look {
        /// Which of the two.
        back: bool,
    },
}

/// What is held down, and how far a code has been read.
pub struct Keys(Keyboard<Us104Key, ScancodeSet1>);

impl Keys {
    /// Nothing held down.
    pub const fn new() -> Self {
        Self(Keyboard::new(
            ScancodeSet1::new(),
            Us104Key,
            HandleControl::MapLettersToUnicode,
        ))
    }

    /// Takes a byte of the controller, which translates to scan code set 1.
    pub fn take(&mut self, code: u8) -> Option<Key> {
        let event = self.0.add_byte(code).ok().flatten()?;
        let shifted = self.0.get_modifiers().is_shifted();
        let code = match self.0.process_keyevent(event)? {
            DecodedKey::Unicode('\x7f') => KeyCode::Delete,
            DecodedKey::Unicode(letter) => {
                let byte = u8::try_from(letter).ok().filter(u8::is_ascii)?;
                return Some(Key::Byte(byte));
            }
            DecodedKey::RawKey(code) => code,
        };
        Some(Key::Sequence(match code {
            KeyCode::PageUp if shifted => return Some(Key::Look { back: true }),
            KeyCode::PageDown if shifted => return Some(Key::Look { back: false }),
            KeyCode::ArrowUp => b"\x1b[A",
            KeyCode::ArrowDown => b"\x1b[B",
            KeyCode::ArrowRight => b"\x1b[C",
            KeyCode::ArrowLeft => b"\x1b[D",
            KeyCode::Home => b"\x1b[H",
            KeyCode::End => b"\x1b[F",
            KeyCode::Delete => b"\x1b[3~",
            _ => return None,
        }))
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::line::{Editor, Event};
    use alloc::string::String;
    use alloc::vec::Vec;

    const SHIFT: u8 = 0x2a;
    const CTRL: u8 = 0x1d;
    const UP: u8 = 0x80;

    fn bytes(codes: &[u8]) -> Vec<u8> {
        let mut keys = Keys::new();
        let mut bytes = Vec::new();
        for &code in codes {
            match keys.take(code) {
                Some(Key::Byte(byte)) => bytes.push(byte),
                Some(Key::Sequence(sequence)) => bytes.extend(sequence),
                Some(Key::Look { .. }) | None => {}
            }
        }
        bytes
    }

    #[test]
    fn letters_are_those_of_a_us_keyboard() {
        assert_eq!(bytes(&[0x1e, 0x1e | UP, 0x30, 0x2e]), b"abc");
        assert_eq!(bytes(&[SHIFT, 0x1e, 0x03, SHIFT | UP, 0x1e]), b"A@a");
        assert_eq!(bytes(&[0x0c, 0x0d, 0x39, 0x0f]), b"-= \t");
        assert_eq!(bytes(&[0x1c, 0x0e]), b"\n\x08");
        assert_eq!(bytes(&[0x3a, 0x3a | UP, 0x1e]), b"A", "caps lock");
    }

    #[test]
    fn control_letters_are_controls() {
        assert_eq!(bytes(&[CTRL, 0x2e, 0x26, CTRL | UP, 0x2e]), b"\x03\x0cc");
        assert_eq!(bytes(&[0xe0, CTRL, 0x2e, 0xe0, CTRL | UP, 0x2e]), b"\x03c");
    }

    #[test]
    fn keys_without_letters_edit_the_line() {
        // bc, left twice, a, delete, end, x, home, delete, return.
        let codes = [
            &[
                0x30, 0x2e, 0xe0, 0x4b, 0xe0, 0xcb, 0xe0, 0x4b, 0x1e, 0xe0, 0x53,
            ][..],
            &[0xe0, 0x4f, 0x2d, 0xe0, 0x47, 0xe0, 0x53, 0x1c],
        ];
        let mut editor = Editor::new("");
        let mut out = String::new();
        let events: Vec<_> = bytes(&codes.concat())
            .into_iter()
            .map(|byte| editor.byte(byte, &mut out, &|_| Vec::new()))
            .filter(|event| *event != Event::None)
            .collect();
        assert_eq!(events, [Event::Line("cx".into())]);
    }

    #[test]
    fn shift_and_page_keys_look_back() {
        let mut keys = Keys::new();
        let mut take = |codes: &[u8]| codes.iter().filter_map(|&code| keys.take(code)).last();
        assert_eq!(take(&[0xe0, 0x49]), None);
        // Shift is released and pressed again around the key by keyboards with num lock.
        assert_eq!(take(&[SHIFT, 0xe0, 0x49]), Some(Key::Look { back: true }));
        assert_eq!(
            take(&[0xe0, 0xc9, 0xe0, 0x51]),
            Some(Key::Look { back: false })
        );
    }

    proptest::proptest! {
        #[test]
        fn any_codes_are_survived(codes: Vec<u8>) {
            bytes(&codes);
        }
    }
}
