//! Tests inside the kernel, printed as KTAP version 1 (docs.kernel.org/dev-tools/ktap.html).
//!
//! A suite is a list of asynchronous functions that return what they found wrong. Results are
//! lines for machines, apart from the log. A test that panics ends the machine, which the reader
//! sees by the plan that is not fulfilled.

mod channels;
mod costs;
mod cpus;
mod fences;
mod hotplug;
mod instructions;
mod memory;
mod pipeline;
mod removal;
mod resv;
mod services;
mod tasks;
mod vcm;

use alloc::boxed::Box;
use alloc::string::String;
use core::future::Future;
use core::pin::Pin;

/// What a test found wrong.
pub type TestResult = Result<(), String>;
/// A test on its way.
pub type TestFuture = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// How a test ended. One that may be skipped gives a `Result<(), Verdict>`.
pub enum Verdict {
    /// As it should.
    Passed,
    /// It found something wrong.
    Failed(String),
    /// This machine or this build cannot run it: why.
    Skipped(&'static str),
}

impl From<String> for Verdict {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

impl<E: Into<Self>> From<Result<(), E>> for Verdict {
    fn from(result: Result<(), E>) -> Self {
        result.map_or_else(Into::into, |()| Self::Passed)
    }
}

/// A named test.
pub struct Test {
    name: &'static str,
    run: fn() -> TestFuture,
}

/// Tests of one room of the house.
pub struct Suite {
    /// What to type after `test`.
    pub name: &'static str,
    tests: &'static [Test],
}

/// Lists asynchronous functions under their own names.
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        &[$($crate::ktest::Test {
            name: stringify!($name),
            run: || ::alloc::boxed::Box::pin(async { $name().await.into() }),
        }),*]
    };
}
pub(crate) use tests;

/// Fails a test with a message unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            return Err(::alloc::format!($($why)*).into());
        }
    };
}
pub(crate) use ensure;

static SUITES: &[&Suite] = &[
    &memory::SUITE,
    &vcm::SUITE,
    &tasks::SUITE,
    &cpus::SUITE,
    &services::SUITE,
    &hotplug::SUITE,
    &channels::SUITE,
    &costs::SUITE,
    &removal::SUITE,
    // Three groups, each on what the one before has shown.
    &fences::SUITE,
    &resv::SUITE,
    &pipeline::SUITE,
];

/// The names of all suites.
pub fn names() -> impl Iterator<Item = &'static str> {
    SUITES.iter().map(|suite| suite.name)
}

/// Runs one suite, or all; returns how many tests passed and failed. `None` where there is no
/// such suite.
pub async fn run(only: Option<&str>) -> Option<(usize, usize)> {
    let chosen = || {
        SUITES
            .iter()
            .filter(|suite| only.is_none_or(|name| name == suite.name))
    };
    let count = chosen().count();
    if count == 0 {
        return None;
    }
    let (mut passed, mut failed) = (0, 0);
    crate::machine_line!("KTAP version 1\n1..{count}");
    for (index, suite) in chosen().enumerate() {
        let before = failed;
        crate::machine_line!("  KTAP version 1\n  # Subtest: {}", suite.name);
        crate::machine_line!("  1..{}", suite.tests.len());
        for (index, test) in suite.tests.iter().enumerate() {
            let number = index + 1;
            match (test.run)().await {
                Verdict::Passed => {
                    passed += 1;
                    crate::machine_line!("  ok {number} {}", test.name);
                }
                Verdict::Skipped(why) => {
                    crate::machine_line!("  ok {number} {} # SKIP {why}", test.name);
                }
                Verdict::Failed(why) => {
                    failed += 1;
                    crate::machine_line!("  # {why}\n  not ok {number} {}", test.name);
                }
            }
        }
        let verdict = if failed == before { "ok" } else { "not ok" };
        crate::machine_line!("{verdict} {} {}", index + 1, suite.name);
    }
    Some((passed, failed))
}
