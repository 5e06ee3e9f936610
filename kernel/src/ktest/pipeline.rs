//! Frames through shared buffers: an asynchronous renderer, two engines, a synchronous importer and
//! a CPU that reads. Who does what when is shown as a time line, a row each, a digit a frame.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use dma_buf::{AttachFlags, BufError, DmaBuf, Importer, copy, fill};
use dma_fence::Fence;
use dmaengine::{AsyncTx, Client, DmaDevice, registry};
use hal::dma::{Destination, Direction, DmaSpace, Memory};
use hal::pci::Address;
use hal::task;
use hal::time::{Duration, Instant, poll_until, timeout};
use spin::Mutex;

use super::{Suite, Verdict, ensure, tests};
use crate::drivers::dma::Direct;
use crate::drivers::removal;
use crate::pci::bus;

pub(super) static SUITE: Suite = Suite {
    name: "pipeline",
    tests: tests![
        readers_see_their_frames_and_wait_for_nothing_else,
        the_same_with_an_engine_pulled_in_the_middle,
    ],
};

const FRAMES: usize = 10;
const FRAME: usize = 64 << 10;
const LIMIT: Duration = Duration::from_secs(60);
const COLUMNS: usize = 72;
const ROWS: [&str; 4] = ["render", "blit", "scanout", "cpu"];

/// A device at `place`.
fn importer(name: &'static str, place: Address) -> Importer {
    Importer {
        name,
        space: DmaSpace::new(Arc::new(Direct(place))),
        coherent: true,
        move_notify: None,
    }
}

/// Who was busy with which frame, and when.
#[derive(Clone, Copy)]
struct Span {
    row: usize,
    frame: usize,
    begin: Instant,
    end: Instant,
}

struct Screen {
    /// The engines'.
    places: [Address; 2],
    render: Arc<AsyncTx>,
    blit: Arc<AsyncTx>,
    back: [DmaBuf; 2],
    front: [DmaBuf; 2],
    spans: Mutex<Vec<Span>>,
    /// How many frames may be shown.
    gate: AtomicUsize,
    /// Readers that have begun with their frames, and that have ended.
    begun: [AtomicUsize; FRAMES],
    ended: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

fn value(frame: usize) -> u8 {
    frame as u8 + 1
}

impl Screen {
    async fn new(engines: &[(Address, DmaDevice)], frames: usize) -> Result<Arc<Self>, String> {
        let buf = || DmaBuf::new(FRAME).map_err(text);
        Ok(Arc::new(Self {
            places: [engines[0].0, engines[1].0],
            render: transfers("render", &engines[0].1).await?,
            blit: transfers("blit", &engines[1].1).await?,
            back: [buf()?, buf()?],
            front: [buf()?, buf()?],
            spans: Mutex::default(),
            gate: AtomicUsize::new(frames),
            begun: Default::default(),
            ended: AtomicUsize::new(0),
            wrong: Mutex::default(),
        }))
    }

    fn note(&self, row: usize, frame: usize, begin: Instant) {
        let end = Instant::now();
        self.spans.lock().push(Span {
            row,
            frame,
            begin,
            end,
        });
    }

    /// Renders, blits and has all frames read, one behind the other.
    async fn show(self: &Arc<Self>) -> Result<(), String> {
        // The renderer brings fences of its own; the buffers know.
        let attach = |buf: &DmaBuf| {
            buf.attach(
                importer("render", self.places[0]),
                AttachFlags::ASYNC_ATTACHMENT,
            )
        };
        let attached: Result<Vec<_>, _> = self.back.iter().map(attach).collect();
        let _attached = attached.map_err(text)?;
        for frame in 0..FRAMES {
            let open = || frame < self.gate.load(Ordering::Acquire);
            let open = poll_until(LIMIT, Duration::from_micros(200), open).await;
            open.map_err(|_| format!("frame {frame} is never shown"))?;
            let (back, front) = (&self.back[frame % 2], &self.front[frame % 2]);
            let rendered = fill(&self.render, back, value(frame)).submit().await;
            self.watch(0, frame, &rendered.map_err(text)?)?;
            // Readers are told of their frame before the next but one takes its place.
            if let Some(last) = frame.checked_sub(2) {
                let begun = || self.begun[last].load(Ordering::Acquire) == 2;
                let begun = poll_until(LIMIT, Duration::from_micros(200), begun).await;
                begun.map_err(|_| format!("nobody reads frame {last}"))?;
            }
            let shown = copy(&self.blit, front, back).submit().await;
            self.watch(1, frame, &shown.map_err(text)?)?;
            let (device, cpu) = (self.clone(), self.clone());
            task::spawn("scanout", async move {
                let read = device.scan_out(frame).await;
                device.read(read);
            });
            task::spawn("reader", async move {
                let read = cpu.look(frame).await;
                cpu.read(read);
            });
        }
        let ended = || self.ended.load(Ordering::Acquire) == 2 * FRAMES;
        let all = poll_until(LIMIT, Duration::from_millis(1), ended).await;
        let ended = self.ended.load(Ordering::Relaxed);
        all.map_err(|_| format!("{ended} frames of {} read", 2 * FRAMES))
    }

    /// Notes the span of work, whose turn comes when that of the frame before has ended.
    fn watch(self: &Arc<Self>, row: usize, frame: usize, fence: &Fence) -> Result<(), String> {
        let (screen, submitted) = (self.clone(), Instant::now());
        let ended = move |result| {
            if let Err(error) = result {
                let why = format!("{} {frame}: {error}", ROWS[row]);
                screen.wrong.lock().push(why);
            }
            let before = |span: &&Span| span.row == row && span.frame < frame;
            let before = screen
                .spans
                .lock()
                .iter()
                .filter(before)
                .map(|span| span.end)
                .max();
            screen.note(
                row,
                frame,
                before.map_or(submitted, |last| last.max(submitted)),
            );
        };
        let late = fence.add_callback(ended).is_err();
        ensure!(
            !late || fence.result() == Some(Ok(())),
            "frame {frame} failed"
        );
        Ok(())
    }

    fn read(&self, result: Result<(), String>) {
        if let Err(why) = result {
            self.wrong.lock().push(why);
        }
        self.ended.fetch_add(1, Ordering::Release);
    }

    fn check(&self, who: &str, frame: usize, bytes: &[u8]) -> Result<(), String> {
        let other = bytes.iter().find(|&&byte| byte != value(frame));
        let wrong = |byte| format!("{who}: {byte} in frame {frame}");
        other.map_or(Ok(()), |byte| Err(wrong(byte)))
    }

    /// The synchronous importer: it waits for all, and knows nothing of fences.
    async fn scan_out(&self, frame: usize) -> Result<(), String> {
        let front = &self.front[frame % 2];
        let device = front
            .attach(importer("scanout", self.places[1]), AttachFlags::empty())
            .map_err(text)?;
        device.map(Direction::ToDevice).await.map_err(text)?;
        let access = device.begin_dma(Direction::ToDevice).await.map_err(text)?;
        self.begun[frame].fetch_add(1, Ordering::Release);
        let begin = Instant::now();
        for source in access.sources() {
            let len = source.len();
            let memory = Memory::new(len).map_err(|error| error.to_string())?;
            let to = Destination::new(memory, 0..len).map_err(|_| "no destination")?;
            let copied = self
                .blit
                .copy(to, source)
                .await
                .map_err(|error| error.to_string())?;
            self.check("scanout", frame, &copied.dst.into_memory())?;
        }
        drop(access);
        self.note(2, frame, begin);
        Ok(())
    }

    async fn look(&self, frame: usize) -> Result<(), String> {
        let read = self.front[frame % 2].begin_cpu_read().await.map_err(text)?;
        self.begun[frame].fetch_add(1, Ordering::Release);
        let begin = Instant::now();
        for chunk in read.chunks() {
            self.check("cpu", frame, chunk)?;
            task::yield_now().await;
        }
        drop(read);
        self.note(3, frame, begin);
        Ok(())
    }

    /// The time line, and whatever was wrong.
    fn report(&self) -> Result<(), String> {
        let spans = self.spans.lock();
        let begin = spans.iter().map(|span| span.begin).min();
        let end = spans.iter().map(|span| span.end).max();
        if let (Some(begin), Some(end)) = (begin, end) {
            let whole = (end - begin).max(Duration::from_micros(1));
            let column = |at: Instant| {
                let part = (at - begin).as_nanos() * COLUMNS as u128 / whole.as_nanos();
                (part as usize).min(COLUMNS - 1)
            };
            for (row, name) in ROWS.iter().enumerate() {
                let mut line = [b'.'; COLUMNS];
                for span in spans.iter().filter(|span| span.row == row) {
                    let digit = b'0' + (span.frame % 10) as u8;
                    let (first, last) = (column(span.begin), column(span.end));
                    // What is full stays, but that each frame is seen where it ends.
                    let cells = line[first..=last].iter_mut();
                    cells
                        .filter(|cell| **cell == b'.')
                        .for_each(|cell| *cell = digit);
                    line[last] = digit;
                }
                let line = core::str::from_utf8(&line).unwrap_or_default();
                crate::machine_line!("  # {name:8}|{line}|");
            }
            crate::machine_line!("  # {FRAMES} frames of {FRAME} bytes in {whole:?}");
        }
        let wrong = self.wrong.lock();
        wrong.first().map_or(Ok(()), |first| {
            Err(format!("{first}; {} in all", wrong.len()))
        })
    }

    async fn close(self: Arc<Self>) {
        // Whoever still has it only forgets it.
        let last = poll_until(LIMIT, Duration::from_millis(1), || {
            Arc::strong_count(&self) == 1
        });
        let _ = last.await;
        if let Some(screen) = Arc::into_inner(self) {
            for tx in [screen.render, screen.blit] {
                let alone = || Arc::strong_count(&tx) == 1;
                let _ = poll_until(LIMIT, Duration::from_millis(1), alone).await;
                if let Some(tx) = Arc::into_inner(tx) {
                    tx.close().await;
                }
            }
        }
    }
}

fn text(error: BufError) -> String {
    error.to_string()
}

async fn transfers(name: &'static str, device: &DmaDevice) -> Result<Arc<AsyncTx>, String> {
    let chan = device.channels().next();
    let tx = AsyncTx::new(registry(), &Client::new(name), chan.as_ref()).await;
    Ok(Arc::new(tx.map_err(|error| error.to_string())?))
}

/// Two engines, and where they are.
fn engines() -> Result<Vec<(Address, DmaDevice)>, Verdict> {
    let places = bus::devices();
    let place = |device: &DmaDevice| {
        let mut places = places.iter().map(|place| place.found.address);
        places.find(|address| device.info().provider.ends_with(&address.to_string()))
    };
    let devices = registry().devices().into_iter();
    let engines: Vec<_> = devices
        .filter_map(|device| Some((place(&device)?, device)))
        .collect();
    if engines.len() < 2 {
        return Err(Verdict::Skipped("there are no two engines"));
    }
    Ok(engines)
}

async fn readers_see_their_frames_and_wait_for_nothing_else() -> Result<(), Verdict> {
    let screen = Screen::new(&engines()?, FRAMES).await?;
    screen.show().await?;
    screen.report()?;
    // A reader that takes its time holds up nobody but who would write the same buffer.
    let slow = screen.front[0].begin_cpu_read().await.map_err(text)?;
    let others = async {
        fill(&screen.render, &screen.back[1], 0x77).await?;
        copy(&screen.blit, &screen.front[1], &screen.back[1]).await?;
        drop(screen.front[0].begin_cpu_read().await?);
        screen.front[1].begin_cpu_read().await.map(drop)
    };
    let others = timeout(LIMIT, others).await;
    ensure!(others == Ok(Ok(())), "beside a slow reader: {others:?}");
    let blocked = copy(&screen.blit, &screen.front[0], &screen.back[1])
        .submit()
        .await;
    let blocked = blocked.map_err(text)?;
    task::yield_now().await;
    ensure!(!blocked.is_signalled(), "written under a reader");
    drop(slow);
    let written = timeout(LIMIT, blocked.wait()).await;
    ensure!(written == Ok(Ok(())), "after the reader: {written:?}");
    screen.close().await;
    Ok(())
}

/// Has the first channel of the engine at `address` rest, behind its driver's back: what comes into its
/// ring stays there, until the driver's watchdog takes it for a hang after a second.
fn suspend(address: Address) -> Result<(), String> {
    // Intel Xeon E7 datasheet volume 2, 3.5: the channel's registers, CHANCMD, SUSPEND.
    const CHANCMD: usize = 0x80 + 0x04;
    const SUSPEND: u8 = 1 << 2;
    let mut devices = bus::devices().into_iter();
    let device = devices.find(|device| device.found.address == address);
    let mut bars = device.iter().flat_map(|device| &device.bars);
    let bar = bars.find(|bar| bar.index == 0);
    let registers = bar.and_then(bus::map).ok_or("no registers")?;
    registers.write8(CHANCMD, SUSPEND);
    Ok(())
}

async fn the_same_with_an_engine_pulled_in_the_middle() -> Result<(), Verdict> {
    if !cfg!(feature = "hotplug") {
        let why = "this build takes no engine away that is used";
        return Err(Verdict::Skipped(why));
    }
    let engines = engines()?;
    let screen = Screen::new(&engines, FRAMES / 2).await?;
    let (showing, outcome) = (screen.clone(), Arc::new(Mutex::new(None)));
    let tell = outcome.clone();
    task::spawn("frames", async move {
        let shown = showing.show().await;
        *tell.lock() = Some(shown);
    });
    let half = || screen.ended.load(Ordering::Acquire) == FRAMES;
    let half = poll_until(LIMIT, Duration::from_micros(200), half).await;
    ensure!(half.is_ok(), "no frames");
    let (address, engine) = &engines[1];
    let chan = engine.channels().next();
    let chan = chan.ok_or_else(|| "no channel".to_string())?;
    suspend(*address)?;
    screen.gate.store(FRAMES, Ordering::Release);
    let works = || chan.in_flight() > 0;
    let works = poll_until(LIMIT, Duration::from_micros(200), works).await;
    ensure!(works.is_ok(), "nothing is blitted");
    let removal = removal::unbind_within(*address, LIMIT).await;
    let shown = poll_until(2 * LIMIT, Duration::from_millis(1), || {
        outcome.lock().is_some()
    })
    .await;
    let bound = removal::bind(*address).await;
    let removal = removal?;
    bound?;
    ensure!(shown.is_ok(), "the frames do not end");
    outcome.lock().take().unwrap_or(Ok(()))?;
    screen.report()?;
    crate::machine_line!(
        "  # {address} pulled: inflight={} failed_over={} cpu={} lost={}",
        removal.in_flight,
        removal.failed_over,
        removal.by_cpu,
        removal.lost
    );
    ensure!(removal.lost == 0, "{} operations lost", removal.lost);
    ensure!(removal.failed_over > 0, "nothing failed over: {removal:?}");
    screen.close().await;
    Ok(())
}
