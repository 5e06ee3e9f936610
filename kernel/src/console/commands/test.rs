//! The test suites in the kernel.

#[cfg(feature = "ktest")]
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::CommandResult;

#[cfg(feature = "ktest")]
pub(super) async fn test(args: Vec<String>) -> CommandResult {
    use crate::ktest;
    let only = match &args[..] {
        [] => None,
        [name] => Some(name.as_str()),
        _ => return Err("one suite at most".into()),
    };
    match ktest::run(only).await {
        None => Err(format!(
            "no such suite; there are {}",
            ktest::names().collect::<Vec<_>>().join(" ")
        )),
        Some((_, 0)) => Ok(()),
        Some((passed, failed)) => Err(format!("{failed} failed, {passed} passed")),
    }
}

#[cfg(not(feature = "ktest"))]
pub(super) async fn test(_: Vec<String>) -> CommandResult {
    Err("this image was built without the test suites".into())
}
