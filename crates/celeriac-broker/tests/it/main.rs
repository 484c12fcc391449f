//! Every broker against the suite of `celeriac-testing`, and what is particular to each.

#![allow(clippy::unwrap_used, reason = "a test that can't go on panics")]

mod amqp;
mod amqp_delays;
mod local;
mod mariadb;
mod memory;
mod postgres;
mod redis;
mod redis_bus;
mod sentinel;
mod sql;
mod sqlite;

/// The table of revokes as SQLAlchemy makes it for `celeriac.host.revocations`, and rows in it. How
/// the database writes a float of 53 bits is `double`.
fn as_python_keeps(double: &str) -> String {
    format!(
        "CREATE TABLE celeriac_revoked (
            kind VARCHAR(16) NOT NULL,
            member VARCHAR(512) NOT NULL,
            revoked_at {double} NOT NULL,
            PRIMARY KEY (kind, member)
        );
        INSERT INTO celeriac_revoked (kind, member, revoked_at) VALUES
            ('id', 'a', 1000.500001), ('id', 'b', 1000.5), ('id', 'too old', 1000.499999),
            ('id', 'ünïcode', 2000), ('header', '[\"who\", \"x\"]', 1500);"
    )
}
