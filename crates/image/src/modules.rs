//! The kernel modules that a machine loads before it can see its devices, in load order.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Result, malformed};

/// What every machine loads: virtio over MMIO, its disks, network and control channel, and the file
/// systems of its root.
pub(crate) const WANTED: [&str; 7] =
    ["virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "erofs", "overlay"];

/// A kernel's modules by name, as the kernel names them (`_` for `-`).
#[derive(Default)]
pub(crate) struct Modules(BTreeMap<String, Vec<u8>>);

impl Modules {
    /// Adds a module; `file` is its file's name.
    pub(crate) fn insert(&mut self, file: &str, content: Vec<u8>) {
        let name = file.trim_end_matches(".ko").replace('-', "_");
        self.0.insert(name, content);
    }

    /// The wanted modules and all they depend on, each after what it depends on.
    pub(crate) fn in_load_order(&self, wanted: &[&str]) -> Result<Vec<(&str, &[u8])>> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            self.visit(name, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit<'a>(
        &'a self,
        name: &str,
        seen: &mut BTreeSet<&'a str>,
        order: &mut Vec<(&'a str, &'a [u8])>,
    ) -> Result<()> {
        let Some((name, content)) = self.0.get_key_value(name) else {
            return Err(malformed("the kernel's package", format!("has no module `{name}`")));
        };
        if seen.insert(name) {
            for dependency in dependencies(content) {
                self.visit(&dependency, seen, order)?;
            }
            order.push((name, content));
        }
        Ok(())
    }
}

/// What a module says that it depends on: `depends=a,b` among the NUL-ended texts of `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(all: &[(&str, &str)]) -> Modules {
        let mut modules = Modules::default();
        for (name, depends) in all {
            modules.insert(name, format!("\x7fELF\0license=GPL\0depends={depends}\0x=y\0").into());
        }
        modules
    }

    #[test]
    fn each_module_comes_after_what_it_depends_on() {
        let modules = modules(&[
            ("virtio.ko", "virtio_ring"),
            ("virtio_ring.ko", ""),
            ("virtio-rng.ko", "virtio"),
            ("virtio_net.ko", "virtio,net_failover,virtio_ring"),
            ("net_failover.ko", "failover"),
            ("failover.ko", ""),
            ("unwanted.ko", ""),
        ]);
        let order = modules.in_load_order(&["virtio_rng", "virtio_net"]).unwrap();
        let names: Vec<_> = order.into_iter().map(|(name, _)| name).collect();
        let expected = ["virtio_ring", "virtio", "virtio_rng", "failover", "net_failover", "virtio_net"];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = modules(&[("a.ko", "b")]).in_load_order(&["a"]).err().unwrap();
        assert!(error.to_string().contains("`b`"), "{error}");
    }

    proptest::proptest! {
        /// Modules depend only on ones with lower numbers.
        #[test]
        fn any_modules_are_in_order(
            depends in proptest::collection::vec(proptest::collection::vec(0usize..30, 0..4), 1..30),
        ) {
            let mut modules = Modules::default();
            let below = |at: usize| depends[at].iter().copied().filter(move |other| *other < at);
            for at in 0..depends.len() {
                let names: Vec<_> = below(at).map(|other| format!("m-{other}")).collect();
                let content = format!("\0depends={}\0", names.join(","));
                modules.insert(&format!("m-{at}.ko"), content.into());
            }
            let last = format!("m_{}", depends.len() - 1);
            let order = modules.in_load_order(&[&last]).unwrap();
            let place = |at: usize| order.iter().position(|(name, _)| *name == format!("m_{at}"));
            for at in (0..depends.len()).filter(|at| place(*at).is_some()) {
                for other in below(at) {
                    assert!(place(other) < place(at) && place(other).is_some());
                }
            }
            assert_eq!(order.last().map(|(name, _)| *name), Some(last.as_str()));
        }
    }
}
