//! The name that is meant by a wrong one.

/// How alike two names must be.
const LIKENESS: f64 = 0.88;

/// The one of `names` that is most like `meant`, if any is.
pub(crate) fn nearest<'n>(meant: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    nearest_of(meant, names, LIKENESS)
}

/// The same among names that are at least so much alike, from 0 to 1.
pub(crate) fn nearest_of<'n>(
    meant: &str,
    names: impl Iterator<Item = &'n str>,
    likeness: f64,
) -> Option<&'n str> {
    let meant = meant.to_lowercase().replace('-', "_");
    names
        .map(|name| (strsim::jaro_winkler(&meant, name), name))
        .filter(|(like, _)| *like >= likeness)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_mended_and_other_words_left() {
        let names = ["worker_concurrency", "worker_pool", "task_annotations"];
        for (meant, expected) in [
            ("worker_concurency", Some("worker_concurrency")),
            ("WORKER_CONCURRENCY", Some("worker_concurrency")),
            ("worker-pool", Some("worker_pool")),
            ("task_anotation", Some("task_annotations")),
            ("company_name", None),
        ] {
            assert_eq!(nearest(meant, names.into_iter()), expected, "{meant}");
        }
    }
}
