//! Values as they come from the server.

use std::error::Error;

use bytes::Bytes;
use tokio_postgres::types::{FromSql, Type};

/// The bytes of a text. In a database without an encoding (`SQL_ASCII`) they may be anything.
pub(super) struct Text(pub(super) Bytes);

impl FromSql<'_> for Text {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(Bytes::copy_from_slice(raw)))
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::TEXT | Type::VARCHAR | Type::BYTEA)
    }
}
