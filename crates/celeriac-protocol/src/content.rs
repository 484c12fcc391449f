//! Which serializers a worker will open: the setting `accept_content`.
//!
//! Celery's counterpart: `kombu.serialization.SerializerRegistry.loads`.

use std::collections::BTreeSet;

/// What kombu takes a message without a content type for.
const DEFAULT_CONTENT_TYPE: &str = "application/data";

/// Content types that kombu opens whatever `accept_content` says: they are never executed.
const TRUSTED: [&str; 2] = ["application/data", "application/text"];

/// The content types that may be opened, as full MIME types.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AcceptContent(BTreeSet<String>);

impl AcceptContent {
    /// Accepts the given MIME types, and the trusted ones.
    pub fn new(types: impl IntoIterator<Item = String>) -> Self {
        Self(types.into_iter().collect())
    }

    /// Whether a body of this type may be opened. `None` stands for a missing content type.
    pub fn allows(&self, content_type: Option<&str>) -> bool {
        let content_type = content_type
            .filter(|name| !name.is_empty())
            .unwrap_or(DEFAULT_CONTENT_TYPE);
        TRUSTED.contains(&content_type) || self.0.contains(content_type)
    }
}

/// The serializer's name as kombu's error shows it: `pickle (application/x-python-serialize)`.
pub fn display_name(content_type: &str) -> String {
    let name = match content_type {
        "application/json" => "json",
        "application/x-python-serialize" => "pickle",
        "application/x-yaml" => "yaml",
        "application/x-msgpack" => "msgpack",
        other => return other.to_owned(),
    };
    format!("{name} ({content_type})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_accepted_or_harmless_is_allowed() {
        let accept = AcceptContent::new(["application/json".to_owned()]);
        assert!(accept.allows(Some("application/json")));
        assert!(accept.allows(Some("application/data")));
        assert!(accept.allows(Some("")));
        assert!(accept.allows(None));
        assert!(!accept.allows(Some("application/x-python-serialize")));
        assert!(!accept.allows(Some("json")));
    }

    #[test]
    fn names_are_kombus() {
        assert_eq!(
            display_name("application/x-python-serialize"),
            "pickle (application/x-python-serialize)"
        );
        assert_eq!(display_name("text/odd"), "text/odd");
    }
}
