//! A pool of workers that begin from one base, and what the tests ask of them.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use mvm_harness::{Lab, Value, answered, checkout};

/// The pool.
pub const POOL: &str = "alice/workers";
/// Where its one worker answers; a connection to it wakes it.
pub const PORT: u16 = 9000;

/// What may be said about the deployment.
pub struct Workers<'a> {
    pub image: PathBuf,
    pub running: u32,
    pub spares: u32,
    pub data_disk_mib: u32,
    /// More keys of the pool.
    pub keys: &'a str,
    /// More sections.
    pub more: &'a str,
}

impl Default for Workers<'_> {
    fn default() -> Self {
        Self { image: image(), running: 1, spares: 0, data_disk_mib: 16, keys: "", more: "" }
    }
}

impl Workers<'_> {
    /// A pool of one worker, which is a clone, in a lab of its own.
    pub fn in_lab(&self) -> Lab {
        let lab = Lab::new();
        self.deploy(&lab);
        lab
    }

    pub fn deploy(&self, lab: &Lab) {
        lab.deploy(&self.manifest());
    }

    pub fn manifest(&self) -> String {
        let Self { image, running, spares, data_disk_mib, keys, more } = self;
        format!(
            r#"
[tenant]
id = "alice"

[[pools]]
id = "workers"
image = "{}"
vcpus = 1
mem_mib = 256
data_disk_mib = {data_disk_mib}
desired_running = {running}
spares = {spares}
{keys}

[[publish]]
port = {PORT}
pool = "workers"
target_port = 8080
{more}
"#,
            image.display()
        )
    }
}

/// The recipe of the workers.
pub fn image() -> PathBuf {
    checkout().join("tests/clones/worker").canonicalize().unwrap()
}

/// A recipe of the lab's own, which can be changed.
pub fn own_image(lab: &Lab) -> PathBuf {
    for entry in std::fs::read_dir(image()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        lab.file(&format!("worker/{name}"), &std::fs::read_to_string(entry.path()).unwrap());
    }
    lab.data_dir().with_file_name("files").join("worker")
}

/// Has a worker's service evaluate Python; statements before the last expression end with `\n;;\n`.
#[track_caller]
pub fn ask(lab: &Lab, instance: &str, code: &str) -> Value {
    let text = lab.exec(instance, &["wget", "-q", "-O-", &format!("http://127.0.0.1:8080{}", path_of(code))]);
    understood(&text)
}

/// The same of the only worker, through its published port: it is woken if it sleeps.
#[track_caller]
pub fn ask_by_port(lab: &Lab, code: &str) -> Value {
    understood(&lab.get(PORT, &path_of(code)).text())
}

/// The path by which a worker's service is told to evaluate something.
pub fn path_of(code: &str) -> String {
    let hex: String = code.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("/do/{hex}")
}

#[track_caller]
fn understood(text: &str) -> Value {
    let value: Value = text.parse().unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(value.get("error"), None, "the worker could not do it");
    value
}

/// Counts once more in the only worker's memory and on its disk: the two numbers.
#[track_caller]
pub fn count(lab: &Lab) -> (u64, u64) {
    let answer = answered(lab, PORT);
    (answer["count"].as_u64().unwrap(), answer["lines"].as_u64().unwrap())
}

/// Has a machine begin anew, from the base.
#[track_caller]
pub fn start_anew(lab: &Lab, instance: &str) {
    lab.mvm(&["instance", "stop", instance]);
    lab.mvm(&["instance", "start", instance]);
    assert_eq!(how(lab, instance), "clone", "{}", lab.info(instance));
}

/// How it came to run.
#[track_caller]
pub fn how(lab: &Lab, instance: &str) -> String {
    lab.info(instance)["last_start"]["how"].as_str().unwrap().to_owned()
}

/// What is kept of an instance, in the data folder.
pub fn folder_of(lab: &Lab, instance: &str) -> PathBuf {
    lab.data_dir().join("instances").join(lab.info(instance)["id"].as_str().unwrap())
}

/// The folders of bases.
pub fn bases(lab: &Lab) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(lab.data_dir().join("bases")).into_iter().flatten().flatten();
    let mut bases: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    bases.sort();
    bases
}

/// More private memory than is copied at a wake, so that its sleep makes an own image.
pub fn fill_memory(lab: &Lab, instance: &str) {
    let code = "
import mmap
memory['ballast'] = mmap.mmap(-1, 80 << 20)
for _ in range(80):
    memory['ballast'].write(os.urandom(4096) * 256)
;;
len(memory['ballast'])";
    assert_eq!(ask(lab, instance, code), 80 << 20);
}

/// Flips a bit in the middle of a file, in place.
pub fn flip(path: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let (at, mut byte) = (file.metadata().unwrap().len() / 2, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Waits until a VMM that was started ahead waits for its machine; its pid.
#[track_caller]
pub fn spare(lab: &Lab) -> u32 {
    let mut found = None;
    lab.wait_for("a spare waits", || {
        found = waiting_spares(lab).first().copied();
        found.is_some()
    });
    found.unwrap()
}

/// VMMs started ahead that can be taken.
pub fn waiting_spares(lab: &Lab) -> Vec<u32> {
    let log = std::fs::read_to_string(lab.log()).unwrap();
    let mut spares = lab.spares();
    spares.retain(|pid| log.contains(&format!("a spare waits pid={pid}")));
    spares
}
