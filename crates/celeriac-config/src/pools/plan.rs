//! Which pool serves which queue.

use super::spec::PoolSpec;
use crate::layers::Problem;

/// The pools of a worker, before the app has told of its queues.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    pools: Vec<PoolSpec>,
}

/// What the app is told of queues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queues {
    /// The only ones to consume from; `None` for those that the app has.
    pub only: Option<Vec<String>>,
    /// More of them.
    pub also: Vec<String>,
}

impl Plan {
    /// The plan for pools that are declared. `given` are the queues of `--queues`, if there are any,
    /// and `excluded` those of `--exclude-queues`.
    ///
    /// # Errors
    /// When a queue would have no pool, or a pool no queue.
    pub fn new(
        pools: Vec<PoolSpec>,
        given: Option<&[String]>,
        excluded: &[String],
    ) -> Result<(Self, Queues), Problem> {
        let plan = Self { pools };
        if plan.pools.is_empty() {
            let only = given.map(<[String]>::to_vec);
            let also = Vec::new();
            return Ok((plan, Queues { only, also }));
        }
        let mut without = plan.pools.iter().filter(|pool| pool.queues.is_empty());
        let takes_rest = without.next();
        if let (Some(one), Some(other)) = (takes_rest, without.next()) {
            let message = format!("{} and {} have no queues", one.name, other.name);
            let hint = "one pool may take those that are left: name the queues of the others";
            return Err(Problem::new("pools", message).with_hint(Some(hint.to_owned())));
        }
        let mut named: Vec<String> = Vec::new();
        for pool in &plan.pools {
            for queue in &pool.queues {
                if excluded.contains(queue) {
                    let message = format!("its queue {queue} is excluded");
                    let hint = "take it from --exclude-queues, or from the pool".to_owned();
                    let place = format!("pool {}", pool.name);
                    return Err(Problem::new(place, message).with_hint(Some(hint)));
                }
                named.push(queue.clone());
            }
        }
        let rest = given.unwrap_or_default();
        let mut rest = rest.iter().filter(|queue| !named.contains(queue));
        if takes_rest.is_some() {
            let queues = match given {
                Some(_) => Queues {
                    only: Some(rest.cloned().chain(named.iter().cloned()).collect()),
                    also: Vec::new(),
                },
                None => Queues {
                    only: None,
                    also: named,
                },
            };
            return Ok((plan, queues));
        }
        match rest.next() {
            Some(queue) => {
                let message = "no pool has it".to_owned();
                let hint = "name it in a pool, or leave it out of --queues".to_owned();
                let place = format!("queue {queue}");
                Err(Problem::new(place, message).with_hint(Some(hint)))
            }
            None => {
                let only = Some(named);
                let also = Vec::new();
                Ok((plan, Queues { only, also }))
            }
        }
    }

    /// The pools that are declared.
    pub fn declared(&self) -> &[PoolSpec] {
        &self.pools
    }

    /// The pools with their queues. `consumed` are all that the app consumes from, `only` is the pool
    /// that there is where none is declared.
    ///
    /// # Errors
    /// When a pool has no queue, or one that the app does not consume from.
    pub fn assign(mut self, consumed: &[String], only: PoolSpec) -> Result<Vec<PoolSpec>, Problem> {
        if self.pools.is_empty() {
            self.pools.push(PoolSpec {
                queues: Vec::new(),
                ..only
            });
        }
        for pool in &self.pools {
            let mut queues = pool.queues.iter();
            if let Some(queue) = queues.find(|queue| !consumed.contains(queue)) {
                let message = format!("the app does not consume from its queue {queue}");
                let hint =
                    "look at what the app does with its queues when a worker starts".to_owned();
                let place = format!("pool {}", pool.name);
                return Err(Problem::new(place, message).with_hint(Some(hint)));
            }
        }
        let mut left: Vec<String> = consumed.to_vec();
        left.retain(|queue| !self.pools.iter().any(|pool| pool.queues.contains(queue)));
        let rest = self.pools.iter().position(|pool| pool.queues.is_empty());
        // What the app has added (`worker_direct`) has to be served by somebody.
        self.pools[rest.unwrap_or(0)].queues.extend(left);
        match self.pools.iter().find(|pool| pool.queues.is_empty()) {
            Some(pool) if self.pools.len() > 1 => {
                let message = "all queues have other pools".to_owned();
                let hint = "name queues for it, or leave it out".to_owned();
                let place = format!("pool {}", pool.name);
                Err(Problem::new(place, message).with_hint(Some(hint)))
            }
            _ => Ok(self.pools),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::{ONLY, PoolKind};

    fn pools(words: &[&str]) -> Vec<PoolSpec> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_app_is_told_of_the_queues_of_all_pools() {
        let io = "io=gevent@mail";
        for (words, given, only, also) in [
            (&[][..], None, None, &[][..]),
            (&[], Some(&["a"][..]), Some(&["a"][..]), &[]),
            (&[io], None, Some(&["mail"]), &[]),
            (&[io], Some(&["mail"]), Some(&["mail"]), &[]),
            (&[io, "cpu=prefork"], None, None, &["mail"]),
            (
                &[io, "cpu=prefork"],
                Some(&["a", "mail"]),
                Some(&["a", "mail"]),
                &[],
            ),
            (
                &[io, "cpu=prefork@a,b"],
                None,
                Some(&["mail", "a", "b"]),
                &[],
            ),
        ] {
            let given = given.map(names);
            let (_, queues) = Plan::new(pools(words), given.as_deref(), &[]).unwrap();
            let only = only.map(names);
            let also = names(also);
            assert_eq!(queues, Queues { only, also }, "{words:?} {given:?}");
        }
    }

    #[test]
    fn plans_that_leave_something_out_are_refused() {
        for (words, given, expected) in [
            (
                &["a=solo", "b=solo"][..],
                None,
                "pools: a and b have no queues",
            ),
            (
                &["a=solo@x"],
                Some(&["x", "y"][..]),
                "queue y: no pool has it",
            ),
            (&["a=solo@x,z"], None, "pool a: its queue z is excluded"),
        ] {
            let given = given.map(names);
            let refused = Plan::new(pools(words), given.as_deref(), &names(&["z"]));
            let told = refused.unwrap_err().to_string();
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn every_queue_has_a_pool() {
        let only = PoolSpec::new(ONLY, PoolKind::Prefork);
        for (words, consumed, expected) in [
            (
                &[][..],
                &["celery", "a"][..],
                &["default=prefork@celery,a"][..],
            ),
            (
                &["io=gevent@mail", "cpu=prefork"],
                &["celery", "mail"],
                &["io=gevent@mail", "cpu=prefork@celery"],
            ),
            (
                &["io=gevent@mail"],
                &["mail", "w@h.dq"],
                &["io=gevent@mail,w@h.dq"],
            ),
            (&["cpu=prefork"], &["celery"], &["cpu=prefork@celery"]),
        ] {
            let (plan, _) = Plan::new(pools(words), None, &[]).unwrap();
            let assigned = plan.assign(&names(consumed), only.clone()).unwrap();
            let assigned: Vec<_> = assigned.iter().map(ToString::to_string).collect();
            assert_eq!(assigned, expected);
        }
        for (words, consumed, expected) in [
            (
                &["io=gevent@mail", "cpu=prefork"][..],
                &["mail"][..],
                "pool cpu: all queues have other pools",
            ),
            (
                &["io=gevent@mail"],
                &["celery"],
                "pool io: the app does not consume from its queue mail",
            ),
        ] {
            let (plan, _) = Plan::new(pools(words), None, &[]).unwrap();
            let told = plan.assign(&names(consumed), only.clone()).unwrap_err();
            assert!(told.to_string().starts_with(expected), "{told}");
        }
    }
}
