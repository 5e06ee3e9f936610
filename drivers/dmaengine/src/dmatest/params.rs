//! dmatest's parameters.

use alloc::string::{String, ToString};
use core::fmt;

use crate::capability::Capabilities;
use crate::device::DeviceInfo;

/// Threads per channel and channels per test, at most: more is a slip of the finger.
const THREADS_MAX: usize = 256;
/// Sources of an exclusive or or a parity, at most.
const SOURCES_MAX: usize = 32;
/// Copies that wait for each other, at most: as many as a ring of the usual size holds.
const CHAIN_MAX: usize = 1023;
/// The longest timeout, in milliseconds; Linux calls it "maximum timeout".
const TIMEOUT_MAX: u64 = 0xffff_ffff;

/// What the threads do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestType {
    /// `dmatest=0`: copy.
    Copy,
    /// `dmatest=1`: fill.
    Set,
    /// `dmatest=2`: exclusive or.
    Xor,
    /// `dmatest=3`: the two parities of RAID 6.
    Pq,
}

/// The parameters, with Linux's names and defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// The channel to test; all where none is named.
    pub channel: Option<String>,
    /// Bytes in each test buffer.
    pub test_buf_size: usize,
    /// Tests per thread; 0 for no end.
    pub iterations: u64,
    /// Threads per channel.
    pub threads_per_chan: usize,
    /// Channels at most; 0 for no limit.
    pub max_channels: usize,
    /// Milliseconds that one operation may take.
    pub timeout: u64,
    /// Neither fill nor compare the buffers.
    pub noverify: bool,
    /// Whole buffers, no random lengths and offsets.
    pub norandom: bool,
    /// Poll for completions instead of waiting for interrupts.
    pub polled: bool,
    /// Bytes of each operation; 0 for random lengths.
    pub transfer_size: usize,
    /// Log2 of the alignment of lengths and offsets; -1 for the device's own.
    pub alignment: i32,
    /// Sources of an exclusive or. As Linux does, one more where it is even, so that the exclusive
    /// or of equal sources is the source; and less where the device takes less.
    pub xor_sources: usize,
    /// Sources of the parities, in the same way.
    pub pq_sources: usize,
    /// What the threads do.
    pub dmatest: TestType,
    /// Copies in flight at once, each of them to start after the one before it has ended. Linux has
    /// no such parameter.
    pub chain: usize,
}

impl TestType {
    /// What a device must be capable of.
    pub(super) fn capability(self) -> Capabilities {
        match self {
            Self::Copy => Capabilities::MEMCPY,
            Self::Set => Capabilities::MEMSET,
            Self::Xor => Capabilities::XOR,
            Self::Pq => Capabilities::PQ,
        }
    }

    /// As threads are named after it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Set => "set",
            Self::Xor => "xor",
            Self::Pq => "pq",
        }
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            channel: None,
            test_buf_size: 16384,
            iterations: 0,
            threads_per_chan: 1,
            max_channels: 0,
            timeout: 3000,
            noverify: false,
            norandom: false,
            polled: false,
            transfer_size: 0,
            alignment: -1,
            xor_sources: 3,
            pq_sources: 3,
            dmatest: TestType::Copy,
            chain: 1,
        }
    }
}

/// What is wrong with a parameter: one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamError(pub String);

impl fmt::Display for ParamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn wrong<T>(message: fmt::Arguments<'_>) -> Result<T, ParamError> {
    Err(ParamError(message.to_string()))
}

impl Params {
    /// Reads `key=value` words; what is not named keeps its default, the last word of a key counts.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, ParamError> {
        let mut params = Self::default();
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                return wrong(format_args!("{word}: expected key=value"));
            };
            params.set(key, value)?;
        }
        params.check()?;
        Ok(params)
    }

    /// Sources and destinations of one operation on the device.
    pub(super) fn blocks(&self, info: &DeviceInfo) -> (usize, usize) {
        // Of a device that takes two, three are asked all the same: the CPU does it.
        let odd = |wanted: usize, limit: u8| {
            let most = usize::from(limit.max(3));
            (wanted | 1).min((most - 1) | 1)
        };
        match self.dmatest {
            TestType::Copy => (self.chain, self.chain),
            TestType::Set => (1, 1),
            TestType::Xor => (odd(self.xor_sources, info.max_xor), 1),
            TestType::Pq => (odd(self.pq_sources, info.max_pq), 2),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), ParamError> {
        match key {
            "channel" => self.channel = (!value.is_empty()).then(|| value.to_string()),
            "test_buf_size" => self.test_buf_size = size(key, value)?,
            "iterations" => self.iterations = number(key, value)?,
            "threads_per_chan" => self.threads_per_chan = size(key, value)?,
            "max_channels" => self.max_channels = size(key, value)?,
            "timeout" => self.timeout = number(key, value)?,
            "noverify" => self.noverify = boolean(key, value)?,
            "norandom" => self.norandom = boolean(key, value)?,
            "polled" => self.polled = boolean(key, value)?,
            "transfer_size" => self.transfer_size = size(key, value)?,
            "alignment" if value == "-1" => self.alignment = -1,
            "alignment" => match number(key, value)? {
                log2 @ 0..=30 => self.alignment = log2 as i32,
                _ => return wrong(format_args!("alignment={value}: expected -1 to 30 (log2)")),
            },
            "xor_sources" => self.xor_sources = size(key, value)?,
            "pq_sources" => self.pq_sources = size(key, value)?,
            "chain" => self.chain = size(key, value)?,
            "dmatest" => match number(key, value)? {
                0 => self.dmatest = TestType::Copy,
                1 => self.dmatest = TestType::Set,
                2 => self.dmatest = TestType::Xor,
                3 => self.dmatest = TestType::Pq,
                _ => {
                    return wrong(format_args!(
                        "dmatest={value}: 0 is memcpy, 1 memset, 2 xor, 3 pq"
                    ));
                }
            },
            _ => return wrong(format_args!("{key}: unknown parameter")),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ParamError> {
        let size = self.test_buf_size;
        if size == 0 {
            return wrong(format_args!("test_buf_size=0: nothing to test"));
        }
        if size > isize::MAX as usize {
            return wrong(format_args!("test_buf_size={size}: larger than memory"));
        }
        if !(1..=THREADS_MAX).contains(&self.threads_per_chan) {
            let threads = self.threads_per_chan;
            return wrong(format_args!(
                "threads_per_chan={threads}: expected 1 to {THREADS_MAX}"
            ));
        }
        if !(1..=TIMEOUT_MAX).contains(&self.timeout) {
            let timeout = self.timeout;
            return wrong(format_args!(
                "timeout={timeout}: expected 1 to {TIMEOUT_MAX} ms"
            ));
        }
        if self.transfer_size > size {
            let transfer = self.transfer_size;
            return wrong(format_args!(
                "transfer_size={transfer}: more than test_buf_size={size}"
            ));
        }
        if self.alignment > 0 && size >> self.alignment == 0 {
            let log2 = self.alignment;
            return wrong(format_args!(
                "alignment={log2}: more than test_buf_size={size}"
            ));
        }
        if !(1..=CHAIN_MAX).contains(&self.chain) {
            let chain = self.chain;
            return wrong(format_args!("chain={chain}: expected 1 to {CHAIN_MAX}"));
        }
        if self.chain > 1 && self.dmatest != TestType::Copy {
            return wrong(format_args!("chain: only copies, dmatest=0"));
        }
        for (key, sources) in [
            ("xor_sources", self.xor_sources),
            ("pq_sources", self.pq_sources),
        ] {
            if !(2..=SOURCES_MAX).contains(&sources) {
                return wrong(format_args!("{key}={sources}: expected 2 to {SOURCES_MAX}"));
            }
        }
        Ok(())
    }
}

fn number(key: &str, value: &str) -> Result<u64, ParamError> {
    let parsed = match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => value.parse(),
    };
    parsed.or_else(|_| wrong(format_args!("{key}={value}: expected a number")))
}

fn size(key: &str, value: &str) -> Result<usize, ParamError> {
    usize::try_from(number(key, value)?)
        .or_else(|_| wrong(format_args!("{key}={value}: too large for this machine")))
}

fn boolean(key: &str, value: &str) -> Result<bool, ParamError> {
    match value {
        "0" | "n" | "N" => Ok(false),
        "1" | "y" | "Y" => Ok(true),
        _ => wrong(format_args!("{key}={value}: expected 0 or 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Params, String> {
        Params::parse(line.split_whitespace()).map_err(|error| error.0)
    }

    #[test]
    fn defaults_are_linuxs() {
        assert_eq!(parse("").unwrap(), Params::default());
        assert_eq!(parse("iterations=1000").unwrap().iterations, 1000);
    }

    #[test]
    fn all_keys_are_read() {
        let params = parse(
            "channel=dma1chan2 test_buf_size=0x100 iterations=7 threads_per_chan=3 max_channels=4 \
             timeout=50 noverify=1 norandom=Y polled=y transfer_size=64 alignment=3 \
             xor_sources=5 pq_sources=6 dmatest=1 chain=1",
        );
        let expected = Params {
            channel: Some("dma1chan2".to_string()),
            test_buf_size: 256,
            iterations: 7,
            threads_per_chan: 3,
            max_channels: 4,
            timeout: 50,
            noverify: true,
            norandom: true,
            polled: true,
            transfer_size: 64,
            alignment: 3,
            xor_sources: 5,
            pq_sources: 6,
            dmatest: TestType::Set,
            chain: 1,
        };
        assert_eq!(params.unwrap(), expected);
    }

    #[test]
    fn absurd_values_get_one_line_each() {
        for (line, part) in [
            ("test_buf_size=0", "nothing to test"),
            ("test_buf_size=18446744073709551615", "larger than memory"),
            ("test_buf_size=99999999999999999999999", "expected a number"),
            ("test_buf_size=-5", "expected a number"),
            (
                "threads_per_chan=0",
                "threads_per_chan=0: expected 1 to 256",
            ),
            ("threads_per_chan=1000000", "expected 1 to 256"),
            ("timeout=0", "timeout=0"),
            ("transfer_size=20000", "more than test_buf_size=16384"),
            ("alignment=20", "more than test_buf_size"),
            ("alignment=40", "expected -1 to 30"),
            ("alignment=x", "expected a number"),
            ("polled=maybe", "expected 0 or 1"),
            ("dmatest=4", "0 is memcpy, 1 memset, 2 xor, 3 pq"),
            ("xor_sources=1", "expected 2 to 32"),
            ("chain=0", "expected 1 to 1023"),
            ("chain=2 dmatest=1", "only copies"),
            ("colour=red", "colour: unknown parameter"),
            ("iterations", "iterations: expected key=value"),
            ("iterations=", "expected a number"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
            assert!(!error.contains('\n'));
        }
    }
}
