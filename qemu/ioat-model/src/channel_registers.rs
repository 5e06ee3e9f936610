//! A channel's registers: what each bit does when it is accessed.
//!
//! Intel Xeon E7 v2 datasheet vol. 2; for what it does not describe, SPDK `ioat_spec.h` and the
//! headers of Linux ioatdma.

use ioat_spec::{ChanCtrl, State, channel};

use crate::registers::{Register, ro, rw, w1c};

/// The registers that Linux writes 80h behind their channel: DRSCTL and the latency tolerances.
/// They are accepted in every channel's block, where nothing else is, and do nothing.
pub(crate) const ACCEPTED: [Register; 4] = [
    rw(channel::DRSCTL - channel::STRIDE, 2, 0xffff),
    rw(channel::LTR_SWSEL - channel::STRIDE, 1, 0xff),
    rw(channel::LTR_ACTIVE - channel::STRIDE, 4, 0xffff_ffff),
    rw(channel::LTR_IDLE - channel::STRIDE, 4, 0xffff_ffff),
];

const ALL_ERRORS: u64 = 0x0fff_ffff;

/// The registers of one channel; one bit depends on how many an engine has.
pub(crate) fn table(channels: usize) -> Vec<Register> {
    let no_snoop = if channels == 1 {
        ChanCtrl::DESC_NO_SNOOP
    } else {
        ChanCtrl::empty()
    };
    let control = ChanCtrl::ERR_COMPLETION_EN
        | ChanCtrl::ANY_ERR_ABORT_EN
        | ChanCtrl::ERR_INT_EN
        | ChanCtrl::COMPL_DCA_EN
        | ChanCtrl::PRIORITY
        | no_snoop;
    let in_use = u64::from(ChanCtrl::IN_USE.bits());
    let mut table = vec![
        Register {
            rw: control.bits().into(),
            w1c: ChanCtrl::INT_DISABLE.bits().into(),
            w0c: in_use,
            read_sets: in_use,
            ..ro(channel::CHANCTRL, 2, 0)
        },
        ro(channel::DMA_COMP, 2, channel::DMA_COMP_V2.into()),
        ro(channel::CHANCMD, 1, 0),
        rw(channel::DMACOUNT, 2, 0xffff),
        ro(channel::CHANSTS, 8, State::Halted as u64),
        rw(channel::CHAINADDR, 8, u64::MAX),
        rw(channel::CHANCMP, 8, u64::MAX),
        ro(channel::CDAR, 8, 0),
        w1c(channel::CHANERR, 4, ALL_ERRORS),
        rw(channel::CHANERRMSK, 4, ALL_ERRORS),
        rw(channel::DCACTRL, 4, 0xffff_ffff),
    ];
    table.extend(ACCEPTED);
    table
}
