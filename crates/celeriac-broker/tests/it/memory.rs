use std::sync::Arc;

use async_trait::async_trait;
use celeriac_broker::memory::MemoryBroker;
use celeriac_core::Broker;
use celeriac_testing::conformance::broker::{self, Fixture};
use celeriac_testing::conformance::{limits, publisher};

struct Memory(MemoryBroker);

#[async_trait]
impl Fixture for Memory {
    fn broker(&self) -> Arc<dyn Broker> {
        Arc::new(self.0.clone())
    }

    async fn publish_rubbish(&self, _: &str, _: &[u8]) -> Option<()> {
        None // it holds messages, not bytes
    }
}

#[tokio::test]
async fn publishing() {
    let memory = Memory(MemoryBroker::new());
    publisher::run(&memory).await;
}

#[tokio::test]
async fn conformance() {
    broker::run(&Memory(MemoryBroker::new())).await;
}

#[tokio::test]
async fn limits() {
    limits::run(&MemoryBroker::new().limits().unwrap()).await;
}
