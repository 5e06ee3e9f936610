//! What is done often, in instructions, where they are counted.

use core::hint::black_box;

use dmaengine::{Transaction, registry};
use hal::cpu;

use super::{Suite, Verdict, ensure, instructions, tests};

pub(super) static SUITE: Suite = Suite {
    name: "costs",
    tests: tests![s1_3_a_pair_and_a_rebuild_take_so_many_instructions],
};

/// So many instructions may the tables of 16 CPUs and 64 channels take.
const REBUILD_LIMIT: u64 = 200_000;

/// Prints what `qemu/tests/icount.rs` compares between machines.
async fn s1_3_a_pair_and_a_rebuild_take_so_many_instructions() -> Result<(), Verdict> {
    instructions::are_counted()?;
    if registry().channels().is_empty() {
        return Err(Verdict::Skipped("there is no engine"));
    }
    let interest = registry().get_interest().await;
    let found = registry().find(Transaction::Memcpy).is_some();
    let registry = registry();
    let pair = instructions::of(1000, || {
        drop(black_box(registry).find(Transaction::Memcpy));
    });
    let rebuild = instructions::of(4, || registry.rebalance());
    interest.put().await;
    let (cpus, channels) = (cpu::possible(), registry.channels().len());
    crate::machine_line!(
        "  # cost: cpus={cpus} channels={channels} find_put={pair} rebuild={rebuild}"
    );
    ensure!(found, "no channel was found");
    ensure!(
        rebuild <= REBUILD_LIMIT,
        "{rebuild} instructions to rebuild"
    );
    Ok(())
}
