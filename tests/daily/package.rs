//! The Debian package on a clean Debian: installed, used, upgraded, purged.

use mvm_harness::{Connection, Debian, Value, package};

const MANIFEST: &str = "/usr/share/doc/mvm/examples/echo/deployment.toml";
const PORT: u16 = 8080;

fn count(debian: &Debian) -> u64 {
    let response = Connection::open(debian.network(), PORT).get("/hello");
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["count"].as_u64().unwrap()
}

#[test]
fn it_installs_runs_the_demo_and_purges_on_a_clean_debian() {
    let debian = Debian::new();
    std::fs::copy(package(), debian.path("/root/mvm.deb")).unwrap();
    debian.with_network(&["apt-get", "update"]);
    debian.with_network(&["apt-get", "install", "-y", "--no-install-recommends", "/root/mvm.deb"]);
    assert!(debian.run(&["getent", "group", "mvm"]).starts_with("mvm:"));
    for file in ["/usr/share/man/man1/mvm.1.gz", "/usr/share/bash-completion/completions/mvm"] {
        assert!(debian.path(file).exists(), "{file}");
    }
    assert!(debian.run(&["mvm", "doctor"]).contains("this host is ready"));

    debian.run(&["mvm", "deploy", MANIFEST]);
    assert_eq!(count(&debian), 1);
    debian.run(&["mvm", "instance", "sleep", "echo/workers"]);
    assert_eq!(count(&debian), 2, "it slept and woke");

    // The same version once more, as an upgrade comes: machines run on, for the next agent.
    let pid = |debian: &Debian| {
        let info: Value =
            debian.run(&["mvm", "instance", "info", "echo/workers", "-o", "json"]).parse().unwrap();
        info["pid"].clone()
    };
    let before = pid(&debian);
    debian.run(&["dpkg", "--install", "/root/mvm.deb"]);
    debian.run(&["mvm", "agent", "stop"]);
    assert_eq!(pid(&debian), before);
    assert_eq!(count(&debian), 3);

    debian.with_network(&["apt-get", "remove", "-y", "mvm"]);
    assert!(debian.is_quiet(), "neither machines nor agent run");
    assert!(debian.path("/var/lib/mvm/mvm.db").exists(), "what was there is kept");
    debian.with_network(&["apt-get", "install", "-y", "--no-install-recommends", "/root/mvm.deb"]);
    debian.run(&["mvm", "instance", "wake", "echo/gateways"]);
    assert_eq!(count(&debian), 4, "with the memory that it was put to sleep with");

    debian.with_network(&["apt-get", "purge", "-y", "mvm"]);
    assert!(debian.is_quiet());
    for gone in ["/var/lib/mvm", "/run/mvm", "/usr/bin/mvm", "/usr/share/doc/mvm"] {
        assert!(!debian.path(gone).exists(), "{gone}");
    }
    assert!(!debian.try_run(&["getent", "group", "mvm"]).status.success());
}
