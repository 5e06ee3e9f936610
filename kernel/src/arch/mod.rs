//! What belongs to one kind of CPU.

pub mod x86_64;
