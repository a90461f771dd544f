//! The kernel's ELF file, out of the bzImage that the distribution ships.
//!
//! The layout of the bzImage's header is the x86 boot protocol's (the kernel's
//! `Documentation/arch/x86/boot.rst`), version 2.08 and later.

use crate::error::{Result, malformed};

const SETUP_SECTORS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// Of LZ4's "legacy frame" format, the one that the kernel uses.
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Every block of a legacy frame but the last has so many bytes when decompressed.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

/// The uncompressed ELF file in a bzImage. Machines boot a third faster from it.
pub(crate) fn elf_from_bzimage(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image).ok_or_else(|| malformed("the kernel", "is not a bzImage"))?;
    // The payload ends with the size of what it holds, 4 bytes.
    let (compressed, size) =
        payload.split_last_chunk::<4>().ok_or_else(|| malformed("the kernel", "has no payload"))?;
    let size = u32::from_le_bytes(*size) as usize;
    let blocks = compressed
        .strip_prefix(&LZ4_LEGACY_MAGIC)
        .ok_or_else(|| malformed("the kernel", "is not compressed with LZ4, the one kind that is read"))?;
    let elf = decompress_lz4_legacy(blocks, size)?;
    if elf.len() != size || !elf.starts_with(b"\x7fELF") {
        return Err(malformed("the kernel", "its payload is not a whole ELF file"));
    }
    Ok(elf)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    if image.get(HEADER_MAGIC..HEADER_MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let setup = (usize::from(image[SETUP_SECTORS]) + 1) * SECTOR;
    let start = setup.checked_add(word(PAYLOAD_OFFSET)?)?;
    image.get(start..start.checked_add(word(PAYLOAD_LENGTH)?)?)
}

/// Blocks, each with its length in 4 bytes before it.
fn decompress_lz4_legacy(mut blocks: &[u8], size: usize) -> Result<Vec<u8>> {
    let broken = || malformed("the kernel", "its LZ4 payload is damaged");
    let mut plain = Vec::with_capacity(size);
    while !blocks.is_empty() {
        let (length, rest) = blocks.split_first_chunk::<4>().ok_or_else(broken)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (block, rest) = rest.split_at_checked(length).ok_or_else(broken)?;
        let room = size.saturating_sub(plain.len()).min(LZ4_LEGACY_BLOCK);
        plain.extend(lz4_flex::block::decompress(block, room).map_err(|_| broken())?);
        blocks = rest;
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(plain: &[u8], block: usize) -> Vec<u8> {
        let mut payload = LZ4_LEGACY_MAGIC.to_vec();
        for chunk in plain.chunks(block) {
            let compressed = lz4_flex::block::compress(chunk);
            payload.extend((compressed.len() as u32).to_le_bytes());
            payload.extend(compressed);
        }
        payload.extend((plain.len() as u32).to_le_bytes());
        let mut image = vec![0; 3 * SECTOR];
        image[SETUP_SECTORS] = 1;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&512u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image
    }

    fn elf(length: usize) -> Vec<u8> {
        let mut plain = b"\x7fELF".to_vec();
        plain.extend((0..length).map(|n| (n / 7) as u8));
        plain
    }

    #[test]
    fn the_elf_comes_out_of_many_blocks() {
        let plain = elf(2 * LZ4_LEGACY_BLOCK + 17);
        assert_eq!(elf_from_bzimage(&bzimage(&plain, LZ4_LEGACY_BLOCK)).unwrap(), plain);
    }

    #[test]
    fn whatever_is_cut_off_is_noticed() {
        let whole = bzimage(&elf(1000), 300);
        for length in 0..whole.len() {
            assert!(elf_from_bzimage(&whole[..length]).is_err(), "{length} bytes were enough");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_damage_makes_it_panic(at in 0usize..2000, byte: u8) {
            let plain = elf(1000);
            let mut image = bzimage(&plain, 300);
            if let Some(place) = image.get_mut(at) {
                *place = byte;
            }
            // LZ4 has no checksum: other bytes can come out, another length cannot.
            if let Ok(other) = elf_from_bzimage(&image) {
                assert_eq!(other.len(), plain.len());
            }
        }
    }
}
