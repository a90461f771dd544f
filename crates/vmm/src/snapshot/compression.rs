//! How the pages of a delta are compressed.

use std::borrow::Cow;
use std::io;

use mvm_model::SnapshotCompression;

const ZSTD_LEVEL: i32 = 1;

pub(super) fn compress(by: SnapshotCompression, block: &[u8]) -> io::Result<Cow<'_, [u8]>> {
    Ok(match by {
        SnapshotCompression::None => Cow::Borrowed(block),
        SnapshotCompression::Lz4 => Cow::Owned(lz4_flex::block::compress(block)),
        SnapshotCompression::Zstd => Cow::Owned(zstd::bulk::compress(block, ZSTD_LEVEL)?),
    })
}

/// The content of a block that has so many bytes.
pub(super) fn decompress(by: SnapshotCompression, stored: &[u8], length: usize) -> io::Result<Cow<'_, [u8]>> {
    let block = match by {
        SnapshotCompression::None => Cow::Borrowed(stored),
        SnapshotCompression::Lz4 => {
            Cow::Owned(lz4_flex::block::decompress(stored, length).map_err(io::Error::other)?)
        }
        SnapshotCompression::Zstd => Cow::Owned(zstd::bulk::decompress(stored, length)?),
    };
    if block.len() == length { Ok(block) } else { Err(io::ErrorKind::InvalidData.into()) }
}
