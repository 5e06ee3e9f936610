//! The specification a second time, typed by hand from other sources than the crate's own text,
//! so that one slip does not sit in the driver and in the engine alike.
//!
//! Sources, by section: "E7" is Intel's Xeon E7 v2 datasheet vol. 2, "SPDK" `ioat_spec.h`,
//! "FreeBSD" `ioat_hw.h`, "DPDK" `ioat_hw_defs.h`, "Linux" `registers.h` and `hw.h` of ioatdma.

#![forbid(unsafe_code)]

use ioat_spec::{
    CbVer, ChanCmd, ChanCtrl, ChanErr, ChanSts, Control, Descriptor, DmaCap, IntrCtrl, Op, State,
    channel, descriptor, device, pci,
};

/// Each line: what the crate says, what the source says.
#[track_caller]
fn agree<T: PartialEq + std::fmt::Debug>(table: &[(&str, T, T)]) {
    for (name, ours, source) in table {
        assert_eq!(ours, source, "{name}");
    }
}

#[test]
fn device_registers_are_where_the_headers_put_them() {
    // SPDK ioat_spec.h (struct ioat_registers), FreeBSD ioat_hw.h (IOAT_*_OFFSET).
    agree(&[
        ("CHANCNT", device::CHANCNT, 0),
        ("XFERCAP", device::XFERCAP, 1),
        ("GENCTRL", device::GENCTRL, 2),
        ("INTRCTRL", device::INTRCTRL, 3),
        ("ATTNSTATUS", device::ATTNSTATUS, 4),
        ("CBVER", device::CBVER, 8),
        ("PERPORTOFFSET", device::PERPORTOFFSET, 10),
        ("INTRDELAY", device::INTRDELAY, 12),
        ("CS_STATUS", device::CS_STATUS, 14),
        ("DMACAPABILITY", device::DMACAPABILITY, 16),
        ("DCAOFFSET", device::DCAOFFSET, 20),
        ("CBPRIO (E7)", device::CBPRIO, 64),
        ("CHWPREFLMT (Linux)", device::CHWPREFLMT, 76),
    ]);
    // FreeBSD ioat_hw.h: the valid bits of CHANCNT and XFERCAP; Linux: 12 is the least.
    assert_eq!(device::CHANCNT_MASK, 31);
    assert_eq!(device::XFERCAP_MASK, 31);
    assert_eq!(device::XFERCAP_MIN, 12);
    assert_eq!(device::INTRDELAY_MASK, 16383);
    assert_eq!(device::INTRDELAY_SUPPORTED, 32768);
    assert_eq!(
        [
            device::CS_STATUS_DEGRADED,
            device::CS_STATUS_MMIO_RESTRICTED,
            device::CS_STATUS_MEMORY_BYPASS,
            device::CS_STATUS_REMAPPING
        ],
        [1, 2, 4, 8]
    );
    assert_eq!(device::CHWPREFLMT_DEFAULT, 5);
}

#[test]
fn device_bits_are_those_of_the_headers() {
    // Linux registers.h: IOAT_INTRCTRL_*.
    agree(&[
        ("MASTER_INT_EN", IntrCtrl::MASTER_INT_EN.bits(), 0x01),
        ("INT_STATUS", IntrCtrl::INT_STATUS.bits(), 0x02),
        ("INT", IntrCtrl::INT.bits(), 0x04),
        ("MSIX", IntrCtrl::MSIX_VECTOR_CONTROL.bits(), 0x08),
    ]);
    // FreeBSD ioat_hw.h: IOAT_DMACAP_*; Linux registers.h: IOAT_CAP_*.
    agree(&[
        ("PB", DmaCap::PAGE_BREAK.bits(), 0x0000_0001),
        ("CRC", DmaCap::CRC.bits(), 0x0000_0002),
        ("MARKER_SKIP", DmaCap::MARKER_SKIP.bits(), 0x0000_0004),
        ("OLD_XOR", DmaCap::XOR_OLD.bits(), 0x0000_0008),
        ("DCA", DmaCap::DCA.bits(), 0x0000_0010),
        ("MOVECRC", DmaCap::MOVE_CRC.bits(), 0x0000_0020),
        ("BFILL", DmaCap::FILL_BLOCK.bits(), 0x0000_0040),
        ("EXT_APIC", DmaCap::EXT_APIC_ID.bits(), 0x0000_0080),
        ("XOR", DmaCap::XOR.bits(), 0x0000_0100),
        ("PQ", DmaCap::PQ.bits(), 0x0000_0200),
        ("DMA_DIF", DmaCap::DIF.bits(), 0x0000_0400),
        ("DWBES", DmaCap::DWBES.bits(), 0x0000_2000),
        ("RAID16SS", DmaCap::RAID16SS.bits(), 0x0002_0000),
        ("DMAMC", DmaCap::MULTICAST.bits(), 0x0004_0000),
        ("CTOS", DmaCap::COMPLETION_TIMEOUT.bits(), 0x0008_0000),
        ("DPS (Linux)", DmaCap::DPS.bits(), 0x0080_0000),
    ]);
    agree(&[
        ("3.0", CbVer::V3_0.0, 48),
        ("3.2", CbVer::V3_2.0, 50),
        ("3.3", CbVer::V3_3.0, 51),
        ("3.4", CbVer::V3_4.0, 52),
    ]);
    assert_eq!((CbVer(0x34).major(), CbVer(0x34).minor()), (3, 4));
}

#[test]
fn channel_registers_are_where_the_headers_put_them() {
    // SPDK ioat_spec.h (struct ioat_registers after the device's 128 bytes), FreeBSD ioat_hw.h.
    agree(&[
        ("first channel", channel::base(0), 0x80),
        ("second channel", channel::base(1), 0x100),
        ("CHANCTRL", channel::CHANCTRL, 0),
        ("DMA_COMP", channel::DMA_COMP, 2),
        ("CHANCMD", channel::CHANCMD, 4),
        ("DMACOUNT", channel::DMACOUNT, 6),
        ("CHANSTS", channel::CHANSTS, 8),
        ("CHAINADDR", channel::CHAINADDR, 16),
        ("CHANCMP", channel::CHANCMP, 24),
        ("CDAR (Linux)", channel::CDAR, 32),
        ("CHANERR", channel::CHANERR, 40),
        ("CHANERRMSK", channel::CHANERRMSK, 44),
        ("DCACTRL", channel::DCACTRL, 48),
        ("DRSCTL (Linux)", channel::DRSCTL, 0xb6),
        ("LTR_SWSEL (Linux)", channel::LTR_SWSEL, 0xbc),
        ("LTR_ACTIVE (Linux)", channel::LTR_ACTIVE, 0xc0),
        ("LTR_IDLE (Linux)", channel::LTR_IDLE, 0xc4),
    ]);
    assert_eq!((channel::DMA_COMP_V1, channel::DMA_COMP_V2), (1, 2));
    assert_eq!(channel::DCACTRL_ENABLE, 65536);
}

#[test]
fn channel_control_and_commands_are_those_of_the_headers() {
    // SPDK ioat_spec.h: SPDK_IOAT_CHANCTRL_*; E7: IN_USE; FreeBSD ioat_hw.h: IOAT_CHANCTRL_*.
    agree(&[
        ("INT_REARM", ChanCtrl::INT_DISABLE.bits(), 0x0001),
        ("ERR_COMP", ChanCtrl::ERR_COMPLETION_EN.bits(), 0x0004),
        ("ANY_ERR_ABORT", ChanCtrl::ANY_ERR_ABORT_EN.bits(), 0x0008),
        ("ERR_INT", ChanCtrl::ERR_INT_EN.bits(), 0x0010),
        ("DESC_NO_SNOOP", ChanCtrl::DESC_NO_SNOOP.bits(), 0x0020),
        ("IN_USE", ChanCtrl::IN_USE.bits(), 0x0100),
        ("COMPL_DCA", ChanCtrl::COMPL_DCA_EN.bits(), 0x0200),
        ("PRIORITY", ChanCtrl::PRIORITY.bits(), 0xf000),
    ]);
    // What Linux and FreeBSD write at start: 001D.
    let run = ChanCtrl::INT_DISABLE
        | ChanCtrl::ERR_COMPLETION_EN
        | ChanCtrl::ANY_ERR_ABORT_EN
        | ChanCtrl::ERR_INT_EN;
    assert_eq!(run.bits(), 0x1d);
    agree(&[
        ("START", ChanCmd::START.bits(), 0x01),
        ("APPEND", ChanCmd::APPEND.bits(), 0x02),
        ("SUSPEND", ChanCmd::SUSPEND.bits(), 0x04),
        ("ABORT", ChanCmd::ABORT.bits(), 0x08),
        ("RESUME", ChanCmd::RESUME.bits(), 0x10),
        ("RESET", ChanCmd::RESET.bits(), 0x20),
    ]);
}

#[test]
fn channel_status_is_that_of_the_headers() {
    // SPDK ioat_spec.h: SPDK_IOAT_CHANSTS_*; DPDK: ARMED is 4.
    agree(&[
        ("ACTIVE", State::Active as u8, 0),
        ("IDLE", State::Idle as u8, 1),
        ("SUSPENDED", State::Suspended as u8, 2),
        ("HALTED", State::Halted as u8, 3),
        ("ARMED", State::Armed as u8, 4),
    ]);
    agree(&[
        ("STATUS", ChanSts::STATE, 0x7),
        ("UNAFFILIATED_ERROR", ChanSts::UNAFFILIATED, 0x8),
        ("SOFT_ERROR", ChanSts::SOFT_ERROR, 0x10),
        ("COMPLETED_ADDRESS", ChanSts::ADDRESS, 0xffff_ffff_ffff_ffc0),
    ]);
    for bits in 0..=4 {
        assert_eq!(ChanSts(bits).state().map(|s| s as u64), Some(bits));
    }
    for bits in [5, 6, 7, u64::MAX] {
        assert_eq!(ChanSts(bits).state(), None);
    }
    let word = ChanSts::new(0x1_2345_67ff, State::Halted);
    assert_eq!(word.0, 0x1_2345_67c3);
    assert_eq!(word.address(), 0x1_2345_67c0);
}

#[test]
fn errors_are_those_of_the_headers() {
    // Linux registers.h: IOAT_CHANERR_*; FreeBSD ioat_hw.h: IOAT_CHANERR_*ERR.
    agree(&[
        ("XSADD", ChanErr::SRC_ADDR.bits(), 1),
        ("XDADD", ChanErr::DST_ADDR.bits(), 2),
        ("NDADD", ChanErr::NEXT_ADDR.bits(), 4),
        ("DERR", ChanErr::DESCRIPTOR.bits(), 8),
        ("CHADD", ChanErr::CHAINADDR.bits(), 0x10),
        ("CHCMD", ChanErr::CHANCMD.bits(), 0x20),
        ("CHIPSET", ChanErr::CHIPSET.bits(), 0x40),
        ("DMAINT", ChanErr::DMA_INTEGRITY.bits(), 0x80),
        ("RD", ChanErr::READ_DATA.bits(), 0x100),
        ("WD", ChanErr::WRITE_DATA.bits(), 0x200),
        ("DCERR", ChanErr::CONTROL.bits(), 0x400),
        ("DXSERR", ChanErr::LENGTH.bits(), 0x800),
        ("CMPADD", ChanErr::COMPLETION_ADDR.bits(), 0x1000),
        ("INTCFG", ChanErr::INT_CONFIG.bits(), 0x2000),
        ("SEDERR", ChanErr::SED_ADDR.bits(), 0x4000),
        ("UNAFF", ChanErr::UNAFFILIATED.bits(), 0x8000),
        ("CRC, XOR, P", ChanErr::CRC_XOR_P.bits(), 0x1_0000),
        ("Q (Linux)", ChanErr::Q.bits(), 0x2_0000),
        ("DCOUNT", ChanErr::DESCRIPTOR_COUNT.bits(), 0x4_0000),
        ("DIFFALL", ChanErr::DIF_ALL_F.bits(), 0x8_0000),
        ("DIFGTAG", ChanErr::DIF_GUARD.bits(), 0x10_0000),
        ("DIFATAG", ChanErr::DIF_APP.bits(), 0x20_0000),
        ("DIFRTAG", ChanErr::DIF_REF.bits(), 0x40_0000),
        ("BUNDLE", ChanErr::BUNDLE.bits(), 0x80_0000),
        ("RESDIFFALL", ChanErr::RESULT_DIF_ALL_F.bits(), 0x100_0000),
        ("RESDIFGTAG", ChanErr::RESULT_DIF_GUARD.bits(), 0x200_0000),
        ("RESDIFATAG", ChanErr::RESULT_DIF_APP.bits(), 0x400_0000),
        ("RESDIFRTAG", ChanErr::RESULT_DIF_REF.bits(), 0x800_0000),
    ]);
}

#[test]
fn descriptor_fields_are_where_the_headers_put_them() {
    use descriptor::offset;
    // SPDK ioat_spec.h: struct spdk_ioat_dma_hw_desc, _fill_, _xor_, _xor_ext_, _pq_, _pq_ext_.
    agree(&[
        ("size", offset::SIZE, 0),
        ("control", offset::CONTROL, 4),
        ("src_addr", offset::SRC, 8),
        ("dest_addr", offset::DST, 16),
        ("next", offset::NEXT, 24),
        ("copy: next_src_addr", offset::NEXT_SRC, 32),
        ("copy: next_dest_addr", offset::NEXT_DST, 40),
        ("xor: src_addr2", offset::SRC2, 32),
        ("xor: src_addr3", offset::SRC3, 40),
        ("xor: src_addr4", offset::XOR_SRC4, 48),
        ("xor: src_addr5", offset::XOR_SRC5, 56),
        ("xor_ext: src_addr6", offset::XOR_EXT_SRC6, 0),
        ("xor_ext: src_addr7", offset::XOR_EXT_SRC7, 8),
        ("xor_ext: src_addr8", offset::XOR_EXT_SRC8, 16),
        ("pq: coef", offset::PQ_COEF, 48),
        ("pq: q_addr", offset::PQ_Q, 56),
        ("pq_ext: src_addr4", offset::PQ_EXT_SRC4, 0),
        ("pq_ext: src_addr5", offset::PQ_EXT_SRC5, 8),
        ("pq_ext: src_addr6", offset::PQ_EXT_SRC6, 16),
        ("pq_ext: src_addr7", offset::PQ_EXT_SRC7, 32),
        ("pq_ext: src_addr8", offset::PQ_EXT_SRC8, 40),
        ("pq16: sed_addr (Linux hw.h)", offset::PQ16_SED, 40),
        ("pq_update: p_src", offset::PQ_UPDATE_P_SRC, 40),
        ("pq_update: q_src", offset::PQ_UPDATE_Q_SRC, 48),
        ("crc: seed (FreeBSD)", offset::CRC_SEED, 48),
        ("crc: crc_addr (FreeBSD)", offset::CRC_ADDR, 56),
    ]);
    agree(&[
        ("bytes", descriptor::LEN, 64),
        ("words", descriptor::WORDS, 8),
        ("XOR in one", descriptor::XOR_BASE_SOURCES, 5),
        ("XOR at most", descriptor::XOR_MAX_SOURCES, 8),
        ("PQ in one", descriptor::PQ_BASE_SOURCES, 3),
        ("PQ at most", descriptor::PQ_MAX_SOURCES, 8),
    ]);
    assert_eq!(descriptor::ADDRESS_BITS, 48);
}

#[test]
fn control_bits_are_those_of_the_headers() {
    // FreeBSD ioat_hw.h: struct ioat_generic_hw_descriptor and its kin; Linux hw.h.
    agree(&[
        ("int_enable", Control::INT_EN.bits(), 0x1),
        ("src_snoop_dis", Control::SRC_NO_SNOOP.bits(), 0x2),
        ("dest_snoop_dis", Control::DST_NO_SNOOP.bits(), 0x4),
        ("completion_update", Control::COMPLETION.bits(), 0x8),
        ("fence", Control::FENCE.bits(), 0x10),
        ("null", Control::NULL.bits(), 0x20),
        ("src_page_break", Control::SRC_PAGE_BREAK.bits(), 0x40),
        ("dest_page_break", Control::DST_PAGE_BREAK.bits(), 0x80),
        ("bundle", Control::BUNDLE.bits(), 0x100),
        ("dest_dca", Control::DST_DCA.bits(), 0x200),
        ("hint", Control::HINT.bits(), 0x400),
        ("p_disable", Control::P_DISABLE.bits(), 0x800),
        ("q_disable", Control::Q_DISABLE.bits(), 0x1000),
        ("wb_en (Linux)", Control::DWBES_EN.bits(), 0x8000),
        ("prl_en (Linux)", Control::PRL.bits(), 0x1_0000),
    ]);
    assert_eq!(descriptor::CONTROL_SRC_COUNT_SHIFT, 5);
    assert_eq!(descriptor::CONTROL_SRC_COUNT_MASK, 0xe0);
    assert_eq!(descriptor::CONTROL_COEF_SHIFT, 16);
    assert_eq!(descriptor::CONTROL_OP_SHIFT, 24);
    agree(&[
        ("OP_COPY", Op::COPY.0, 0x00),
        ("OP_FILL", Op::FILL.0, 0x01),
        ("OP_MOVECRC", Op::MOVE_CRC.0, 0x41),
        ("OP_MOVECRC_TEST", Op::MOVE_CRC_TEST.0, 0x42),
        ("OP_MOVECRC_STORE", Op::MOVE_CRC_STORE.0, 0x43),
        ("OP_CRC", Op::CRC.0, 0x81),
        ("OP_CRC_TEST", Op::CRC_TEST.0, 0x82),
        ("OP_CRC_STORE", Op::CRC_STORE.0, 0x83),
        ("OP_MARKER", Op::MARKER.0, 0x84),
        ("OP_OLD_XOR", Op::XOR_OLD.0, 0x85),
        ("OP_OLD_XOR_VAL", Op::XOR_VAL_OLD.0, 0x86),
        ("OP_XOR", Op::XOR.0, 0x87),
        ("OP_XOR_VAL", Op::XOR_VAL.0, 0x88),
        ("OP_PQ", Op::PQ.0, 0x89),
        ("OP_PQ_VAL", Op::PQ_VAL.0, 0x8a),
        ("OP_PQ_UP", Op::PQ_UPDATE.0, 0x8b),
        ("OP_PQ_16S", Op::PQ16.0, 0xa0),
        ("OP_PQ_VAL_16S", Op::PQ16_VAL.0, 0xa1),
    ]);
}

#[test]
fn builders_put_each_field_into_its_place() {
    let control = Control::INT_EN | Control::COMPLETION | Control::FENCE;
    let copy = Descriptor::copy(control, 0x1234, 0x1111_0000, 0x2222_0000, 0x3333_0040);
    assert_eq!(
        copy.0,
        [
            0x0000_0019_0000_1234,
            0x1111_0000,
            0x2222_0000,
            0x3333_0040,
            0,
            0,
            0,
            0
        ]
    );
    let fill = Descriptor::fill(Control::COMPLETION, 7, 0x0807_0605_0403_0201, 0x99, 0x40);
    assert_eq!(
        fill.0,
        [
            0x0100_0008_0000_0007,
            0x0807_0605_0403_0201,
            0x99,
            0x40,
            0,
            0,
            0,
            0
        ]
    );
    let null = Descriptor::null(Control::COMPLETION, 0x80);
    assert_eq!(null.0, [0x0000_0028_0000_0001, 0, 0, 0x80, 0, 0, 0, 0]);
    assert_eq!(
        (copy.size(), copy.control(), copy.next()),
        (0x1234, control, 0x3333_0040)
    );
    assert_eq!((fill.op(), fill.control_word()), (Op::FILL, 0x0100_0008));
    assert_eq!(copy.word(16), 0x2222_0000);
}

#[test]
fn configuration_space_is_that_of_the_datasheet_and_the_drivers() {
    // E7: BAR and capabilities. FreeBSD ioat_hw.h: IOAT_CFG_CHANERR_INT_OFFSET and its mask.
    agree(&[
        ("DMAUNCERRSTS (Linux)", pci::DMAUNCERRSTS, 0x148),
        ("CHANERR_INT", pci::CHANERR_INT, 0x180),
        ("CHANERRMSK_INT", pci::CHANERRMSK_INT, 0x184),
        ("MSI-X", pci::MSIX_CAP, 0x80),
        ("PCI Express", pci::PCIE_CAP, 0x90),
        ("power management", pci::PM_CAP, 0xe0),
        ("MSI-X table", pci::MSIX_TABLE, 8192),
        ("MSI-X pending bits", pci::MSIX_PBA, 12288),
        ("BAR 0", pci::BAR0_LEN, 16384),
        ("the BAR", pci::BAR, 0),
    ]);
    assert_eq!(pci::DMAUNCERRSTS_CONFIG_PARITY, 16);
    assert_eq!(pci::CHANERRMSK_INT_DEFAULT, 0x3e07);
    assert_eq!(pci::CLASS, 0x88000);
    assert_eq!(pci::VENDOR_INTEL, 32902);
}

#[test]
fn identities_are_those_that_the_drivers_bind() {
    // Linux init.c and SPDK pci_ids.h: SNB, IVB, HSW, BDX have functions 0 to 7 and two with RAID.
    let mut expected = Vec::new();
    for family in [0x3c20, 0x0e20, 0x2f20, 0x6f20] {
        expected.extend((family..family + 8).map(|id| (id, 0x32, false, false)));
        expected.extend([family + 14, family + 15].map(|id| (id, 0x32, true, false)));
    }
    expected.extend((0x3710..0x3718).map(|id| (id, 0x32, false, false))); // JSF
    expected.extend([(0x3718, 0x32, true, false), (0x3719, 0x32, true, false)]);
    expected.push((0x2021, 0x32, false, false)); // SKX
    expected.extend([(0x0c50, 0x33, true, true), (0x0c51, 0x33, true, true)]); // BWD
    expected.extend([(0x0c52, 0x33, false, true), (0x0c53, 0x33, false, true)]);
    expected.extend((0x6f50..0x6f54).map(|id| (id, 0x33, false, true))); // BDX-DE
    expected.push((0x0b00, 0x34, false, false)); // ICX
    expected.sort();
    let ours: Vec<_> = pci::PARTS
        .iter()
        .map(|part| {
            let raid = part.quirks.contains(pci::Quirks::RAID);
            let loses = part.quirks.contains(pci::Quirks::RESET_LOSES_MSIX);
            (part.device, part.cbver.0, raid, loses)
        })
        .collect();
    assert_eq!(ours, expected);
    // C5500 datasheet: 40 address bits, that family alone.
    for part in pci::PARTS {
        let narrow = part.quirks.contains(pci::Quirks::ADDRESS_40);
        assert_eq!(narrow, part.device >> 4 == 0x371, "{:04x}", part.device);
    }
}

#[test]
fn errata_are_those_of_the_documents_and_each_is_told_once() {
    // Xeon E7 v2 specification update, January 2015: CF4 and CF5, of bus 0, device 4.
    let e7 = pci::Quirks::LOCK_HANGS | pci::Quirks::XOR_DISTURBS;
    for part in pci::PARTS {
        let ours = part.quirks.intersection(e7);
        let expected = if part.device >> 4 == 0x0e2 {
            e7
        } else {
            pci::Quirks::empty()
        };
        assert_eq!(ours, expected, "{:04x}", part.device);
    }
    // All but RAID, which is no erratum.
    let told: Vec<_> = pci::ERRATA.iter().map(|(quirk, _)| *quirk).collect();
    let all = pci::Quirks::all() - pci::Quirks::RAID;
    assert_eq!(
        all.iter().collect::<Vec<_>>(),
        told,
        "in the order of their bits"
    );
}
