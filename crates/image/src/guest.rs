//! `mvm-guest`, as it was built into this program.

use std::sync::LazyLock;

use crate::Digest;

static BINARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mvm-guest"));

/// The static `mvm-guest`, which every machine starts as `/init`.
pub fn binary() -> &'static [u8] {
    BINARY
}

/// Its digest.
pub fn digest() -> Digest {
    static DIGEST: LazyLock<Digest> =
        LazyLock::new(|| env!("MVM_GUEST_SHA256").parse().unwrap_or_else(|_| Digest::of(BINARY)));
    *DIGEST
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_guest_stays_small() {
        assert!(super::binary().len() < 8 << 20, "every machine holds it in memory");
    }
}
