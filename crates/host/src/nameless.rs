//! VMMs that are no instance's: machines that are to become a base, and spares.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use mvm_model::Resources;
use mvm_vmm::{MachineSpec, MemoryBase};

use crate::HostError;
use crate::host::{Host, Inner};

/// Where such a VMM is.
#[derive(Debug, Clone)]
pub(crate) struct Nameless {
    /// Its name, which it keeps when it becomes an instance's.
    pub(crate) name: String,
    /// Its tap's number, until then.
    pub(crate) tap: u32,
    pub(crate) uid: u32,
    pub(crate) run_dir: PathBuf,
}

/// Numbers for them: each VMM has a uid that no other one has.
#[derive(Debug, Default)]
pub(crate) struct Numbers(Mutex<u32>);

impl Numbers {
    /// The next one that nobody uses. It goes round, so that one just given back is not taken again at once.
    fn next(&self, range: &Range<u32>, used: &BTreeSet<u32>) -> u32 {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            *last = if range.contains(&(*last + 1)) { *last + 1 } else { range.start };
            if !used.contains(&*last) {
                return *last;
            }
        }
    }
}

impl Host {
    /// A place for a VMM that is no instance's yet.
    pub(crate) fn nameless(&self, kind: &str) -> Nameless {
        let uid = self.inner.numbers.next(&self.nameless_uids(), &self.uids_in_use());
        let number = uid - self.nameless_uids().start;
        let short = format!("{kind}{number}");
        Nameless {
            name: format!("mvm-{}-{short}", self.inner.tag.as_str()),
            tap: number,
            uid,
            run_dir: self.paths().nameless().join(short),
        }
    }
}

impl Inner {
    /// How a VMM is started that has no instance, and so no data disk.
    pub(crate) fn nameless_spec(
        &self,
        nameless: &Nameless,
        revision: &str,
        resources: Resources,
    ) -> Result<MachineSpec, HostError> {
        let id = revision.parse().map_err(|_| HostError::NotARevision(revision.to_owned()))?;
        let revision = self.images.revision(&id)?;
        Ok(MachineSpec {
            name: nameless.name.clone(),
            vcpus: resources.vcpus,
            mem_mib: resources.mem_mib,
            memory: MemoryBase::Empty,
            kernel: revision.kernel,
            initrd: revision.initrd,
            kernel_arguments: Vec::new(),
            rootfs: revision.rootfs,
            data: PathBuf::new(),
            // A guest sets its own when it becomes someone.
            mac: mvm_model::MacAddr([0x02, 0x6d, 0xff, 0xff, 0xff, 0xff]),
            run_dir: nameless.run_dir.clone(),
            uid: nameless.uid,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_taken_once_and_they_go_round() {
        let (numbers, range) = (Numbers::default(), 10..14);
        let none = BTreeSet::new();
        let taken: Vec<u32> = (0..5).map(|_| numbers.next(&range, &none)).collect();
        assert_eq!(taken, [10, 11, 12, 13, 10]);
        assert_eq!(numbers.next(&range, &BTreeSet::from([11, 12])), 13);
    }
}
