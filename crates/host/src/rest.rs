//! Reading what is at rest, to find what is damaged before a start or a wake does.

use mvm_vmm::Snapshot;

use crate::HostError;
use crate::host::{Host, Inner};
use crate::request::{AtRest, Damage};

impl Host {
    /// What of this is not what was written. A base of that is mapped by nobody any more who comes later, and spares of it end.
    pub(crate) async fn read_through(&self, all: Vec<AtRest>) -> Result<Vec<Damage>, HostError> {
        let found = self.blocking(move |inner| Ok(inner.damaged(all))).await?;
        for damage in &found {
            if let AtRest::Base(id) = &damage.what {
                self.end_spares_of_base(id).await?;
            }
        }
        Ok(found)
    }
}

impl Inner {
    fn damaged(&self, all: Vec<AtRest>) -> Vec<Damage> {
        all.into_iter()
            .filter_map(|what| {
                let detail = self.check(&what).err()?.to_string();
                Some(Damage { what, detail })
            })
            .collect()
    }

    fn check(&self, what: &AtRest) -> Result<(), HostError> {
        match what {
            AtRest::Base(id) => self.check_base(id),
            AtRest::Revision(revision) => {
                let id = revision.parse().map_err(|_| HostError::NotARevision(revision.clone()))?;
                Ok(self.images.verify(&id)?)
            }
            AtRest::Snapshot { instance, snapshot } => {
                let (folder, own) = (self.paths.snapshot_of(*instance), self.paths.own_of(*instance));
                let snapshot = Snapshot::at_rest(&folder, &own, &snapshot.digest);
                snapshot.and_then(|snapshot| snapshot.verify()).map_err(|e| mvm_vmm::Error::from(e).into())
            }
        }
    }
}
