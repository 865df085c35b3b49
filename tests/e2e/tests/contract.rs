//! The contract suite over the embedded engine.

use std::future::Future;

use votestream_core::port::Ports;
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_testkit::contract;

async fn embedded<F: Future<Output = ()>>(check: impl FnOnce(Ports) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let engine = EmbeddedEngine::open(dir.path(), EmbeddedOptions::default()).unwrap();
    check(engine.ports()).await;
    engine.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_stream() {
    embedded(contract::check_stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_votes() {
    embedded(contract::check_votes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_tallies() {
    embedded(contract::check_tallies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_polls() {
    embedded(contract::check_polls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_leases() {
    embedded(contract::check_leases).await;
}
