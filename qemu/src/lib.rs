//! Launcher of QEMU and engines, and what the tests that boot machines build on.
//!
//! | module | what |
//! |---|---|
//! | [`settings`] | the variables of `make run`, checked |
//! | [`machine`], [`engines`], [`child`] | command lines and processes |
//! | [`passthrough`] | a real engine for the machine |
//! | [`qemu`] | which QEMU |
//! | [`iso`], [`firmware`] | the bootable image, and machines that boot it |
//! | [`run`], [`console`], [`terminal`] | a machine from start to end, its console passing through |
//! | [`hotplug`], [`control`], [`qmp`] | removal, addition and yanking on the machine that runs |
//! | [`symbols`], [`source_lines`] | names and lines for the kernel's panic report |
//! | [`suite`], [`tally`] | `make test` |
//! | [`scenario`], [`transcript`] | machines under test, and what they print |
//! | [`screen`] | what is on their screens, and typing on their keyboards |
//! | [`linux`] | a Linux kernel on our engines |
//! | [`bench`] | `make bench` |
//! | [`demo`] | `make demo` |
//! | [`session`] | a machine that a program talks to |

#![forbid(unsafe_code)]

pub mod bench;
pub mod child;
pub mod console;
pub mod control;
pub mod demo;
pub mod engines;
pub mod failure;
pub mod firmware;
pub mod hotplug;
pub mod iso;
pub mod linux;
pub mod machine;
pub mod passthrough;
pub mod qemu;
pub mod qmp;
pub mod run;
pub mod run_dir;
pub mod scenario;
pub mod screen;
pub mod session;
pub mod settings;
pub mod source_lines;
pub mod suite;
pub mod symbols;
pub mod tally;
pub mod terminal;
pub mod transcript;
