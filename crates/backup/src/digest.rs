//! The checksum over an archive as it passes.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::rc::Rc;

/// Digests what is written, and tells how much that is.
pub(crate) struct Digested<W, C> {
    pub(crate) inner: W,
    hasher: blake3::Hasher,
    count: C,
}

impl<W, C> Digested<W, C> {
    pub(crate) fn new(inner: W, count: C) -> Self {
        Self { inner, hasher: blake3::Hasher::new(), count }
    }

    /// Of all that was written so far.
    pub(crate) fn digest(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

impl<W: Write, C: FnMut(u64)> Write for Digested<W, C> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        (self.count)(self.hasher.count());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// What a tar archive consists of.
const BLOCK: usize = 512;

/// Of what was read but for its last block: when an entry of an archive is found, that is its header.
#[derive(Debug, Clone, Default)]
pub(crate) struct Passed(Rc<RefCell<blake3::Hasher>>);

impl Passed {
    /// The digest, and of how many bytes.
    pub(crate) fn digest(&self) -> (blake3::Hash, u64) {
        let hasher = self.0.borrow();
        (hasher.finalize(), hasher.count())
    }
}

/// Digests what is read.
pub(crate) struct Digesting<R> {
    inner: R,
    passed: Passed,
    last: Vec<u8>,
}

impl<R> Digesting<R> {
    pub(crate) fn new(inner: R) -> (Self, Passed) {
        let passed = Passed::default();
        (Self { inner, passed: passed.clone(), last: Vec::new() }, passed)
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.last.extend_from_slice(&buffer[..count]);
        let before = self.last.len().saturating_sub(BLOCK);
        self.passed.0.borrow_mut().update(&self.last[..before]);
        self.last.drain(..before);
        Ok(count)
    }
}
