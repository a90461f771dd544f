//! Why a snapshot or a base must not be used.

use std::io;

use serde::{Deserialize, Serialize};

use super::FileIdentity;
use crate::shape::Misfit;

/// The rule by which a snapshot is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// Memory and disk together.
    S3,
    /// Exact fit.
    S4,
    /// Deltas are relative to their base.
    S7,
    /// Checked.
    S8,
}

/// Why a snapshot must not be used. The machine is started cold instead.
#[derive(Debug, thiserror::Error)]
#[error("snapshot refused ({:?}): {reason}", self.rule())]
pub struct Refusal {
    /// Why.
    pub reason: RefusalReason,
}

/// What is wrong with a snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefusalReason {
    /// The disk was written, or could have been, since the sleep.
    #[error("its data disk is in write epoch {present}, the snapshot is of epoch {recorded}")]
    OtherEpoch {
        /// At the sleep.
        recorded: u64,
        /// Now.
        present: u64,
    },
    /// The disk is another file.
    #[error("its data disk is not the file it was: {recorded:?} then, {present:?} now")]
    OtherDisk {
        /// At the sleep.
        recorded: FileIdentity,
        /// Now.
        present: FileIdentity,
    },
    /// The virtual hardware or its engine changed.
    #[error(transparent)]
    OtherShape(#[from] Misfit),
    /// It runs other files.
    #[error("it was made with revision {recorded}, not {present}")]
    OtherRevision {
        /// At the sleep.
        recorded: String,
        /// Now.
        present: String,
    },
    /// Its pages lie over another base.
    #[error("its pages lie over {recorded}, not over {present}")]
    OtherMemory {
        /// At the sleep.
        recorded: String,
        /// Now.
        present: String,
    },
    /// It is another instance's.
    #[error("it belongs to {recorded}, not to {present}")]
    OtherInstance {
        /// At the sleep.
        recorded: String,
        /// Now.
        present: String,
    },
    /// A later or an unknown format.
    #[error("its {part} has a format that this version does not read: {detail}")]
    UnknownFormat {
        /// Which part.
        part: &'static str,
        /// What is unknown about it.
        detail: String,
    },
    /// It is missing or cannot be read.
    #[error("its {part} cannot be read: {source}")]
    Unreadable {
        /// Which part.
        part: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("its {part} is damaged: {detail}")]
    Damaged {
        /// Which part.
        part: &'static str,
        /// What is wrong.
        detail: String,
    },
}

impl Refusal {
    /// A flat memory whose piece at this offset is not what was written.
    pub(crate) fn damaged_memory(at: u64) -> Self {
        damaged("memory", format!("wrong checksum at {at:#x}"))
    }

    /// The rule that was broken.
    pub fn rule(&self) -> Rule {
        match self.reason {
            RefusalReason::OtherEpoch { .. } | RefusalReason::OtherDisk { .. } => Rule::S3,
            RefusalReason::OtherShape(_) | RefusalReason::OtherRevision { .. } => Rule::S4,
            RefusalReason::OtherMemory { .. } => Rule::S7,
            _ => Rule::S8,
        }
    }
}

impl<T: Into<RefusalReason>> From<T> for Refusal {
    fn from(reason: T) -> Self {
        Self { reason: reason.into() }
    }
}

pub(super) fn damaged(part: &'static str, detail: impl Into<String>) -> Refusal {
    RefusalReason::Damaged { part, detail: detail.into() }.into()
}

pub(super) fn unreadable(part: &'static str) -> impl Fn(io::Error) -> Refusal {
    move |source| RefusalReason::Unreadable { part, source }.into()
}
