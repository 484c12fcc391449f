//! Results in memory.

use std::sync::Arc;

use celeriac_core::Backend;
use celeriac_core::backend::Settings;
use celeriac_testing::conformance::backend::{self, Fixture};

struct Memory(String);

impl Fixture for Memory {
    fn open(&self) -> Arc<dyn Backend> {
        celeriac_backend::open(&self.0, Settings::default()).unwrap()
    }
}

#[tokio::test]
async fn it_behaves_as_every_backend_does() {
    backend::run(&Memory("memory://conformance".to_owned())).await;
}
