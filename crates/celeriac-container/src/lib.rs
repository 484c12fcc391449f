//! Tasks that run a container with Docker or Podman, by the API that both serve on a unix socket:
//! what ome's `celery-docker` does by `tasks.run_docker`. See `docs/containers.md`.

pub mod adoption;
pub mod call;
pub mod engine;
pub mod log;
pub mod options;
pub mod task;
pub mod words;

pub use options::ContainerOptions;
pub use task::run_docker;
