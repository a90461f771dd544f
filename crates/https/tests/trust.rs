//! Whom the host believes is believed, and nobody else. In a program of its own: the trust store is named by its environment.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Names the address that the program under test asks; without it this is the test.
const ADDRESS: &str = "MVM_TEST_ADDRESS";

/// Answers everyone who believes the certificate with `hello`. Returns where.
fn serve(key: &CertifiedKey<rcgen::KeyPair>) -> String {
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config =
        config.with_no_client_auth().with_single_cert(vec![key.cert.der().clone()], private).unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            let asked = BufReader::new(&mut tls).lines().map_while(Result::ok).any(|line| line.is_empty());
            if asked {
                let _ =
                    tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
            }
        }
    });
    address
}

#[test]
fn whom_the_host_believes_is_believed() {
    if let Ok(address) = std::env::var(ADDRESS) {
        let agent: ureq::Agent = mvm_https::config().build().into();
        let said = agent.get(&address).call().map(|mut answer| answer.body_mut().read_to_string().unwrap());
        println!("said: {}", said.unwrap_or_else(|error| error.to_string()));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [own, other] = [(); 2].map(|()| generate_simple_self_signed(["localhost".to_owned()]).unwrap());
    let address = serve(&own);
    let asked_with = |store: &str| {
        let store = folder.path().join(store);
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "whom_the_host_believes_is_believed", "--nocapture"]);
        program.env(ADDRESS, &address).env("NO_PROXY", "localhost");
        let out = program.env("SSL_CERT_FILE", store).env_remove("SSL_CERT_DIR").output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    for (store, content) in [("own", own.cert.pem()), ("other", other.cert.pem()), ("none", String::new())] {
        std::fs::write(folder.path().join(store), content).unwrap();
    }
    assert!(asked_with("own").contains("said: hello"), "{}", asked_with("own"));
    assert!(asked_with("other").contains("invalid peer certificate"), "{}", asked_with("other"));
    // Also where there is no store at all it is an error, and no panic.
    assert!(
        asked_with("none").contains("said: ") && !asked_with("none").contains("hello"),
        "{}",
        asked_with("none")
    );
}
