//! Over TLS, and only with who can prove who they are.

use std::net::Ipv4Addr;
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::world::*;

/// TLS in front of `to`. Returns its port.
fn front(world: &World, key: &CertifiedKey<rcgen::KeyPair>, to: std::net::SocketAddr) -> u16 {
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    world.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut tls) = acceptor.accept(stream).await else { return };
                    let mut plain = TcpStream::connect(to).await.unwrap();
                    let _ = copy_bidirectional(&mut tls, &mut plain).await;
                });
            }
        });
        port
    })
}

#[test]
fn services_are_spoken_to_over_tls_when_they_are_believed() {
    let mut world = World::asleep();
    let key = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let port = front(&world, &key, world.bot.address());
    let roots = world.folder.path().join("roots.pem");
    std::fs::write(&roots, key.cert.pem()).unwrap();
    world.block["endpoints"]["telegram"] = json!(format!("https://localhost:{port}"));
    world.write_block();
    world.start();
    world.bot.push_message(ALICE, "x");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(world.bot.calls().is_empty(), "nobody vouches for this certificate");
    world.stop();

    world.config.openclaw.more_roots = Some(roots);
    world.start();
    world.alice.takes(1);
    assert_eq!(world.call(&world.alice, "getMe", &json!({})).status(), 200);
}
