//! The manifest that the tests begin with.

/// A tenant with one pool of small machines of which there are none yet, and these quotas.
pub fn empty_pool(quotas: &str) -> String {
    format!(
        r#"
[tenant]
id = "alice"

[tenant.quotas]
{quotas}

[[pools]]
id = "workers"
spares = 0
role = "worker"
vcpus = 1
mem_mib = 192
data_disk_mib = 16
desired_running = 0
"#
    )
}
