//! Results in files.

use std::sync::Arc;
use std::time::Duration;

use celeriac_core::Backend;
use celeriac_core::backend::{ErrorKind, Settings};
use celeriac_testing::conformance::backend::{self, Fixture, meta, stored};
use serde_json::json;
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn names(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.0.path()).unwrap();
        files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Fixture for Folder {
    fn open(&self) -> Arc<dyn Backend> {
        let url = format!("file://{}", self.0.path().display());
        celeriac_backend::open(&url, Settings::default()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_behaves_as_every_backend_does() {
    backend::run(&Folder(tempfile::tempdir().unwrap())).await;
}

#[tokio::test]
async fn nothing_but_documents_is_left() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let backend = folder.open();
    let result = [stored(&meta("a", "SUCCESS", json!(1)))];
    backend.store(&result).await.unwrap();
    backend.store(&result).await.unwrap();
    assert_eq!(folder.names(), ["celery-task-meta-a"]);
}

#[tokio::test]
async fn what_has_expired_is_deleted() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let url = format!("file://{}", folder.0.path().display());
    let settings = Settings {
        expires: Some(Duration::from_hours(1)),
        ..Settings::default()
    };
    let backend = celeriac_backend::open(&url, settings).unwrap();
    let results = ["old", "new"].map(|id| stored(&meta(id, "SUCCESS", json!(1))));
    backend.store(&results).await.unwrap();
    std::fs::write(folder.0.path().join("not-ours"), "x").unwrap();
    for name in ["celery-task-meta-old", "not-ours"] {
        let file = std::fs::File::options()
            .write(true)
            .open(folder.0.path().join(name));
        file.unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    backend.cleanup().await.unwrap();
    let mut left = folder.names();
    left.sort();
    assert_eq!(left, ["celery-task-meta-new", "not-ours"]);
}

#[tokio::test]
async fn a_folder_that_is_missing_is_told() {
    let backend = celeriac_backend::open("file:///no/such/folder", Settings::default()).unwrap();
    let result = [stored(&meta("a", "SUCCESS", json!(1)))];
    let error = backend.store(&result).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Configuration);
    assert!(error.message.contains("/no/such/folder"), "{error}");
    let outside = [stored(&meta("../a", "SUCCESS", json!(1)))];
    let folder = Folder(tempfile::tempdir().unwrap());
    let error = folder.open().store(&outside).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
}
