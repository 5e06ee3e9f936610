//! Benchmarks.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::CommandResult;
use crate::bench::BENCHMARKS;
use crate::bench::params::Params;

pub(super) async fn bench(args: Vec<String>) -> CommandResult {
    let Some((name, words)) = args.split_first() else {
        for benchmark in BENCHMARKS {
            crate::println!("bench {} {}", benchmark.name, benchmark.usage);
        }
        return Ok(());
    };
    let found = BENCHMARKS.iter().find(|benchmark| benchmark.name == name);
    let benchmark = found.ok_or_else(|| format!("no benchmark {name:?}"))?;
    let params = Params::parse(words.iter().map(String::as_str))?;
    (benchmark.run)(params).await
}
