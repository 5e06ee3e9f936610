//! Failing on purpose.

use alloc::string::String;
use core::hint::black_box;

use super::CommandResult;

pub(super) fn crash(args: &[String]) -> CommandResult {
    match args {
        [how] if how == "panic" => panic_on_purpose(),
        [how] if how == "stack" => overflow_the_stack(0),
        [how] if how == "fault" => touch_nothing(),
        _ => return Err("wants panic, stack or fault".into()),
    }
    Ok(())
}

#[inline(never)]
fn panic_on_purpose() {
    panic!("as asked");
}

/// Recurses until the guard page; each level keeps its frame.
#[inline(never)]
#[allow(unconditional_recursion)]
fn overflow_the_stack(depth: u64) {
    let frame = black_box([depth; 64]);
    overflow_the_stack(depth + 1);
    black_box(&frame);
}

#[inline(never)]
fn touch_nothing() {
    // SAFETY: none: the address is never mapped, which is what is to be shown.
    unsafe { black_box(0xdead_0000u64 as *const u64).read_volatile() };
}
