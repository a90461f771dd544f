//! Reading what is kept of machines' memory, to find what is damaged before a wake does.

use mvm_vmm::{Base, Snapshot};

use crate::HostError;
use crate::host::Inner;
use crate::request::{AtRest, Damage};

impl Inner {
    /// What of this is not what was written.
    pub(crate) fn damaged(&self, all: Vec<AtRest>) -> Vec<Damage> {
        all.into_iter()
            .filter_map(|what| {
                let detail = self.check(&what).err()?.to_string();
                Some(Damage { what, detail })
            })
            .collect()
    }

    fn check(&self, what: &AtRest) -> Result<(), HostError> {
        match what {
            AtRest::Base(id) => Ok(Base::verify(&self.paths.base(id), id)?),
            AtRest::Snapshot { instance, snapshot } => {
                let (folder, own) = (self.paths.snapshot_of(*instance), self.paths.own_of(*instance));
                let snapshot = Snapshot::at_rest(&folder, &own, &snapshot.digest);
                snapshot.and_then(|snapshot| snapshot.verify()).map_err(|e| mvm_vmm::Error::from(e).into())
            }
        }
    }
}
