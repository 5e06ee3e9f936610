//! The co-simulation: the real driver against the real engine model in one process, without QEMU.
//!
//! Everything between them is what the `hal` says and nothing else, so that whatever passes here
//! depends on neither a kernel nor a transport.

#![forbid(unsafe_code)]

#[path = "cosim/buffers.rs"]
mod buffers;
#[path = "cosim/rig.rs"]
mod rig;

#[path = "cosim/copies.rs"]
mod copies;
#[path = "cosim/dump.rs"]
mod dump;
#[path = "cosim/faults.rs"]
mod faults;
#[path = "cosim/fences.rs"]
mod fences;
#[path = "cosim/gone.rs"]
mod gone;
#[path = "cosim/life.rs"]
mod life;
#[path = "cosim/rest.rs"]
mod rest;
#[path = "cosim/strays.rs"]
mod strays;
