//! What must hold of decoders that are private to this crate, whatever bytes they get. For the
//! targets in `fuzz/`; a property that does not hold panics.

pub use crate::amqp::fuzzing::{amqp_frame, amqp_message, amqp_method, amqp_state, amqp_table};
pub use crate::local::fuzzing::local_frame;
pub use crate::sql::fuzzing::sql_address;
