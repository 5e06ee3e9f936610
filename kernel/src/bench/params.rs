//! Parameters of a benchmark: words `KEY=VALUE`, some values lists with commas.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;
use core::str::FromStr;

/// The words of a command line. A benchmark takes out what it knows, and at the end asks whether
/// anything is left.
#[derive(Clone, Debug, Default)]
pub struct Params {
    words: Vec<(String, String)>,
}

impl Params {
    /// Splits the words.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut params = Self::default();
        for word in words {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| format!("{word:?}: wants KEY=VALUE"))?;
            if params.words.iter().any(|(known, _)| known == key) {
                return Err(format!("{key}: given twice"));
            }
            params.words.push((key.to_string(), value.to_string()));
        }
        Ok(params)
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.words.iter().position(|(known, _)| known == key)?;
        Some(self.words.swap_remove(at).1)
    }

    /// A number from `min` to `max`.
    pub fn number<N>(&mut self, key: &str, default: N, min: N, max: N) -> Result<N, String>
    where
        N: Copy + FromStr + PartialOrd + Display,
    {
        self.take(key)
            .map_or(Ok(default), |text| number(key, &text, min, max))
    }

    /// Numbers from `min` to `max`, at least one.
    pub fn numbers<N>(&mut self, key: &str, default: &[N], min: N, max: N) -> Result<Vec<N>, String>
    where
        N: Copy + FromStr + PartialOrd + Display,
    {
        match self.take(key) {
            None => Ok(default.to_vec()),
            Some(list) => list
                .split(',')
                .map(|text| number(key, text, min, max))
                .collect(),
        }
    }

    /// Words, at least one; `read` says what each means.
    pub fn list<T>(
        &mut self,
        key: &str,
        default: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, String> {
        let list = self.take(key).unwrap_or_else(|| default.to_string());
        list.split(',')
            .map(|word| read(word).ok_or_else(|| format!("{key}={word}: unknown")))
            .collect()
    }

    /// Complains about what nobody has taken.
    pub fn finish(self) -> Result<(), String> {
        match self.words.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("{key}: no such parameter")),
        }
    }
}

fn number<N>(key: &str, text: &str, min: N, max: N) -> Result<N, String>
where
    N: Copy + FromStr + PartialOrd + Display,
{
    let number = text.parse::<N>().ok();
    number
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| format!("{key}={text}: wants numbers from {min} to {max}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(line: &str) -> Result<Params, String> {
        Params::parse(line.split_whitespace())
    }

    #[test]
    fn what_is_given_arrives_and_the_rest_is_as_usual() {
        let mut params = params("sizes=4096,65536 ms=5 via=b").unwrap();
        assert_eq!(
            params.numbers("sizes", &[1], 1, 1 << 20),
            Ok(vec![4096, 65536])
        );
        assert_eq!(params.numbers("batches", &[1, 32], 1, 64), Ok(vec![1, 32]));
        assert_eq!(params.number("ms", 200, 1, 1000), Ok(5));
        let letter = |word: &str| word.chars().next();
        assert_eq!(params.list("via", "a", letter), Ok(vec!['b']));
        assert_eq!(params.list("modes", "x,y", letter), Ok(vec!['x', 'y']));
        assert_eq!(params.finish(), Ok(()));
    }

    #[test]
    fn nonsense_is_one_line() {
        for (line, says) in [
            ("sizes", "KEY=VALUE"),
            ("ms=1 ms=2", "twice"),
            ("sizes=0", "from 1 to 9"),
            ("sizes=1,", "from 1 to 9"),
            ("sizes=10", "from 1 to 9"),
            ("sizes=-1", "from 1 to 9"),
            ("sizes=99999999999999999999999", "from 1 to 9"),
            ("speed=1", "no such parameter"),
        ] {
            let read = || {
                let mut params = params(line)?;
                params.numbers::<u32>("sizes", &[1], 1, 9)?;
                params.finish()
            };
            let error = read().unwrap_err();
            assert!(error.contains(says) && !error.contains('\n'), "{error}");
        }
        let mut params = params("via=x").unwrap();
        assert!(params.list("via", "a", |_| None::<()>).is_err());
    }
}
