//! What can go wrong at the host.

use std::path::PathBuf;

/// An act at the host that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The VMM.
    #[error(transparent)]
    Vmm(#[from] mvm_vmm::Error),
    /// The network.
    #[error(transparent)]
    Network(#[from] mvm_network::Error),
    /// An image or a disk.
    #[error(transparent)]
    Image(#[from] mvm_image::Error),
    /// A file or folder of mvm's own.
    #[error("{path}: {source}", path = .path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// A revision's name that is none.
    #[error("`{0}` is not a revision")]
    NotARevision(String),
    /// Nothing runs under this id.
    #[error("instance {0} has no VMM here")]
    NoMachine(mvm_model::InstanceId),
    /// No machine of this name is to become a base.
    #[error("no machine {0} is to become a base here")]
    NoBaseMachine(String),
    /// A base was found damaged, and is used no more.
    #[error(transparent)]
    DamagedBase(std::sync::Arc<mvm_vmm::Refusal>),
    /// A VMM could change what others map.
    #[error(
        "this kernel lets a read-only device be mapped for writing, so that machines cannot share a base safely: \
         they start cold (Linux 6.6 and newer does not)"
    )]
    BasesUnprotected,
    /// A VMM that was started ahead hangs.
    #[error("it does not answer")]
    SilentSpare,
    /// As many VMMs without an instance as there can be.
    #[error("no more VMMs can be started ahead: all their numbers are taken")]
    NoNumbers,
    /// Nothing is started ahead any more.
    #[error("the agent is ending: nothing is started ahead")]
    Closing,
    /// An answer to another question.
    #[error("the host answered something else than what was asked")]
    Confused,
    /// A task of the host's ended early.
    #[error("a task of the host's was ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl HostError {
    /// Whether it is the snapshot that cannot be used, so that trying again would not help.
    pub fn refuses_snapshot(&self) -> bool {
        matches!(
            self,
            HostError::Vmm(mvm_vmm::Error::Refused(_))
                | HostError::Image(mvm_image::Error::UnknownRevision { .. })
                | HostError::NotARevision(_)
                | HostError::DamagedBase(_)
                | HostError::BasesUnprotected
        )
    }

    pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| HostError::Path { path, source }
    }
}
