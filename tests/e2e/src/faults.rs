//! A stream that can be stopped, between a service and the engine.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use votestream_core::{
    SequenceNumber, ShardId,
    port::{Group, PortError, RecordReader, Shard, Stored, VoteStream},
};

/// Passes everything on, but holds puts back while it is stalled.
pub struct StallingStream {
    inner: Arc<dyn VoteStream>,
    stalled: watch::Sender<bool>,
    held_back: AtomicUsize,
}

impl StallingStream {
    /// Wraps a stream.
    pub fn new(inner: Arc<dyn VoteStream>) -> Arc<Self> {
        Arc::new(Self { inner, stalled: watch::Sender::new(false), held_back: AtomicUsize::new(0) })
    }

    /// Starts or ends the stall.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    /// How many puts had to wait.
    pub fn held_back(&self) -> usize {
        self.held_back.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl VoteStream for StallingStream {
    async fn list_shards(&self) -> Result<Vec<Shard>, PortError> {
        self.inner.list_shards().await
    }

    async fn put(&self, hash: u128, data: Bytes) -> Result<Stored, PortError> {
        let mut stalled = self.stalled.subscribe();
        if *stalled.borrow() {
            self.held_back.fetch_add(1, Ordering::Relaxed);
        }
        stalled.wait_for(|stalled| !stalled).await.map_err(|_| PortError::refused("the stream is gone"))?;
        self.inner.put(hash, data).await
    }

    async fn reader(
        &self,
        group: Group,
        shard: &ShardId,
        after: SequenceNumber,
    ) -> Result<Box<dyn RecordReader>, PortError> {
        self.inner.reader(group, shard, after).await
    }
}
