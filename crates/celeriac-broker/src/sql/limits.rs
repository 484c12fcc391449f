//! Limits in a database: a table of records, which one worker at a time reads, and writes as
//! `limit/ledger.rs` decides.
//!
//! There is one in a database, whatever kombu's tables are named: `celeriac_limit`.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use celeriac_core::broker::Error;
use celeriac_core::limit::{Answer, LimitSession, LimitStore, Order};

use super::store::Engine;
use crate::limit::ledger::{Record, Records, carry_out, names};

/// The limits in one database.
pub(super) struct SqlLimits {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) display: String,
}

impl fmt::Debug for SqlLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlLimits({})", self.display)
    }
}

#[async_trait]
impl LimitStore for SqlLimits {
    fn display_url(&self) -> String {
        self.display.clone()
    }

    async fn connect(&self) -> Result<Box<dyn LimitSession>, Error> {
        self.engine.open_limits().await
    }
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) name: String,
    /// JSON.
    pub(super) record: String,
    /// When it says nothing any more: microseconds since 1970.
    pub(super) expires: i64,
}

/// The names of the rows that orders need.
pub(super) fn needed(orders: &[Order]) -> Vec<String> {
    names(orders).into_iter().map(str::to_owned).collect()
}

/// Carries orders out on what the table holds for them, each a name and JSON; answers with the rows
/// that the table is to hold. What can't be read counts as nothing.
pub(super) fn decide(
    orders: &[Order],
    known: Vec<(String, String)>,
    now: i64,
) -> (Vec<Answer>, Vec<Row>) {
    let known = known.into_iter().map(|(name, record)| {
        let record: Record = serde_json::from_str(&record).unwrap_or_default();
        (name, record)
    });
    let mut records: Records = known.collect();
    let answers = carry_out(orders, &mut records, now);
    let rows = records.into_iter().map(|(name, record)| Row {
        record: serde_json::to_string(&record).unwrap_or_default(),
        expires: record.expires(),
        name,
    });
    (answers, rows.collect())
}
