//! Where pixels go: a framebuffer's geometry, checked, and the memory behind it.
//!
//! Pixels are only ever written: reading video memory is slow.

use core::fmt;

use crate::boot_info::{BootInfo, Framebuffer, RegionKind};

/// No picture is larger.
const BYTES_MAX: u64 = 64 << 20;
/// The brightness of letters on black.
const BRIGHT: u8 = 0xe0;

/// Why a framebuffer is not drawn on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Pixels of other sizes than 15, 16, 24 or 32 bits, or colours outside of them.
    Format,
    /// No pixels, rows that overlap, or more than 64 MiB.
    Size,
    /// It leaves the address space, or lies in usable memory.
    Address,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Format => "its pixels have an unknown format",
            Self::Size => "its size makes no sense",
            Self::Address => "it cannot lie there",
        })
    }
}

/// A framebuffer that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    pitch: usize,
    pixel: usize,
    /// A pixel of a letter, and one beside it: the first `pixel` bytes.
    shades: [[u8; 4]; 2],
}

impl Geometry {
    /// Checks what a loader told.
    pub fn new(told: &Framebuffer) -> Result<Self, Refused> {
        if !matches!(told.bits, 15 | 16 | 24 | 32) {
            return Err(Refused::Format);
        }
        let mut bright = 0u32;
        for (low, bits) in told.colours {
            if bits == 0 || low.checked_add(bits).is_none_or(|end| end > told.bits) {
                return Err(Refused::Format);
            }
            let value = match bits {
                ..8 => u32::from(BRIGHT) >> (8 - bits),
                _ => u32::from(BRIGHT)
                    .checked_shl(u32::from(bits) - 8)
                    .unwrap_or(0),
            };
            bright |= value << low;
        }
        let pixel = u64::from(told.bits.div_ceil(8));
        let (width, height) = (u64::from(told.width), u64::from(told.height));
        let pitch = u64::from(told.pitch);
        // Of the last row there need be no more than its pixels, but it is mapped as the others.
        let bytes = pitch.checked_mul(height).ok_or(Refused::Size)?;
        if width == 0 || height == 0 || pitch < width * pixel || bytes > BYTES_MAX {
            return Err(Refused::Size);
        }
        if told.address == 0 || told.address.checked_add(bytes).is_none() {
            return Err(Refused::Address);
        }
        Ok(Self {
            width: width as usize,
            height: height as usize,
            pitch: pitch as usize,
            pixel: pixel as usize,
            shades: [bright.to_le_bytes(), [0; 4]],
        })
    }

    /// Bytes of the picture.
    pub fn bytes(&self) -> usize {
        self.pitch * self.height
    }
}

/// Checks what a loader told against its map of memory as well: drawing must not write to memory
/// that the kernel uses.
pub fn check(told: &Framebuffer, info: &BootInfo) -> Result<Geometry, Refused> {
    let geometry = Geometry::new(told)?;
    let end = told.address + geometry.bytes() as u64;
    let in_use = |start: u64, len: u64| start < end && told.address < start + len;
    let mut regions = info.regions().iter();
    if regions.any(|region| region.kind == RegionKind::Usable && in_use(region.start, region.len)) {
        return Err(Refused::Address);
    }
    Ok(geometry)
}

/// Pixels composed before they are written, so that writes are long.
const CHUNK: usize = 64;

/// A picture in memory.
pub struct Pixels {
    geometry: Geometry,
    base: *mut u8,
}

// SAFETY: the memory is this object's alone.
unsafe impl Send for Pixels {}

impl Pixels {
    /// The picture at `base`.
    ///
    /// # Safety
    /// [`Geometry::bytes`] from there on can be written, and are nobody else's, as long as the
    /// object lives.
    pub unsafe fn new(geometry: Geometry, base: *mut u8) -> Self {
        Self { geometry, base }
    }

    /// How large it is.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Writes pixels of row `y` from `x` on: those of letters where `lit` says so. What is beyond
    /// the picture is left out.
    pub fn put(&mut self, x: usize, y: usize, lit: impl Iterator<Item = bool>) {
        let Geometry {
            width,
            height,
            pitch,
            pixel,
            shades,
        } = self.geometry;
        if y >= height || x >= width {
            return;
        }
        let mut lit = lit.take(width - x);
        let mut at = y * pitch + x * pixel;
        let mut chunk = [0; CHUNK * 4];
        loop {
            let mut len = 0;
            for lit in lit.by_ref().take(CHUNK) {
                let shade = &shades[usize::from(!lit)][..pixel];
                chunk[len..len + pixel].copy_from_slice(shade);
                len += pixel;
            }
            if len == 0 {
                return;
            }
            // SAFETY: a part of one row, inside the picture: `at` and `len` together never exceed
            // `width` pixels of a row below `height`, and the pitch covers them.
            unsafe {
                self.base
                    .add(at)
                    .copy_from_nonoverlapping(chunk.as_ptr(), len)
            };
            at += len;
        }
    }
}
