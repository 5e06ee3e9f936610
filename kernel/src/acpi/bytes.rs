//! Reading little-endian numbers out of bytes that may be too few.

/// The `N` bytes at `offset`.
fn take<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// Eight bits.
pub fn u8_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

/// Sixteen bits.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    take(bytes, offset).map(u16::from_le_bytes)
}

/// Thirty-two bits.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    take(bytes, offset).map(u32::from_le_bytes)
}

/// Sixty-four bits.
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    take(bytes, offset).map(u64::from_le_bytes)
}

/// The entries of a table that begin with their type and their length, header included. The first
/// that is too short, or longer than the table, ends them.
pub fn entries(mut rest: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    core::iter::from_fn(move || {
        let (kind, len) = (u8_at(rest, 0)?, usize::from(u8_at(rest, 1)?));
        if len < 2 {
            return None;
        }
        let (entry, after) = rest.split_at_checked(len)?;
        rest = after;
        Some((kind, entry))
    })
}
