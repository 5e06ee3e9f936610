//! CPUs and devices at a buffer: who waits for whom, what the exporter hears, and moves.

use alloc::boxed::Box;
use core::future::IntoFuture;
use core::pin::pin;
use core::task::Poll;
use std::string::ToString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use dma_fence::FenceError;
use hal::dma::Direction::{Both, FromDevice, ToDevice};
use hal::dma::PAGE;
use hal::host::{block_on, bus_read, bus_write};
use hal::time::Duration;

use super::engine::{Bench, Engine, Noting, Trace, importer};
use super::{Wakes, poll};
use crate::{
    AttachFlags, Attachment, BufError, DmaAccess, DmaBuf, ReserveError, Usage, buffers, copy, fill,
};

const LEN: usize = 3 * PAGE + 100;

/// What is in `buf`, all of it the same.
fn value(buf: &DmaBuf) -> Result<u8, BufError> {
    let read = block_on(buf.begin_cpu_read())?;
    let all = read.chunks().collect::<Vec<_>>().concat();
    assert!(all == std::vec![all[0]; buf.len()], "half written");
    Ok(all[0])
}

fn set(buf: &DmaBuf, value: u8) {
    let mut write = block_on(buf.begin_cpu_write()).unwrap();
    write.chunks_mut().for_each(|chunk| chunk.fill(value));
}

/// What the device behind `access` reads.
fn seen(access: &DmaAccess<'_>) -> Vec<u8> {
    let mut all = Vec::new();
    for segment in access.segments() {
        let start = all.len();
        all.resize(start + segment.len, 0);
        bus_read(segment.addr.bits(), &mut all[start..]).unwrap();
    }
    all
}

#[test]
fn s4_1_attachments_are_synchronous_unless_told() {
    let trace = Trace::default();
    let buf = DmaBuf::new(LEN).unwrap();
    let attach = |name, flags| buf.attach(importer(name, &trace), flags).unwrap();
    let sync = attach("scanout", AttachFlags::empty());
    let asynchronous = attach("render", AttachFlags::ASYNC_ATTACHMENT);
    let evictable = attach("codec", AttachFlags::EVICTABLE);
    assert_eq!(sync.flags(), AttachFlags::empty());
    assert_eq!(asynchronous.flags(), AttachFlags::ASYNC_ATTACHMENT);
    assert!(evictable.flags().contains(AttachFlags::ASYNC_ATTACHMENT));
    let listed = "attachments=[scanout(sync) render(async) codec(async,evictable)]";
    assert!(buf.to_string().ends_with(listed), "{buf}");
    assert!(
        sync.begin_async(ToDevice)
            .is_err_and(|error| error == BufError::Synchronous)
    );
    drop(asynchronous);
    assert!(!buf.to_string().contains("render"), "{buf}");
    let number = buf.resv().number();
    let live = || buffers().iter().any(|buf| buf.resv().number() == number);
    assert!(live());
    drop((sync, evictable, buf));
    assert!(!live());
}

#[test]
fn s4_2_cpu_and_synchronous_devices_wait_for_fences_of_others() {
    let engine = Engine::held();
    let bench = Bench::new(&[&engine]);
    let (src, dst) = (DmaBuf::new(LEN).unwrap(), DmaBuf::new(LEN).unwrap());
    set(&src, 0x5a);
    let trace = Trace::default();
    let device = dst
        .attach(importer("scanout", &trace), AttachFlags::empty())
        .unwrap();
    block_on(device.map(ToDevice)).unwrap();
    let fence = block_on(copy(&bench.tx, &dst, &src).submit()).unwrap();
    let wakes = Arc::new(Wakes::default());
    let mut cpu = pin!(dst.begin_cpu_read());
    let mut dma = pin!(device.begin_dma(ToDevice));
    assert!(poll(cpu.as_mut(), &wakes).is_pending());
    assert!(poll(dma.as_mut(), &wakes).is_pending());
    // The source is read, and may be read by others.
    assert_eq!(value(&src), Ok(0x5a));
    engine.let_go();
    let read = block_on(cpu).unwrap();
    assert!(fence.is_signalled());
    assert!(read.chunks().flatten().all(|&byte| byte == 0x5a));
    let access = block_on(dma).unwrap();
    assert_eq!(seen(&access), [0x5a; LEN]);
}

#[test]
fn s4_3_readers_overlap_and_a_writer_waits() {
    let buf = DmaBuf::new(LEN).unwrap();
    let trace = Trace::default();
    let device = buf
        .attach(importer("device", &trace), AttachFlags::empty())
        .unwrap();
    block_on(device.map(ToDevice)).unwrap();
    block_on(device.map(FromDevice)).unwrap();
    let first = block_on(buf.begin_cpu_read()).unwrap();
    let second = block_on(buf.begin_cpu_read()).unwrap();
    let third = block_on(device.begin_dma(ToDevice)).unwrap();
    let wakes = Arc::new(Wakes::default());
    let mut writer = pin!(device.begin_dma(FromDevice));
    assert!(poll(writer.as_mut(), &wakes).is_pending());
    drop((first, third));
    assert!(poll(writer.as_mut(), &wakes).is_pending());
    drop(second);
    let Poll::Ready(Ok(writer)) = poll(writer.as_mut(), &wakes) else {
        panic!("nobody reads any more");
    };
    let mut reader = pin!(buf.begin_cpu_read());
    assert!(poll(reader.as_mut(), &wakes).is_pending());
    for segment in writer.segments() {
        bus_write(segment.addr.bits(), &std::vec![7; segment.len]).unwrap();
    }
    drop(writer);
    let Poll::Ready(Ok(reader)) = poll(reader.as_mut(), &wakes) else {
        panic!("the device has ended");
    };
    assert!(reader.chunks().flatten().all(|&byte| byte == 7));
}

#[test]
fn s4_4_the_exporter_flushes_what_has_been_waited_for() {
    let engine = Engine::held();
    let bench = Bench::new(&[&engine]);
    let noting = Noting::default();
    let trace = noting.trace.clone();
    let buf = DmaBuf::export(Arc::new(noting), LEN).unwrap();
    let device = buf
        .attach(importer("device", &Trace::default()), AttachFlags::empty())
        .unwrap();
    block_on(device.map(ToDevice)).unwrap();
    let fence = block_on(fill(&bench.tx, &buf, 1).submit()).unwrap();
    let signal = trace.clone();
    fence.add_callback(move |_| signal.note("fence")).unwrap();
    trace.take();
    let mut cpu = pin!(buf.begin_cpu_read());
    let mut dma = Box::pin(device.begin_dma(ToDevice));
    assert!(poll(cpu.as_mut(), &Arc::default()).is_pending());
    assert!(poll(dma.as_mut(), &Arc::default()).is_pending());
    assert_eq!(trace.take(), [""; 0], "nothing to flush yet");
    engine.let_go();
    drop(block_on(cpu).unwrap());
    drop(block_on(dma).unwrap());
    set(&buf, 2);
    let told = [
        "fence",
        "begin cpu FromDevice",
        "end cpu FromDevice",
        "begin device ToDevice",
        "end device ToDevice",
        "begin cpu Both",
        "end cpu Both",
    ];
    assert_eq!(trace.take(), told);
    drop(device);
    assert_eq!(trace.take(), ["detach device"]);
}

/// Warnings of this crate.
struct Warnings;

static WARNED: Mutex<Vec<std::string::String>> = Mutex::new(Vec::new());

impl log::Log for Warnings {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() == log::Level::Warn {
            WARNED.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[test]
fn s4_6_accesses_begin_and_end_without_mapping_anew() {
    let trace = Trace::default();
    let buf = DmaBuf::new(2 * PAGE).unwrap();
    let mut device = buf
        .attach(importer("device", &trace), AttachFlags::empty())
        .unwrap();
    let refused = block_on(device.begin_dma(ToDevice)).err();
    assert_eq!(refused, Some(BufError::NotMapped));
    assert_eq!(block_on(device.map(Both)), Err(BufError::Refused));
    block_on(device.map(ToDevice)).unwrap();
    block_on(device.map(ToDevice)).unwrap();
    for _ in 0..3 {
        drop(block_on(device.begin_dma(ToDevice)).unwrap());
    }
    assert_eq!(trace.take(), ["map ToDevice"; 2], "a chunk each, once");
    block_on(device.map(FromDevice)).unwrap();
    assert_eq!(trace.take(), ["map FromDevice"; 2]);
    assert_eq!(device.unmap(), Ok(()));
    assert_eq!(trace.take(), ["unmap"; 4]);
    assert_eq!(device.unmap(), Err(BufError::NotMapped), "twice");
    // An end that is missing is told of, and holds up those who would write.
    let _ = log::set_logger(&Warnings);
    log::set_max_level(log::LevelFilter::Warn);
    block_on(device.map(ToDevice)).unwrap();
    core::mem::forget(block_on(device.begin_dma(ToDevice)).unwrap());
    let number = buf.resv().number();
    drop(device);
    let about = std::format!("dma-buf {number} ");
    let warned = WARNED.lock().unwrap().clone();
    let warned: Vec<_> = warned
        .iter()
        .filter(|line| line.starts_with(&about))
        .collect();
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].ends_with("device(sync) detaches with 1 accesses open"));
    let limit = Duration::from_millis(1);
    let wait = block_on(buf.resv().wait_for(Usage::Write, limit));
    assert_eq!(wait, Err(BufError::TimedOut));
}

#[test]
fn s4_7_asynchronous_devices_see_each_others_writes() {
    let trace = Trace::default();
    let plain = |name| importer(name, &trace);
    let incoherent = |name| crate::Importer {
        coherent: false,
        ..importer(name, &trace)
    };
    let buf = DmaBuf::new(PAGE).unwrap();
    // Among synchronous ones the exporter flushes at each access.
    let odd = buf.attach(incoherent("odd"), AttachFlags::empty()).unwrap();
    let even = buf.attach(plain("even"), AttachFlags::empty()).unwrap();
    let refused = buf
        .attach(plain("async"), AttachFlags::ASYNC_ATTACHMENT)
        .err();
    assert_eq!(refused, Some(BufError::Incoherent));
    assert_eq!(BufError::Incoherent.errno(), -22);
    assert!(!buf.to_string().contains("async"), "{buf}");
    drop(odd);
    let asynchronous = buf
        .attach(plain("async"), AttachFlags::ASYNC_ATTACHMENT)
        .unwrap();
    let refused = buf.attach(incoherent("odd"), AttachFlags::empty()).err();
    assert_eq!(refused, Some(BufError::Incoherent));
    let refused = buf.attach(incoherent("odd"), AttachFlags::EVICTABLE).err();
    assert_eq!(refused, Some(BufError::Incoherent));
    drop((even, asynchronous));
    let flushing = Noting {
        flushes: true,
        ..Noting::default()
    };
    let noted = flushing.trace.clone();
    let buf = DmaBuf::export(Arc::new(flushing), PAGE).unwrap();
    buf.attach(incoherent("odd"), AttachFlags::ASYNC_ATTACHMENT)
        .unwrap();
    assert_eq!(noted.take(), ["allocate", "attach odd", "detach odd"]);
}

#[test]
fn who_the_exporter_refuses_is_not_attached() {
    let refusing = Noting {
        refuses: true,
        ..Noting::default()
    };
    let buf = DmaBuf::export(Arc::new(refusing), PAGE).unwrap();
    let refused = buf.attach(importer("device", &Trace::default()), AttachFlags::empty());
    assert_eq!(refused.err(), Some(BufError::Refused));
    assert!(buf.to_string().ends_with("attachments=[]"), "{buf}");
}

fn place(device: &Attachment) -> Result<Vec<u64>, BufError> {
    let access = device.begin_async(ToDevice)?;
    Ok(access
        .segments()
        .map(|segment| segment.addr.bits())
        .collect())
}

#[test]
fn s4_9_a_buffer_moves_only_if_all_who_have_it_cope() {
    let bench = Bench::new(&[&Engine::eager()]);
    let trace = Trace::default();
    let buf = DmaBuf::new(LEN).unwrap();
    set(&buf, 9);
    let sync = buf
        .attach(importer("sync", &trace), AttachFlags::empty())
        .unwrap();
    assert_eq!(block_on(buf.evict(&bench.tx)), Err(BufError::Pinned));
    drop(sync);
    let fixed = buf
        .attach(importer("fixed", &trace), AttachFlags::ASYNC_ATTACHMENT)
        .unwrap();
    assert_eq!(block_on(buf.evict(&bench.tx)), Err(BufError::Pinned));
    drop(fixed);
    let pin = buf.pin();
    assert_eq!(block_on(buf.evict(&bench.tx)), Err(BufError::Pinned));
    assert_eq!(BufError::Pinned.errno(), -16);
    drop(pin);
    let mut device = buf
        .attach(importer("device", &trace), AttachFlags::EVICTABLE)
        .unwrap();
    block_on(device.map(ToDevice)).unwrap();
    let before = place(&device).unwrap();
    // Not while somebody is at work on it.
    let reader = block_on(buf.begin_cpu_read()).unwrap();
    let mut evict = Box::pin(buf.evict(&bench.tx));
    assert!(poll(evict.as_mut(), &Arc::default()).is_pending());
    assert_eq!(place(&device), Ok(before.clone()));
    drop(reader);
    assert_eq!(block_on(evict), Ok(()));
    device.unmap().unwrap();
    block_on(device.map(ToDevice)).unwrap();
    let after = place(&device).unwrap();
    assert!(before.iter().all(|old| !after.contains(old)));
    assert_eq!(value(&buf), Ok(9));
}

/// Lets other tasks run that are ready.
pub(super) fn others_run() {
    let turns = if cfg!(miri) { 20 } else { 200 };
    for _ in 0..turns {
        let (signaler, fence) = super::fence();
        hal::task::spawn("test", async move { signaler.signal(Ok(())) });
        block_on(fence.wait()).unwrap();
    }
}

#[test]
fn s4_9_a_move_begins_when_all_work_has_ended() {
    let bench = Bench::new(&[&Engine::eager()]);
    let noting = Noting::default();
    let trace = noting.trace.clone();
    let buf = DmaBuf::export(Arc::new(noting), LEN).unwrap();
    let writer = block_on(buf.begin_cpu_write()).unwrap();
    let mut evict = Box::pin(buf.evict(&bench.tx));
    assert!(poll(evict.as_mut(), &Arc::default()).is_pending());
    others_run();
    drop(writer);
    assert_eq!(block_on(evict), Ok(()));
    let told = ["allocate", "begin cpu Both", "end cpu Both", "allocate"];
    assert_eq!(trace.take(), told);
}

#[test]
fn s4_10_who_meets_an_eviction_unmaps_and_begins_again() {
    let bench = Bench::new(&[&Engine::eager()]);
    let trace = Trace::default();
    let buf = DmaBuf::new(LEN).unwrap();
    set(&buf, 10);
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    let notified = crate::Importer {
        move_notify: Some(Arc::new(move |_: &DmaBuf| {
            count.fetch_add(1, Ordering::Relaxed);
        })),
        ..importer("device", &trace)
    };
    let mut device = buf.attach(notified, AttachFlags::EVICTABLE).unwrap();
    block_on(buf.evict(&bench.tx)).unwrap();
    assert_eq!(told.load(Ordering::Relaxed), 0, "it had nothing mapped");
    block_on(device.map(ToDevice)).unwrap();
    block_on(buf.evict(&bench.tx)).unwrap();
    assert_eq!(told.load(Ordering::Relaxed), 1);
    let unmaps = trace.take().iter().filter(|line| *line == "unmap").count();
    assert_eq!(unmaps, buf.chunks(), "the device cannot reach what it had");
    assert_eq!(place(&device), Err(BufError::Evicted));
    assert_eq!(block_on(device.map(ToDevice)), Err(BufError::Evicted));
    assert_eq!(
        block_on(device.begin_dma(ToDevice)).err(),
        Some(BufError::Evicted)
    );
    assert_eq!(device.unmap(), Ok(()));
    block_on(device.map(ToDevice)).unwrap();
    let access = device.begin_async(ToDevice).unwrap();
    assert_eq!(seen(&access), [10; LEN]);
}

#[test]
fn who_had_mapped_what_an_engine_has_lost_maps_anew() {
    let engine = Engine::eager();
    let (bench, cpu) = (Bench::new(&[&engine]), Bench::new(&[]));
    let trace = Trace::default();
    let (a, buf) = (DmaBuf::new(LEN).unwrap(), DmaBuf::new(LEN).unwrap());
    set(&a, 1);
    // One that need not be asked before the buffer moves, and one that must.
    let attach = |flags| buf.attach(importer("device", &trace), flags).unwrap();
    let mut devices = [AttachFlags::EVICTABLE, AttachFlags::empty()].map(attach);
    for device in &mut devices {
        block_on(device.map(ToDevice)).unwrap();
    }
    engine.fail(FenceError::Gone);
    engine.expose();
    let failed = Err(BufError::Failed(FenceError::Gone));
    assert_eq!(block_on(copy(&bench.tx, &buf, &a).into_future()), failed);
    block_on(fill(&cpu.tx, &buf, 6).into_future()).unwrap();
    for device in &mut devices {
        let refused = block_on(device.begin_dma(ToDevice)).err();
        assert_eq!(refused, Some(BufError::Evicted));
        device.unmap().unwrap();
        block_on(device.map(ToDevice)).unwrap();
        let access = block_on(device.begin_dma(ToDevice)).unwrap();
        assert_eq!(seen(&access), [6; LEN]);
    }
}

#[test]
fn s4_10_importers_and_evictions_race_and_the_data_stays() {
    const ENOUGH: usize = if cfg!(miri) { 2 } else { 50 };
    let bench = Bench::new(&[&Engine::eager()]);
    let buf = DmaBuf::new(LEN).unwrap();
    set(&buf, 1);
    let stop = Arc::new(AtomicUsize::new(0));
    let (moving, tx, stopped) = (buf.clone(), bench.tx.clone(), stop.clone());
    let mover = std::thread::spawn(move || {
        while stopped.load(Ordering::Relaxed) == 0 {
            block_on(moving.evict(&tx)).unwrap();
        }
    });
    let mut device = buf
        .attach(
            importer("device", &Trace::default()),
            AttachFlags::EVICTABLE,
        )
        .unwrap();
    let mut evictions = 0;
    while evictions < ENOUGH {
        if block_on(device.map(ToDevice)) == Err(BufError::Evicted) {
            evictions += 1;
            device.unmap().unwrap();
            continue;
        }
        // Its own fence keeps the buffer where it is.
        let reserve = crate::manager().reserve("device", [(buf.resv(), Usage::Read)]);
        let reserved = block_on(reserve).unwrap();
        let committed = reserved.queue_waits().unwrap().commit(super::fence());
        block_on(committed.wait()).unwrap();
        match device.begin_async(ToDevice) {
            Ok(access) => {
                assert_eq!(seen(&access), [1; LEN]);
                let sources: Vec<_> = access.sources().collect();
                assert!(sources.iter().all(|source| source.bytes()[0] == 1));
                assert_eq!(sources.len(), buf.chunks());
            }
            Err(error) => {
                evictions += 1;
                assert_eq!(error, BufError::Evicted);
                device.unmap().unwrap();
            }
        }
        committed.signal(Ok(()));
    }
    stop.store(1, Ordering::Relaxed);
    mover.join().unwrap();
    let _ = device.unmap();
    block_on(device.map(ToDevice)).unwrap();
    assert_eq!(seen(&device.begin_async(ToDevice).unwrap()), [1; LEN]);
    assert_eq!(value(&buf), Ok(1));
}

#[test]
fn s4_29_waits_end_with_their_limit() {
    let buf = DmaBuf::new(PAGE).unwrap();
    let open = block_on(buf.begin_cpu_write()).unwrap();
    for limit in [Duration::ZERO, Duration::from_millis(2)] {
        let wait = block_on(buf.resv().wait_for(Usage::Read, limit));
        assert_eq!(wait, Err(BufError::TimedOut));
    }
    assert_eq!(BufError::TimedOut.errno(), -110);
    // Who gives up is not in anybody's way, and has broken nothing.
    let given_up = hal::time::timeout(Duration::from_millis(1), buf.begin_cpu_write());
    assert!(block_on(given_up).is_err());
    drop(open);
    assert_eq!(
        block_on(buf.resv().wait_for(Usage::Read, Duration::from_secs(60))),
        Ok(())
    );
    assert_eq!(value(&buf), Ok(0));
    assert_eq!(
        block_on(buf.resv().wait_for(Usage::Write, Duration::ZERO)),
        Ok(())
    );
}

#[test]
fn bytes_are_read_and_written_across_chunks() {
    let buf = DmaBuf::new(LEN).unwrap();
    assert_eq!((buf.len(), buf.chunks()), (LEN, 4));
    let mut write = block_on(buf.begin_cpu_write()).unwrap();
    let text: Vec<_> = (0..=255).cycle().take(PAGE + 20).collect();
    write.write(PAGE - 10, &text).unwrap();
    let mut back = std::vec![0; PAGE + 22];
    write.read(PAGE - 11, &mut back).unwrap();
    assert_eq!(
        (back[0], &back[1..PAGE + 21], back[PAGE + 21]),
        (0, &text[..], 0)
    );
    assert_eq!(write.write(LEN - 1, &[1, 2]), Err(BufError::Range));
    assert_eq!(write.write(usize::MAX, &[1, 2]), Err(BufError::Range));
    assert_eq!(write.read(LEN + 1, &mut []), Err(BufError::Range));
    write.write(LEN - 1, &[3]).unwrap();
    drop(write);
    let read = block_on(buf.begin_cpu_read()).unwrap();
    let mut last = [0];
    read.read(LEN - 1, &mut last).unwrap();
    assert_eq!((last, read.chunks().map(<[u8]>::len).sum()), ([3], LEN));
    assert!(DmaBuf::new(0).is_err());
}

#[test]
fn errors_have_a_line_and_a_number_each() {
    let lines = [
        (BufError::Reserve(ReserveError::Busy), "reserved", -16),
        (BufError::Failed(FenceError::Gone), "device gone", -19),
        (BufError::Busy, "its memory is in use", -16),
        (BufError::Lost, "its memory was lost with a device", -5),
        (BufError::Evicted, "evicted", -116),
        (BufError::NotMapped, "not mapped", -22),
        (BufError::Synchronous, "the attachment is synchronous", -22),
        (BufError::Refused, "refused by the exporter", -95),
        (BufError::Range, "outside the buffer", -22),
        (BufError::OutOfMemory, "out of memory", -12),
    ];
    for (error, line, errno) in lines {
        assert_eq!((error.to_string().as_str(), error.errno()), (line, errno));
    }
}
