//! Segments and the task state segment: the stacks that traps switch to.
//!
//! Double faults, NMIs and machine checks get stacks of their own, each with a guard page, so that
//! they can be reported whatever state the interrupted stack is in. Intel SDM volume 3, 7.14.5.

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::{lgdt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use super::percpu;
use crate::mm::stack;

/// Interrupt stack table entries, 1-based as in a gate.
pub const IST_DOUBLE_FAULT: u8 = 1;
/// See [`IST_DOUBLE_FAULT`].
pub const IST_NMI: u8 = 2;
/// See [`IST_DOUBLE_FAULT`].
pub const IST_MACHINE_CHECK: u8 = 3;

/// Null, code, data: what gates refer to until [`init`], in the image, where every CPU sees it.
/// Accessed already, as no CPU can note it in memory that is only read (Intel SDM volume 3, 3.4.5.1).
static EARLY: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Makes exceptions reportable before there is a heap: the loader's table is out of reach once the
/// kernel's page tables are in force. The selectors are those in use.
pub fn load_early() {
    let pointer = DescriptorTablePointer {
        limit: (size_of_val(&EARLY) - 1) as u16,
        base: VirtAddr::new(&raw const EARLY as u64),
    };
    // SAFETY: the table lives forever and describes the segments that are loaded.
    unsafe { lgdt(&pointer) };
}

/// One CPU's descriptor table and task state segment.
#[derive(Debug)]
pub struct Tables {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
}

impl Tables {
    /// Tables with fresh interrupt stacks, in the order of the IST constants.
    fn new() -> *mut Self {
        let mut interrupt_stacks = [VirtAddr::zero(); 7];
        for (slot, top) in interrupt_stacks.iter_mut().zip(stack::interrupt_stacks()) {
            *slot = VirtAddr::new(top);
        }
        let mut tss = TaskStateSegment::new();
        tss.interrupt_stack_table = interrupt_stacks;
        Box::into_raw(Box::new(Self {
            gdt: GlobalDescriptorTable::new(),
            tss,
        }))
    }
}

/// Loads this CPU's tables, which it gets with its interrupt stacks when it starts for the first
/// time. Needs the heap. Tables and stacks are the CPU's for good.
pub fn init() {
    let cpu = percpu::current();
    let known = cpu.tables.load(Ordering::Acquire);
    let tables = if known.is_null() {
        Tables::new()
    } else {
        known
    };
    cpu.tables.store(tables, Ordering::Release);
    // SAFETY: the CPU's own, which nobody else refers to and which are never freed.
    let tables = unsafe { &mut *tables };
    // Anew at each start: loading a task state segment marks it as busy.
    tables.gdt = GlobalDescriptorTable::new();
    let code = tables.gdt.append(Descriptor::kernel_code_segment());
    let data = tables.gdt.append(Descriptor::kernel_data_segment());
    let tss = tables.gdt.append(Descriptor::tss_segment(&tables.tss));
    tables.gdt.load();
    // SAFETY: the selectors are those of the table just loaded. Loading null into FS or GS is
    // avoided, for it would clear the GS base.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(SegmentSelector::NULL);
        ES::set_reg(SegmentSelector::NULL);
        load_tss(tss);
    }
}
