//! A manifest with a mistake: one error that names the file, the line and the key, and nothing is made.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use mvm_harness::{Lab, Namespace};

/// Right as it stands. It has no machines: what is refused here is refused before any would be made.
const RIGHT: &str = r#"[tenant]
id = "alice"

[[pools]]
id = "gateways"
role = "gateway"
desired_running = 0

[[pools]]
id = "workers"
image = "./recipe"
vcpus = 1
mem_mib = 256
data_disk_mib = 16
desired_running = 0
egress = ["192.0.2.0/24:443"]

[[publish]]
port = 8080
pool = "gateways"
target_port = 8080

[[routes]]
name = "all"
match_rule = { port = 8080 }
target = { pool_id = "workers", instance_selector = "any", target_port = 8080 }

[secrets]
token = { file = "./token" }
"#;

const RECIPE: &str = "[image]\nname = \"own\"\nbase = \"minimal\"\n";

/// A mistake: what is written in place of what, the text of the line it is told at, its key, and what is said of it.
struct Mistake {
    right: &'static str,
    wrong: &'static str,
    line: &'static str,
    key: &'static str,
    said: &'static str,
}

const fn mistake(
    [right, wrong]: [&'static str; 2],
    line: &'static str,
    key: &'static str,
    said: &'static str,
) -> Mistake {
    Mistake { right, wrong, line, key, said }
}

const MISTAKES: [Mistake; 17] = [
    mistake(["vcpus = 1", "vcpu = 1"], "vcpu = 1", "pools[1].vcpu", "did you mean `vcpus`"),
    mistake(["[[routes]]", "[[route]]"], "[[route]]", "route", "did you mean `routes`"),
    mistake(
        ["vcpus = 1", "peer_traffic = true"],
        "peer_traffic = true",
        "pools[1].peer_traffic",
        "not supported by this version",
    ),
    mistake(["vcpus = 1", "vcpus = \"1\""], "vcpus = \"1\"", "pools[1].vcpus", "must be a whole number"),
    mistake(["vcpus = 1", "vcpus = 99"], "vcpus = 99", "pools[1].vcpus", "must be 1 to 32, not 99"),
    mistake(["vcpus = 1", "vcpus = "], "vcpus = ", "", ""),
    mistake(
        ["\"./token\"", "\"./none\""],
        "token = { file = \"./none\" }",
        "secrets.token.file",
        "cannot read",
    ),
    mistake(
        ["id = \"workers\"\nimage", "id = \"gateways\"\nimage"],
        "id = \"gateways\"",
        "pools[1].id",
        "there is another pool `gateways`",
    ),
    mistake(
        ["192.0.2.0/24:443", "192.0.2.1/24:443"],
        "egress = [\"192.0.2.1/24:443\"]",
        "pools[1].egress[0]",
        "did you mean 192.0.2.0/24",
    ),
    mistake(
        ["192.0.2.0/24:443", "192.0.2.0/33"],
        "egress = [\"192.0.2.0/33\"]",
        "pools[1].egress[0]",
        "is not an egress rule",
    ),
    mistake(
        ["id = \"alice\"", "id = \"alice\"\nsubnet = \"192.168.0.0/24\""],
        "subnet = \"192.168.0.0/24\"",
        "tenant.subnet",
        "10.240.0.0/12",
    ),
    mistake(
        ["desired_running = 0\negress", "desired_running = 3\negress"],
        "max_mem_mib = 512",
        "tenant.quotas.max_mem_mib",
        "too small: 768 needed",
    ),
    mistake(
        ["pool = \"gateways\"", "pool = \"gateway\""],
        "pool = \"gateway\"",
        "publish[0].pool",
        "there is no pool `gateway`",
    ),
    mistake(["\"./recipe\"", "\"./none\""], "image = \"./none\"", "pools[1].image", "there is no recipe"),
    mistake(
        ["\"./recipe\"", "\"nonesuch\""],
        "image = \"nonesuch\"",
        "pools[1].image",
        "no built-in image `nonesuch`",
    ),
    mistake(["\"./recipe\"", "\"./bad\""], "image = \"./bad\"", "pools[1].image", "bad/image.toml"),
    mistake(
        ["\"./recipe\"", "\"./unlocked\""],
        "image = \"./unlocked\"",
        "pools[1].image",
        "run scripts/update-locks",
    ),
];

/// A lab with everything that [`RIGHT`] names.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.file("token", "hunter2");
    let lock = std::fs::read_to_string(mvm_harness::checkout().join("images/minimal/image.lock")).unwrap();
    for (folder, recipe) in [
        ("recipe", RECIPE.to_owned()),
        ("bad", RECIPE.replace("base", "basis")),
        ("unlocked", format!("{RECIPE}packages = [\"curl\"]\n")),
    ] {
        lab.file(&format!("{folder}/image.toml"), &recipe);
        lab.file(&format!("{folder}/image.lock"), &lock);
    }
    lab
}

/// Everything an agent could have made for a tenant.
#[derive(Debug, PartialEq)]
struct Made {
    tenants: usize,
    files: BTreeSet<PathBuf>,
    namespaces: Vec<String>,
    links: String,
    tables: String,
    listening: String,
    vmms: Vec<u32>,
}

fn made(lab: &Lab) -> Made {
    let mut files = BTreeSet::new();
    note_files(&lab.data_dir(), &mut files);
    note_files(&lab.run_dir(), &mut files);
    // The image cache, which may grow, and the database's own.
    let images = lab.data_dir().join("images");
    files.retain(|file| !file.starts_with(&images) && !file.to_str().unwrap().ends_with("-journal"));
    Made {
        tenants: lab.json(&["tenant", "list"]).as_array().unwrap().len(),
        files,
        namespaces: Namespace::all_with(&format!("mvm-{}-", lab.tag())),
        links: lab.host().run("ip", &["-brief", "link"]),
        tables: lab.host().run("nft", &["list", "tables"]),
        listening: lab.host().run("ss", &["-Hltn"]),
        vmms: lab.vmms(),
    }
}

fn note_files(folder: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            note_files(&entry.path(), files);
        }
        files.insert(entry.path());
    }
}

/// Deploys a wrong manifest: it is one error, at the line with this text and this key.
#[track_caller]
fn assert_refused(lab: &Lab, manifest: &str, line: &str, key: &str, said: &str) {
    let error = lab.deploy_fails(manifest);
    let number = manifest.lines().enumerate().filter(|(_, text)| *text == line).last();
    let number = number.unwrap_or_else(|| panic!("no line {line:?} in {manifest}")).0 + 1;
    assert_eq!(error.matches("error:").count(), 1, "{error}");
    let path = lab.file("deployment.toml", manifest);
    let place = format!("{}:{number}:", path.display());
    let first = error.lines().find(|text| text.contains("error:")).unwrap();
    assert!(first.contains(&place), "{line:?} is told at another place than {place}\n{error}");
    assert!(first.contains(&format!(" {key}")) && error.contains(said), "{key}: {said} is not in\n{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn a_mistake_is_told_with_its_line_and_key_and_nothing_is_made() {
    let lab = lab();
    let before = made(&lab);
    assert_eq!((before.tenants, before.namespaces.len()), (0, 0));
    for Mistake { right, wrong, line, key, said } in MISTAKES {
        assert_eq!(RIGHT.matches(right).count(), 1, "{right}");
        let mut manifest = RIGHT.replace(right, wrong);
        if key.contains("quotas") {
            manifest = manifest.replace(
                "[[pools]]\nid = \"gate",
                "[tenant.quotas]\nmax_mem_mib = 512\n\n[[pools]]\nid = \"gate",
            );
        }
        assert_refused(&lab, &manifest, line, key, said);
        assert_eq!(made(&lab), before, "{wrong}");
    }

    let taken = lab.host().inside(|| TcpListener::bind("127.0.0.1:8080").unwrap());
    let held = made(&lab);
    assert_refused(
        &lab,
        RIGHT,
        "port = 8080",
        "publish[0].port",
        "127.0.0.1:8080 cannot be published: another process",
    );
    assert_eq!(made(&lab), held);
    drop(taken);

    // Nothing but the mistakes was wrong with it.
    lab.deploy(RIGHT);
    let deployed = made(&lab);
    assert_eq!(deployed.tenants, 1);
    assert_ne!(deployed, before);

    // What another tenant has, or what its own past fixes, is refused in the same way.
    let bob = RIGHT.replace("alice", "bob");
    assert_refused(&lab, &bob, "port = 8080", "publish[0].port", "tenant alice has it");
    let everywhere = bob.replace("port = 8080\npool", "port = 8080\nbind = \"0.0.0.0\"\npool");
    assert_refused(&lab, &everywhere, "port = 8080", "publish[0].port", "tenant alice has it");
    let net_id =
        bob.replace("port = 8080\npool", "port = 8081\npool").replace("\"bob\"", "\"bob\"\nnet_id = 0");
    assert_refused(&lab, &net_id, "net_id = 0", "tenant.net_id", "has this number");
    let disk = RIGHT.replace("data_disk_mib = 16", "data_disk_mib = 0");
    assert_refused(&lab, &disk, "data_disk_mib = 0", "pools[1].data_disk_mib", "data disks only grow");
    let role = RIGHT.replace("role = \"gateway\"", "role = \"worker\"");
    assert_refused(&lab, &role, "role = \"worker\"", "pools[0].role", "a role does not change");
    assert_eq!(made(&lab), deployed);
    assert!(lab.deploy(RIGHT).contains("nothing to do"));
}

#[test]
fn two_agents_do_not_share_a_folder() {
    let lab = Lab::new();
    let elsewhere = lab.file("elsewhere/x", "");
    let elsewhere = elsewhere.parent().unwrap().to_str().unwrap();
    for option in ["--data-dir", "--run-dir"] {
        let told = lab.mvm_fails(&[option, elsewhere, "agent", "serve"]);
        assert!(told.contains("another agent uses"), "{told}");
    }
    lab.mvm(&["agent", "status"]);
}

#[test]
fn a_host_that_uses_the_range_of_tenants_addresses_is_refused_with_the_remedy() {
    let lab = lab();
    let before = made(&lab);
    for (kind, net) in [("route", "10.242.0.0/16"), ("route", "10.0.0.0/8"), ("addr", "10.255.7.1/24")] {
        let host = lab.host();
        let change = |verb: &str| match kind {
            "route" => host.run("ip", &["route", verb, net, "dev", "lo"]),
            _ => host.run("ip", &["addr", verb, net, "dev", "lo"]),
        };
        change("add");
        let error = lab.deploy_fails(RIGHT);
        let named = net.replace(".1/24", ".0/24");
        for part in ["10.240.0.0/12", "overlaps", &named, "remove", "from the host"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
        change("del");
        assert_eq!(made(&lab), before, "{net}");
    }
    lab.deploy(RIGHT);
}
