//! The agent as a service of systemd's: it says how it is, and takes the socket that was opened for it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use mvm_harness::{Lab, freeze};

/// What a supervisor hears.
fn hear(socket: &UnixDatagram) -> io::Result<String> {
    let mut said = [0; 256];
    let length = socket.recv(&mut said)?;
    Ok(String::from_utf8(said[..length].to_vec()).unwrap().trim_end().to_owned())
}

#[test]
fn it_tells_when_it_serves_that_it_is_well_and_that_it_ends() {
    let mut lab = Lab::without_agent();
    let path = lab.file("notify", "");
    std::fs::remove_file(&path).unwrap();
    let supervisor = UnixDatagram::bind(&path).unwrap();
    supervisor.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    lab.spawn_agent_with(&[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "300000")]);
    let mut said = vec![hear(&supervisor).unwrap()];
    while said.iter().filter(|word| *word == "WATCHDOG=1").count() < 3 {
        said.push(hear(&supervisor).unwrap());
    }
    said.retain(|word| word != "WATCHDOG=1");
    assert_eq!(said, ["READY=1"]);
    assert!(lab.try_mvm(&["agent", "status"]).status.success(), "it serves since it said so");

    // One that hangs says nothing, which is what a watchdog is for.
    let agent = lab.agent_pid().unwrap();
    freeze(agent);
    supervisor.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    while hear(&supervisor).is_ok() {}
    mvm_harness::thaw(agent);
    assert_eq!(hear(&supervisor).unwrap(), "WATCHDOG=1");

    lab.stop_agent();
    let mut last = String::new();
    while let Ok(word) = hear(&supervisor) {
        last = word;
    }
    assert_eq!(last, "STOPPING=1");
}

#[test]
fn the_first_who_connects_has_it_started_and_the_socket_is_not_its_own() {
    let mut lab = Lab::without_agent();
    let socket = lab.socket();
    std::fs::create_dir_all(lab.run_dir()).unwrap();
    let inherited = ["MVM_DATA_DIR", "MVM_RUN_DIR", "MVM_HOST", "MVM_PACKAGE_CACHE"];
    let mut starter = vec!["systemd-socket-activate", "--listen", socket.to_str().unwrap()];
    starter.extend(inherited.iter().flat_map(|name| ["--setenv", name]));
    lab.leave_agent_to(&starter);
    lab.wait_for("somebody listens", || socket.exists());
    let inode = || std::fs::metadata(&socket).unwrap().ino();
    let opened = inode();
    assert!(!lab.data_dir().join("mvm.db").exists(), "no agent runs yet");
    assert_eq!(lab.json(&["tenant", "list"]).as_array().map(Vec::len), Some(0));
    assert!(lab.data_dir().join("mvm.db").exists());
    assert_eq!(lab.json(&["agent", "status"])["pid"], lab.agent_pid().unwrap(), "in its starter's place");
    assert_eq!(inode(), opened, "it took the socket that was there");
    lab.stop_agent();
    assert_eq!(inode(), opened, "and leaves it to whoever opened it");
}
