//! What compression of snapshots saves and costs, with memory that can be compressed.

use mvm_model::SnapshotCompression;
use mvm_protocol::api::Act;

use super::speed::only;
use super::{Bench, Pool, manifest, settle};
use crate::Result;
use crate::report::{Report, Sides};

const TENANT: &str = "compression";
/// Text, which is what processes of assistants have most of. Less than makes a machine own an image, which is never compressed.
const FILL: &str = "set -e; mkdir /run/fill; mount -t tmpfs -o size=95% fill /run/fill; \
                    seq 1000000 9999999 | head -c 33554432 > /run/fill/text";

/// Disk, sleep and wake with each.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let all = [SnapshotCompression::None, SnapshotCompression::Lz4, SnapshotCompression::Zstd];
    for compression in all {
        let name = serde_json::to_value(compression)?;
        let name = name.as_str().ok_or("a compression has a name")?;
        let text = manifest(TENANT, &[Pool::default()]);
        bench.mvm.deploy(&format!("{text}snapshot_compression = \"{name}\"\n"))?;
        let instance = only(bench, TENANT, "demand")?;
        bench.mvm.lab.exec(&instance, &["/bin/sh", "-c", FILL]);
        let (mut sleep, mut wake, mut disk) = (Sides::default(), Sides::default(), Sides::default());
        for _ in bench.rounds(2) {
            settle();
            sleep.mvm.push(bench.mvm.act(&instance, Act::Sleep)?.took_ms);
            disk.mvm.push(bench.mvm.disk_mib(&instance)?);
            settle();
            wake.take(&bench.mvm.run(&instance, Act::Wake)?, "wake", false);
        }
        bench.mvm.destroy(TENANT);
        report.row(format!("32 MiB of text, {name}: disk"), "MiB", &disk);
        report.row(format!("32 MiB of text, {name}: sleep"), "ms", &sleep);
        report.row(format!("32 MiB of text, {name}: wake"), "ms", &wake);
    }
    Ok(())
}
