//! The test client: many random copies (or fills, exclusive ors, parities), each compared byte for
//! byte, with guards around the copied part. Parameters, patterns and lines are those of Linux's
//! dmatest (Documentation/driver-api/dmaengine/dmatest.rst).
//!
//! Test threads are tasks, spread over the CPUs. [`run()`] waits for them; dropping its future stops
//! them at their next test.

mod params;
mod pattern;
mod random;
mod run;
mod thread;

pub use params::{ParamError, Params, TestType};
pub use run::{Output, RunError, Summary, run};
