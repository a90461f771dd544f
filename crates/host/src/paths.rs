//! Where things are.
//!
//! ```text
//! <data>/images/            revisions             <run>/m/<instance>/        sockets, logs: 0700
//! <data>/instances/<id>/    data.img, snapshot/   <run>/m/<instance>/launch.json
//!                           own/                  of one whose memory is too much to be copied at each wake
//! <data>/bases/<id>/        what machines begin from
//! <data>/restores/<id>      a data disk that an instance is to have in the place of its own
//! <data>/engine.json        what was found out about the VMM
//! <run>/s/<name>/           VMMs started ahead, and machines that are to become bases
//! ```

use std::path::PathBuf;

use mvm_model::InstanceId;

/// An agent's two folders.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
}

impl Paths {
    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    pub(crate) fn engine(&self) -> PathBuf {
        self.data.join("engine.json")
    }

    pub(crate) fn instances(&self) -> PathBuf {
        self.data.join("instances")
    }

    /// What lasts of an instance.
    pub(crate) fn data_of(&self, instance: InstanceId) -> PathBuf {
        self.instances().join(instance.to_string())
    }

    pub(crate) fn disk_of(&self, instance: InstanceId) -> PathBuf {
        self.data_of(instance).join("data.img")
    }

    pub(crate) fn restores(&self) -> PathBuf {
        self.data.join("restores")
    }

    /// The data disk that an instance is to have in the place of its own.
    pub(crate) fn restore_of(&self, instance: InstanceId) -> PathBuf {
        self.restores().join(instance.to_string())
    }

    pub(crate) fn snapshot_of(&self, instance: InstanceId) -> PathBuf {
        self.data_of(instance).join("snapshot")
    }

    /// The folder of an instance's own image.
    pub(crate) fn own_of(&self, instance: InstanceId) -> PathBuf {
        self.data_of(instance).join("own")
    }

    pub(crate) fn bases(&self) -> PathBuf {
        self.data.join("bases")
    }

    pub(crate) fn base(&self, id: &str) -> PathBuf {
        self.bases().join(id)
    }

    /// The folders of VMMs that are no instance's.
    pub(crate) fn nameless(&self) -> PathBuf {
        self.run.join("s")
    }

    pub(crate) fn runs(&self) -> PathBuf {
        self.run.join("m")
    }

    /// What goes with a boot of the host.
    pub(crate) fn run_of(&self, instance: InstanceId) -> PathBuf {
        self.runs().join(instance.to_string())
    }

    /// How the instance's VMM was launched last.
    pub(crate) fn launch_of(&self, instance: InstanceId) -> PathBuf {
        self.run_of(instance).join("launch.json")
    }
}
