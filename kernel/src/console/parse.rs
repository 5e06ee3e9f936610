//! From a line to commands.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::command_line::words;

/// One command of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// As it was typed.
    pub text: String,
    /// Its name and arguments; at least one word.
    pub words: Vec<String>,
    /// It ended in `&`.
    pub background: bool,
}

/// Splits a line at semicolons outside of quotes. Empty commands are left out.
pub fn line(line: &str) -> Vec<Parsed> {
    let mut quoted = false;
    let parts = line.split(|c| {
        quoted ^= c == '"';
        c == ';' && !quoted
    });
    parts
        .filter_map(|part| {
            let text = part.trim();
            let (rest, background) = match text.strip_suffix('&') {
                Some(rest) => (rest.trim_end(), true),
                None => (text, false),
            };
            let words = words(rest);
            (!words.is_empty()).then(|| Parsed {
                text: text.to_string(),
                words,
                background,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_and_sent_to_the_background() {
        let parsed = line(" version ;; dmatest channel=dma0chan0 &; echo \"a; b\" ");
        let texts: Vec<_> = parsed.iter().map(|p| p.text.as_str()).collect();
        assert_eq!(
            texts,
            ["version", "dmatest channel=dma0chan0 &", "echo \"a; b\""]
        );
        assert_eq!(parsed[1].words, ["dmatest", "channel=dma0chan0"]);
        assert!(parsed[1].background && !parsed[0].background);
        assert_eq!(parsed[2].words[1], "a; b");
        assert!(line(" ; & ;").is_empty());
    }
}
