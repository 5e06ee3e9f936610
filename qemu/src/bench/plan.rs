//! What is run, and how often.

use serde::Serialize;

/// A run of the benchmark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// How often each system boots.
    pub rounds: usize,
    /// How often a boot goes through its cases.
    pub repeat: u32,
    /// Milliseconds of one case of `bench copy`.
    pub ms: u32,
    /// Bytes of a copy.
    pub sizes: Vec<u32>,
    /// Copies for one doorbell.
    pub batches: Vec<u32>,
    /// References that each CPU finds and puts in one case of `bench find`.
    pub pairs: u32,
    /// Tickets of each CPU in one case of `bench buffers`.
    pub tickets: u32,
    /// Frames of one case of it.
    pub frames: u32,
    /// Whether Linux takes part.
    pub linux: bool,
}

impl Plan {
    /// As `make bench` runs it.
    pub fn full() -> Self {
        Self {
            rounds: 7,
            repeat: 5,
            ms: 250,
            sizes: vec![4096, 65536],
            batches: vec![1, 32],
            pairs: 500_000,
            tickets: 5000,
            frames: 100,
            linux: true,
        }
    }

    /// As `SHORT=1` asks for it: less than two minutes.
    pub fn short() -> Self {
        Self {
            rounds: 3,
            repeat: 2,
            ms: 60,
            pairs: 100_000,
            tickets: 1000,
            frames: 20,
            ..Self::full()
        }
    }

    /// Seconds: every part of it once, for tests.
    pub fn tiny() -> Self {
        Self {
            rounds: 1,
            repeat: 1,
            ms: 5,
            pairs: 1000,
            tickets: 100,
            frames: 4,
            linux: false,
            ..Self::full()
        }
    }

    /// The console commands of a boot of Longshore in which engines stay: what is claimed of them is
    /// compared with their own counts.
    pub fn commands(&self) -> String {
        let list = |numbers: &[u32]| {
            let words: Vec<String> = numbers.iter().map(u32::to_string).collect();
            words.join(",")
        };
        let Self {
            repeat, ms, pairs, ..
        } = self;
        format!(
            "bench copy sizes={} batches={} ms={ms} repeat={repeat}; \
             bench find pairs={pairs} repeat={repeat}; audit; bench totals",
            list(&self.sizes),
            list(&self.batches),
        )
    }

    /// Those of a boot in which they leave, and in which it is not counted what they do.
    pub fn removal_commands(&self) -> String {
        let Self {
            repeat,
            tickets,
            frames,
            ..
        } = self;
        format!(
            "bench buffers tickets={tickets} frames={frames} repeat={repeat}; \
             bench removal repeat={repeat}; audit"
        )
    }

    /// Those of a boot without an IOMMU, and of one whose engines are confined by it.
    pub fn iommu_commands(&self) -> String {
        let Self { repeat, ms, .. } = self;
        format!("bench iommu maps={ms} ms={ms} repeat={repeat}; audit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_fit_the_kernel() {
        assert_eq!(
            Plan::tiny().commands(),
            "bench copy sizes=4096,65536 batches=1,32 ms=5 repeat=1; \
             bench find pairs=1000 repeat=1; audit; bench totals"
        );
        assert_eq!(
            Plan::tiny().removal_commands(),
            "bench buffers tickets=100 frames=4 repeat=1; bench removal repeat=1; audit"
        );
        assert_eq!(
            Plan::tiny().iommu_commands(),
            "bench iommu maps=5 ms=5 repeat=1; audit"
        );
    }
}
