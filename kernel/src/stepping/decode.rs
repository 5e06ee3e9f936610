//! As much of an instruction as says whether it locks the bus. Intel SDM volume 2, 2.1 and LOCK;
//! volume 3, 9.1.2.1.

/// Whether the instruction whose bytes `next` gives locks: it has the prefix, or is an XCHG with
/// memory, which needs none. Asks for bytes of the instruction alone.
pub(super) fn locks(mut next: impl FnMut() -> u8) -> bool {
    const LOCK: u8 = 0xf0;
    const REX: core::ops::RangeInclusive<u8> = 0x40..=0x4f;
    // Legacy prefixes, in any order, then REX, then the opcode. 15 bytes are the most there are.
    for _ in 0..15 {
        match next() {
            LOCK => return true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf2 | 0xf3 => {}
            byte if REX.contains(&byte) => {}
            // XCHG; the two highest bits of the next byte are set where both operands are registers.
            0x86 | 0x87 => return next() < 0xc0,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(bytes: &[u8]) -> bool {
        let mut bytes = bytes.iter();
        locks(|| *bytes.next().expect("no byte after the instruction is read"))
    }

    #[test]
    fn prefixes_and_exchanges_lock() {
        for code in [
            &[0xf0, 0x48, 0xff, 0x00][..],   // lock inc qword [rax]
            &[0x66, 0xf0, 0x0f, 0xb1, 0x0f], // lock cmpxchg [rdi], cx
            &[0x65, 0xf0, 0x0f, 0xc1, 0x07], // lock xadd gs:[rdi], eax
            &[0x87, 0x07],                   // xchg [rdi], eax
            &[0x48, 0x87, 0x05, 0, 0, 0, 0], // xchg [rip], rax
            &[0x86, 0x44, 0x24, 0x08],       // xchg [rsp + 8], al
        ] {
            assert!(locked(code), "{code:x?}");
        }
        for code in [
            &[0x48, 0x87, 0xc3][..],                     // xchg rbx, rax
            &[0x90],                                     // nop
            &[0xf3, 0x90],                               // pause
            &[0xf3, 0xa4],                               // rep movsb
            &[0x65, 0x48, 0xff, 0x04, 0xc5, 0, 0, 0, 0], // inc qword gs:[rax * 8]
            &[0x0f, 0xae, 0xf0],                         // mfence
            &[0x48, 0xb8, 0xf0, 0xf0, 0xf0, 0xf0, 0xf0, 0xf0, 0xf0, 0xf0], // mov rax, imm
        ] {
            assert!(!locked(code), "{code:x?}");
        }
    }
}
