//! Who of the other workers is dead, judged by what this session has seen of them.

use std::collections::HashMap;

use tokio::time::Instant;

use super::DEAD_AFTER;

/// The last sign of life of each worker, and since when this session knows it.
///
/// A worker is dead when its sign stays the same for [`DEAD_AFTER`] before this session's eyes. How
/// old the sign is by the server's clock tells nothing: after the server was away, all are old.
#[derive(Debug, Default)]
pub(super) struct Watch(HashMap<String, (String, Instant)>);

impl Watch {
    /// Takes notice of the present signs of life, and names the dead.
    pub(super) fn dead(&mut self, signs: Vec<(String, String)>, now: Instant) -> Vec<String> {
        let mut before = std::mem::take(&mut self.0);
        for (worker, sign) in signs {
            let since = match before.remove(&worker) {
                Some((same, since)) if same == sign => since,
                _ => now,
            };
            self.0.insert(worker, (sign, since));
        }
        let dead = self
            .0
            .iter()
            .filter(|(_, (_, since))| *since + DEAD_AFTER <= now);
        dead.map(|(worker, _)| worker.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_a_silence_that_was_witnessed_is_a_death() {
        let mut watch = Watch::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let signs = |live: &str| {
            let sign = |name: &str, score: &str| (name.to_owned(), score.to_owned());
            vec![sign("silent", "5"), sign("alive", live)]
        };
        let none: [&str; 0] = [];
        assert_eq!(
            watch.dead(signs("5"), at(0)),
            none,
            "both may have been cut off"
        );
        assert_eq!(watch.dead(signs("100"), at(9)), none);
        assert_eq!(watch.dead(signs("101"), at(10)), ["silent"]);
        assert_eq!(watch.dead(signs("102"), at(20)), ["silent"]);
        assert_eq!(watch.dead(Vec::new(), at(21)), none);
        assert_eq!(watch.dead(signs("101"), at(40)), none, "it is seen anew");
    }
}
