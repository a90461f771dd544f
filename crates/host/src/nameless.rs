//! VMMs that are no instance's: machines that are to become a base, and spares.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mvm_model::{InstanceId, Resources};
use mvm_vmm::{MachineSpec, MemoryBase};

use crate::HostError;
use crate::host::{Host, Inner};

/// Where such a VMM is.
#[derive(Debug)]
pub(crate) struct Nameless {
    /// Its name, which it keeps when it becomes an instance's.
    pub(crate) name: String,
    /// Its tap's number, until then.
    pub(crate) tap: u32,
    /// What its name and its uid come from.
    pub(crate) number: Number,
    pub(crate) run_dir: PathBuf,
}

/// Numbers for them: each VMM has a uid that no other one has.
#[derive(Debug, Default, Clone)]
pub(crate) struct Numbers(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    last: u32,
    uids: BTreeSet<u32>,
}

/// A uid that is given to no other VMM before this is dropped.
#[derive(Debug)]
pub(crate) struct Number {
    uid: u32,
    numbers: Numbers,
}

impl Drop for Number {
    fn drop(&mut self) {
        self.numbers.taken().uids.remove(&self.uid);
    }
}

impl Numbers {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next one that nobody has. They go round, so that one just given back is not taken again at once.
    fn next(&self, range: &Range<u32>) -> Option<Number> {
        let mut taken = self.taken();
        let after = if range.contains(&taken.last) { taken.last + 1 } else { range.start };
        let uid = (after..range.end).chain(range.start..after).find(|uid| !taken.uids.contains(uid))?;
        taken.last = uid;
        taken.uids.insert(uid);
        Some(Number { uid, numbers: self.clone() })
    }

    /// This one, if nobody has it.
    fn hold(&self, uid: u32) -> Option<Number> {
        self.taken().uids.insert(uid).then(|| Number { uid, numbers: self.clone() })
    }
}

/// Numbers of machines that an earlier agent started, until this one has taken them up or ended them.
#[derive(Debug, Default)]
pub(crate) struct Reserved(Mutex<HashMap<InstanceId, Number>>);

impl Reserved {
    fn all(&self) -> MutexGuard<'_, HashMap<InstanceId, Number>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is reserved for an instance, for it to have.
    pub(crate) fn take(&self, instance: InstanceId) -> Option<Number> {
        self.all().remove(&instance)
    }
}

impl Host {
    /// A place for a VMM that is no instance's yet.
    pub(crate) fn nameless(&self, kind: &str) -> Result<Nameless, HostError> {
        let range = self.inner.nameless_uids();
        let number = self.inner.numbers.next(&range).ok_or(HostError::NoNumbers)?;
        let tap = number.uid - range.start;
        let short = format!("{kind}{tap}");
        Ok(Nameless {
            name: format!("mvm-{}-{short}", self.inner.tag.as_str()),
            tap,
            number,
            run_dir: self.paths().nameless().join(short),
        })
    }
}

impl Inner {
    /// Keeps the number of an instance's VMM that was a spare, so that no other VMM is given its uid, name and cgroup.
    pub(crate) fn reserve(&self, instance: InstanceId, uid: u32) {
        if self.nameless_uids().contains(&uid)
            && let Some(number) = self.numbers.hold(uid)
        {
            self.reserved.all().insert(instance, number);
        }
    }

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
            uid: nameless.number.uid,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_taken_once_and_they_go_round() {
        let (numbers, range) = (Numbers::default(), 10..14);
        let taken: Vec<u32> = (0..5).filter_map(|_| Some(numbers.next(&range)?.uid)).collect();
        assert_eq!(taken, [10, 11, 12, 13, 10]);
        let held: Vec<Number> = [11, 12].into_iter().filter_map(|uid| numbers.hold(uid)).collect();
        assert_eq!(numbers.next(&range).map(|number| number.uid), Some(13));
        assert!(numbers.hold(11).is_none());
        drop(held);
        let all: Vec<Number> = (0..4).filter_map(|_| numbers.next(&range)).collect();
        assert_eq!(all.iter().map(|number| number.uid).collect::<Vec<_>>(), [10, 11, 12, 13]);
        assert!(numbers.next(&range).is_none());
        drop(all);
        assert!(numbers.next(&range).is_some());
    }
}
