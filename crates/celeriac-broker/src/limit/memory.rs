//! Limits in this process, for tests.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use celeriac_core::broker::Error;
use celeriac_core::limit::{Answer, LimitSession, LimitStore, Order};
use jiff::Timestamp;

use super::ledger::{Records, carry_out};

/// Limits that live and die with it.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryLimits(Arc<Mutex<Records>>);

#[async_trait]
impl LimitStore for MemoryLimits {
    fn display_url(&self) -> String {
        "memory://".to_owned()
    }

    async fn connect(&self) -> Result<Box<dyn LimitSession>, Error> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl LimitSession for MemoryLimits {
    async fn exchange(&mut self, orders: &[Order]) -> Result<Vec<Answer>, Error> {
        let now = Timestamp::now().as_microsecond();
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = carry_out(orders, &mut records, now);
        records.retain(|_, record| record.expires() > now);
        Ok(answers)
    }
}
