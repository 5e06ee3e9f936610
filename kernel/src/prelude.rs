//! What a task of this kernel has at hand: `use longshore::prelude::*`.

pub use dma_buf::{
    AttachFlags, BufError, DmaBuf, Importer, Pipeline, ReserveError, Resv, Usage, copy, copy_range,
    fill, fill_range, manager,
};
pub use dma_fence::{Fence, FenceError, Signaler, next_context};
pub use dmaengine::{AsyncTx, Client, Registry, registry};
pub use hal::dma::{Destination, Direction, Memory, Source};
pub use hal::task::{spawn, spawn_on, yield_now};
pub use hal::time::{Duration, Instant, sleep, timeout};
