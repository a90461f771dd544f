//! How programs of the host speak HTTPS: they believe whom the host believes. Its trust store is its administrator's, who may have
//! put a certificate authority of their own into it; `SSL_CERT_FILE` and `SSL_CERT_DIR` name another one.
//!
//! Not for guests: there is no such store in a machine.

use std::sync::Arc;

use ureq::Agent;
use ureq::config::ConfigBuilder;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::typestate::AgentScope;

/// Where every client begins. It has no time limits yet; proxies are taken from the environment.
pub fn config() -> ConfigBuilder<AgentScope> {
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .build();
    Agent::config_builder().tls_config(tls).user_agent(concat!("mvm/", env!("CARGO_PKG_VERSION")))
}
