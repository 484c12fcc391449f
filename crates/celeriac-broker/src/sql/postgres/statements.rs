//! The statements of one connection, prepared.
//!
//! Each is all of a transaction. Rows of leases are always taken before rows of messages, and
//! claims wait for nobody, so that no two of them can wait for one another.

use celeriac_core::broker::Error;
use tokio_postgres::Statement;

use super::connection::Connection;
use crate::sql::lease::{DEAD_AFTER, GAP};
use crate::sql::store::SOONEST;
use crate::sql::tables::Tables;

pub(super) struct Statements {
    pub(super) find_queue: Statement,
    pub(super) make_queue: Statement,
    pub(super) publish: Statement,
    pub(super) exchange: Statement,
    pub(super) remove: Statement,
    pub(super) release: Statement,
    pub(super) read: Statement,
    pub(super) requeue: Statement,
    pub(super) keep: Statement,
    pub(super) wait_for_first: Statement,
    pub(super) come: Statement,
    pub(super) beat: Statement,
    pub(super) count: Statement,
    pub(super) dead: Statement,
    pub(super) lock: Statement,
    pub(super) restore: Statement,
    pub(super) bury: Statement,
    pub(super) leave: Statement,
    pub(super) held: Statement,
    pub(super) purge: Statement,
    pub(super) size: Statement,
}

impl Statements {
    pub(super) async fn prepare(
        connection: &Connection,
        tables: &Tables,
        channel: &str,
    ) -> Result<Self, Error> {
        let text = Texts { tables, channel };
        let prepare = async |sql: String| connection.answer(connection.prepare(&sql)).await;
        Ok(Self {
            find_queue: prepare(text.find_queue()).await?,
            make_queue: prepare(text.make_queue()).await?,
            publish: prepare(text.publish()).await?,
            exchange: prepare(text.exchange()).await?,
            remove: prepare(text.remove()).await?,
            release: prepare(text.release()).await?,
            read: prepare(text.read()).await?,
            requeue: prepare(text.requeue()).await?,
            keep: prepare(text.keep()).await?,
            wait_for_first: prepare(text.wait_for_first()).await?,
            come: prepare(text.come()).await?,
            beat: prepare(text.beat()).await?,
            count: prepare(text.count()).await?,
            dead: prepare(text.dead()).await?,
            lock: prepare(text.lock()).await?,
            restore: prepare(text.restore()).await?,
            bury: prepare(text.bury()).await?,
            leave: prepare(text.leave()).await?,
            held: prepare(text.held()).await?,
            purge: prepare(text.purge()).await?,
            size: prepare(text.size()).await?,
        })
    }
}

/// What the statements are made of.
#[derive(Clone, Copy)]
struct Texts<'t> {
    /// The names of the tables, quoted.
    tables: &'t Tables,
    channel: &'t str,
}

/// The server's clock, in microseconds since 1970.
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::int8";

/// kombu's count of updates, which does not run over.
const NEXT_VERSION: &str = "version = version % 32767 + 1";

impl Texts<'_> {
    /// $1 name
    fn find_queue(self) -> String {
        format!("SELECT id::int8 FROM {} WHERE name = $1", self.tables.queue)
    }

    /// $1 name
    fn make_queue(self) -> String {
        format!(
            "INSERT INTO {} (id, name) VALUES (nextval('queue_id_sequence'), $1)
             ON CONFLICT (name) DO NOTHING",
            self.tables.queue
        )
    }

    /// $1 ids of queues, $2 payloads. The trigger tells of it too: told twice in one transaction is
    /// told once.
    fn publish(self) -> String {
        let message = &self.tables.message;
        self.telling(&format!(
            "put AS (
                 INSERT INTO {message} (id, visible, timestamp, payload, version, queue_id)
                 SELECT nextval('message_id_sequence'), true, NULL, payload, 1, queue FROM (
                     SELECT queue, payload FROM unnest($1::int8[], $2::text[])
                     WITH ORDINALITY AS sent (queue, payload, place) ORDER BY place
                 ) AS sent
                 RETURNING queue_id
             )"
        ))
    }

    /// $1 ids to remove, $2 worker, $3 queues and $4 counts in the order of their turns, $5 limit
    fn exchange(self) -> String {
        let Tables {
            message,
            lease,
            worker,
            ..
        } = self.tables;
        format!(
            "WITH {removing},
             known AS (
                 INSERT INTO {worker} (name, since, seen)
                 VALUES ($2, clock_timestamp(), clock_timestamp()) ON CONFLICT DO NOTHING
             ), taken AS MATERIALIZED (
                 SELECT waiting.id FROM unnest($3::int8[], $4::int8[]) AS share (queue, count)
                 CROSS JOIN LATERAL (
                     SELECT id FROM {message} WHERE queue_id = share.queue AND visible
                     ORDER BY timestamp, id LIMIT share.count FOR UPDATE SKIP LOCKED
                 ) AS waiting
                 LIMIT $5
             ), claimed AS (
                 UPDATE {message} AS m SET visible = false, timestamp = localtimestamp, {NEXT_VERSION}
                 FROM taken WHERE m.id = taken.id
                 RETURNING m.id, m.queue_id, m.payload
             ), leased AS (
                 INSERT INTO {lease} (message_id, worker) SELECT id, $2 FROM claimed
                 ON CONFLICT (message_id) DO UPDATE SET worker = excluded.worker
             )
             SELECT id::int8, queue_id::int8, payload FROM claimed ORDER BY id",
            removing = self.removing()
        )
    }

    /// $1 ids, $2 worker
    fn remove(self) -> String {
        format!("WITH {} SELECT FROM removed", self.removing())
    }

    fn removing(self) -> String {
        let Tables { message, lease, .. } = self.tables;
        format!(
            "freed AS (
                 DELETE FROM {lease} WHERE message_id = ANY ($1::int8[]) AND worker = $2
                 RETURNING message_id
             ), removed AS (
                 DELETE FROM {message} AS m USING freed WHERE m.id = freed.message_id
                 RETURNING m.id
             )"
        )
    }

    /// $1 ids, $2 worker
    fn release(self) -> String {
        let Tables { message, lease, .. } = self.tables;
        self.telling(&format!(
            "freed AS (
                 DELETE FROM {lease} WHERE message_id = ANY ($1::int8[]) AND worker = $2
                 RETURNING message_id
             ), put AS (
                 UPDATE {message} AS m SET visible = true, timestamp = NULL, {NEXT_VERSION}
                 FROM freed WHERE m.id = freed.message_id
                 RETURNING m.queue_id
             )"
        ))
    }

    /// $1 ids, $2 worker: what is to be marked before it is requeued
    fn read(self) -> String {
        let Tables { message, lease, .. } = self.tables;
        format!(
            "SELECT m.id::int8, m.payload FROM {lease} AS l JOIN {message} AS m ON m.id = l.message_id
             WHERE l.message_id = ANY ($1::int8[]) AND l.worker = $2"
        )
    }

    /// $1 ids, $2 worker, $3 payloads. A new row, as kombu makes: it stands behind those that wait.
    fn requeue(self) -> String {
        let Tables { message, lease, .. } = self.tables;
        self.telling(&format!(
            "freed AS (
                 DELETE FROM {lease} AS l
                 USING unnest($1::int8[], $3::text[]) WITH ORDINALITY AS mark (id, payload, place)
                 WHERE l.message_id = mark.id AND l.worker = $2
                 RETURNING mark.id, mark.payload, mark.place
             ), removed AS (
                 DELETE FROM {message} AS m USING freed WHERE m.id = freed.id
                 RETURNING m.queue_id, freed.payload, freed.place
             ), put AS (
                 INSERT INTO {message} (id, visible, timestamp, payload, version, queue_id)
                 SELECT nextval('message_id_sequence'), true, NULL, payload, 1, queue_id
                 FROM (SELECT * FROM removed ORDER BY place) AS sorted
                 RETURNING queue_id
             )"
        ))
    }

    /// $1 ids, $2 worker, $3 payloads, NULL for those that stay as they are, $4 moments
    fn keep(self) -> String {
        let Tables {
            message,
            lease,
            delayed,
            ..
        } = self.tables;
        format!(
            "WITH freed AS (
                 DELETE FROM {lease} AS l
                 USING unnest($1::int8[], $3::text[], $4::int8[]) AS mark (id, payload, due)
                 WHERE l.message_id = mark.id AND l.worker = $2
                 RETURNING mark.id, mark.payload, mark.due
             ), kept AS (
                 UPDATE {message} AS m
                 SET {NEXT_VERSION}, payload = coalesce(freed.payload, m.payload)
                 FROM freed WHERE m.id = freed.id
                 RETURNING m.id, m.queue_id, freed.due
             )
             INSERT INTO {delayed} (message_id, queue_id, due)
             SELECT id, queue_id, greatest(due, {NOW} + {SOONEST}) FROM kept
             ON CONFLICT (message_id) DO UPDATE
             SET queue_id = excluded.queue_id, due = excluded.due"
        )
    }

    fn wait_for_first(self) -> String {
        format!("SELECT min(due) - {NOW} FROM {}", self.tables.delayed)
    }

    /// $1 by when messages are due, NULL for now, $2 limit. Answers with how many rows the delay
    /// store lost, and how many messages are seen now. A purge of kombu's deletes messages with what
    /// it does not see; whose id another has now, that one is let alone.
    fn come(self) -> String {
        let Tables {
            message,
            lease,
            delayed,
            ..
        } = self.tables;
        format!(
            "WITH due AS MATERIALIZED (
                 SELECT message_id FROM {delayed} WHERE due <= coalesce($1::int8, (SELECT {NOW}))
                 ORDER BY due LIMIT $2 FOR UPDATE SKIP LOCKED
             ), freed AS (
                 DELETE FROM {delayed} AS d USING due WHERE d.message_id = due.message_id
                 RETURNING d.message_id
             ), put AS (
                 UPDATE {message} AS m SET visible = true, timestamp = NULL, {NEXT_VERSION}
                 FROM freed WHERE m.id = freed.message_id AND NOT m.visible
                     AND NOT EXISTS (SELECT FROM {lease} AS l WHERE l.message_id = m.id)
                 RETURNING m.queue_id
             )
             SELECT (SELECT count(*) FROM freed), (SELECT count(*) FROM put),
                    (SELECT count(pg_notify('{}', queue_id::text))
                     FROM (SELECT DISTINCT queue_id FROM put) AS queues)",
            self.channel
        )
    }

    /// $1 worker. Signs with a gap between them, or from a clock that was set, begin anew.
    fn beat(self) -> String {
        format!(
            "INSERT INTO {} AS own (name, since, seen)
             VALUES ($1, clock_timestamp(), clock_timestamp())
             ON CONFLICT (name) DO UPDATE SET
                 since = CASE WHEN excluded.seen - own.seen BETWEEN interval '0' AND {gap}
                              THEN own.since ELSE excluded.seen END,
                 seen = excluded.seen",
            self.tables.worker,
            gap = interval(GAP.as_secs())
        )
    }

    /// $1 worker
    fn count(self) -> String {
        format!(
            "SELECT count(*) FROM {} WHERE worker = $1",
            self.tables.lease
        )
    }

    /// Those without a sign of life, while another gave its own all the time: a server that was
    /// out of reach, or a clock that was set, makes nobody dead. And those that hold messages and
    /// that nobody knows, since somebody has tidied the table of workers.
    fn dead(self) -> String {
        let Tables { lease, worker, .. } = self.tables;
        format!(
            "WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now)
             SELECT w.name FROM {worker} AS w, clock
             WHERE EXISTS (
                 SELECT FROM {worker} AS witness
                 WHERE witness.seen BETWEEN now - {gap} AND now + {gap}
                   AND witness.seen - CASE WHEN w.seen > now + {gap} THEN witness.since
                                           ELSE greatest(witness.since, w.seen) END >= {dead}
             )
             UNION
             SELECT l.worker FROM {lease} AS l
             WHERE NOT EXISTS (SELECT FROM {worker} AS w WHERE w.name = l.worker)",
            gap = interval(GAP.as_secs()),
            dead = interval(DEAD_AFTER.as_secs())
        )
    }

    /// $1 worker, $2 limit: what it holds, for the one who restores it
    fn lock(self) -> String {
        let Tables { message, lease, .. } = self.tables;
        format!(
            "SELECT l.message_id, m.payload
             FROM {lease} AS l LEFT JOIN {message} AS m ON m.id = l.message_id
             WHERE l.worker = $1 LIMIT $2 FOR UPDATE OF l SKIP LOCKED"
        )
    }

    /// $1 ids, $2 worker, $3 payloads, NULL for those that stay as they are
    fn restore(self) -> String {
        let Tables { message, lease, .. } = self.tables;
        self.telling(&format!(
            "freed AS (
                 DELETE FROM {lease} AS l USING unnest($1::int8[], $3::text[]) AS mark (id, payload)
                 WHERE l.message_id = mark.id AND l.worker = $2
                 RETURNING mark.id, mark.payload
             ), put AS (
                 UPDATE {message} AS m
                 SET visible = true, timestamp = NULL, {NEXT_VERSION},
                     payload = coalesce(freed.payload, m.payload)
                 FROM freed WHERE m.id = freed.id
                 RETURNING m.queue_id
             )"
        ))
    }

    /// $1 worker that holds nothing any more
    fn bury(self) -> String {
        let Tables { lease, worker, .. } = self.tables;
        format!(
            "DELETE FROM {worker} WHERE name = $1
             AND NOT EXISTS (SELECT FROM {lease} AS l WHERE l.worker = $1)"
        )
    }

    /// $1 worker
    fn leave(self) -> String {
        format!("DELETE FROM {} WHERE name = $1", self.tables.worker)
    }

    /// $1 worker
    fn held(self) -> String {
        format!(
            "SELECT message_id FROM {} WHERE worker = $1",
            self.tables.lease
        )
    }

    /// $1 queue's name
    fn purge(self) -> String {
        let Tables { queue, message, .. } = self.tables;
        format!(
            "DELETE FROM {message} AS m USING {queue} AS q
             WHERE q.name = $1 AND m.queue_id = q.id AND m.visible"
        )
    }

    /// $1 queue's name
    fn size(self) -> String {
        let Tables { queue, message, .. } = self.tables;
        format!(
            "SELECT count(*) FROM {message} AS m JOIN {queue} AS q ON q.id = m.queue_id
             WHERE q.name = $1 AND m.visible"
        )
    }

    fn telling(self, changes: &str) -> String {
        telling(changes, self.channel)
    }
}

/// `changes` in which `put` are the rows that wait now, and a notice of their queues. Answers with
/// how many there are.
pub(super) fn telling(changes: &str, channel: &str) -> String {
    format!(
        "WITH {changes}
         SELECT count, pg_notify('{channel}', queue_id::text)
         FROM (SELECT queue_id, count(*) AS count FROM put GROUP BY queue_id) AS queues"
    )
}

fn interval(seconds: u64) -> String {
    format!("interval '{seconds} s'")
}
