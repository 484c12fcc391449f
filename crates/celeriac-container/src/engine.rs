//! The engine, Docker's or Podman's, by the API that both serve on a unix socket. Thin: what is
//! decided is decided elsewhere.

use std::collections::HashMap;
use std::path::Path;

use bollard::errors::Error as Bollard;
use bollard::models::{
    ContainerCreateBody, ContainerSummaryStateEnum, CreateImageInfo, HostConfig, Mount, MountType,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, InspectContainerOptions,
    ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    StartContainerOptions, StopContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::Stream;

use crate::adoption::{self, Found, State};
use crate::call::Call;

pub use bollard::container::LogOutput;

/// Seconds until a request counts as unanswered. Stopping a container takes as long as it is given.
const TIMEOUT: u64 = 120;

/// What the engine would not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error(
        "there is no Docker or Podman: none of {0} is a socket; `host` of the task's options, \
         DOCKER_HOST or CONTAINER_HOST say where it is"
    )]
    NoSocket(String),
    /// It is somewhere where it is not looked for.
    #[error("the engine at {0} can't be used: only those on a unix socket (`unix:///…`) can")]
    NotLocal(String),
    /// What it answered.
    #[error("{}", words(.0))]
    Answer(#[from] Bollard),
    /// It could not pull an image.
    #[error("the image {0} can't be pulled: {1}")]
    Pull(String, String),
}

impl Error {
    /// The status of its answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Answer(Bollard::DockerResponseServerError { status_code, .. }) => {
                Some(*status_code)
            }
            _ => None,
        }
    }
}

/// The engine's own words, where it has said something.
fn words(error: &Bollard) -> String {
    match error {
        Bollard::DockerResponseServerError { message, .. } => message.clone(),
        other => format!("the engine: {other}"),
    }
}

/// A connection to the engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine(Docker);

/// How a container has ended, or that it has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It runs.
    Running,
    /// It has ended.
    Ended {
        /// With this code; above 128 by the signal whose number is 128 less.
        exit_code: i64,
        /// Whether it had too little memory.
        out_of_memory: bool,
    },
}

/// Where the engine is: what is configured, what variables say, or the first place that is there.
///
/// # Errors
/// When it is not on a unix socket, or nowhere.
pub fn socket(
    configured: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<String, Error> {
    let filled = |name| variable(name).filter(|value: &String| !value.is_empty());
    let said = configured
        .map(str::to_owned)
        .or_else(|| filled("DOCKER_HOST"))
        .or_else(|| filled("CONTAINER_HOST"));
    if let Some(said) = said {
        return match said.strip_prefix("unix://") {
            Some(path) => Ok(path.to_owned()),
            None if said.starts_with('/') => Ok(said),
            None => Err(Error::NotLocal(said)),
        };
    }
    let mut places = vec![
        "/run/docker.sock".to_owned(),
        "/var/run/docker.sock".to_owned(),
        "/run/podman/podman.sock".to_owned(),
    ];
    if let Some(folder) = filled("XDG_RUNTIME_DIR") {
        places.push(format!("{folder}/docker.sock"));
        places.push(format!("{folder}/podman/podman.sock"));
    }
    match places.iter().find(|place| Path::new(place).exists()) {
        Some(place) => Ok(place.clone()),
        None => Err(Error::NoSocket(places.join(", "))),
    }
}

impl Engine {
    /// Connects, and agrees with the engine on the version of the API.
    ///
    /// # Errors
    /// When it is not there or does not answer.
    pub async fn connect(configured: Option<&str>) -> Result<Self, Error> {
        let path = socket(configured, |name| std::env::var(name).ok())?;
        let engine = Docker::connect_with_unix(&path, TIMEOUT, API_DEFAULT_VERSION)?;
        Ok(Self(engine.negotiate_version().await?))
    }

    /// The container of a task, by its label.
    pub async fn find(&self, task_id: &str) -> Result<Option<Found>, Error> {
        let label = format!("{}={task_id}", adoption::TASK_ID);
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let found = self.0.list_containers(Some(options)).await?;
        Ok(found.into_iter().find_map(|container| {
            Some(Found {
                id: container.id?,
                labels: container.labels.unwrap_or_default(),
                state: match container.state {
                    Some(ContainerSummaryStateEnum::CREATED) => State::Created,
                    Some(ContainerSummaryStateEnum::REMOVING | ContainerSummaryStateEnum::DEAD) => {
                        State::Going
                    }
                    _ => State::Begun,
                },
            })
        }))
    }

    /// Which task a container is of: an empty name if it is of none, `None` if it is not there.
    pub async fn task_of(&self, name: &str) -> Result<Option<String>, Error> {
        let found = self
            .0
            .inspect_container(name, None::<InspectContainerOptions>)
            .await;
        match found.map_err(Error::from) {
            Ok(found) => {
                let labels = found
                    .config
                    .and_then(|config| config.labels)
                    .unwrap_or_default();
                Ok(Some(
                    labels.get(adoption::TASK_ID).cloned().unwrap_or_default(),
                ))
            }
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the engine has an image.
    pub async fn has_image(&self, image: &str) -> Result<bool, Error> {
        match self.0.inspect_image(image).await.map_err(Error::from) {
            Ok(_) => Ok(true),
            Err(error) if error.status() == Some(404) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Pulls an image; each item is a step.
    pub fn pull(&self, image: &str) -> impl Stream<Item = Result<CreateImageInfo, Bollard>> {
        let mut options = CreateImageOptionsBuilder::new().from_image(image);
        let name = image.rsplit('/').next().unwrap_or(image);
        if !name.contains([':', '@']) {
            // Without a tag all tags are pulled.
            options = options.tag("latest");
        }
        self.0.create_image(Some(options.build()), None, None)
    }

    /// Makes a container; answers with its id.
    pub async fn create(
        &self,
        name: &str,
        call: &Call,
        labels: HashMap<String, String>,
        new_privileges: bool,
    ) -> Result<String, Error> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let made = self
            .0
            .create_container(Some(options), body(call, labels, new_privileges))
            .await?;
        Ok(made.id)
    }

    /// Starts a container. One that runs is left alone.
    pub async fn start(&self, id: &str) -> Result<(), Error> {
        Ok(self
            .0
            .start_container(id, None::<StartContainerOptions>)
            .await?)
    }

    /// The output of a container from its beginning to its end.
    pub fn logs(&self, id: &str) -> impl Stream<Item = Result<LogOutput, Bollard>> {
        let options = LogsOptionsBuilder::new()
            .follow(true)
            .stdout(true)
            .stderr(true)
            .build();
        self.0.logs(id, Some(options))
    }

    /// Whether a container runs, and how it has ended.
    pub async fn status(&self, id: &str) -> Result<Status, Error> {
        let found = self
            .0
            .inspect_container(id, None::<InspectContainerOptions>)
            .await?;
        let state = found.state.unwrap_or_default();
        if state.running == Some(true) {
            return Ok(Status::Running);
        }
        Ok(Status::Ended {
            exit_code: state.exit_code.unwrap_or(-1),
            out_of_memory: state.oom_killed == Some(true),
        })
    }

    /// Sends SIGTERM, and SIGKILL after so many seconds. One that has ended is left alone.
    pub async fn stop(&self, id: &str, seconds: u64) -> Result<(), Error> {
        let options = StopContainerOptionsBuilder::new()
            .t(i32::try_from(seconds).unwrap_or(i32::MAX))
            .build();
        Ok(self.0.stop_container(id, Some(options)).await?)
    }

    /// Removes a container with what is in it, even if it runs. One that is gone already, or is
    /// being removed, is none to worry about.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        match self
            .0
            .remove_container(id, Some(options))
            .await
            .map_err(Error::from)
        {
            Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(()),
            other => other,
        }
    }
}

/// What the engine is told of a container.
fn body(call: &Call, labels: HashMap<String, String>, new_privileges: bool) -> ContainerCreateBody {
    let mount = |path: &Path, target: &str, read_only| Mount {
        typ: Some(MountType::BIND),
        source: Some(path.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Mount::default()
    };
    let mut mounts = Vec::new();
    if let Some(path) = &call.inputpath {
        mounts.push(mount(path, "/input", true));
    }
    if let Some(path) = &call.outputpath {
        mounts.push(mount(path, "/output", false));
    }
    let memory = call
        .memory
        .map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let env = call
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    ContainerCreateBody {
        image: Some(call.image.clone()),
        cmd: Some(call.command.clone()),
        user: call.user.clone(),
        env: Some(env.collect()),
        working_dir: call.workdir.clone(),
        labels: Some(labels),
        host_config: Some(HostConfig {
            mounts: Some(mounts),
            memory,
            // As much as without swap.
            memory_swap: memory,
            nano_cpus: call.cpus.map(|cpus| (cpus * 1e9) as i64),
            pids_limit: Some(i64::from(call.pids_limit)),
            network_mode: call.network.clone(),
            cap_drop: Some(call.cap_drop.clone()),
            security_opt: (!new_privileges).then(|| vec!["no-new-privileges".to_owned()]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_where_it_is_said_to_be() {
        let find = |configured: Option<&str>, variables: &[(&str, &str)]| {
            let variables: HashMap<_, _> = variables.iter().copied().collect();
            let variable = |name: &str| variables.get(name).map(|&value| value.to_owned());
            socket(configured, variable).map_err(|error| error.to_string())
        };
        let docker = [
            ("DOCKER_HOST", "unix:///d"),
            ("CONTAINER_HOST", "unix:///c"),
        ];
        assert_eq!(find(None, &docker).unwrap(), "/d");
        assert_eq!(find(Some("/x"), &docker).unwrap(), "/x");
        let podman = [("DOCKER_HOST", ""), ("CONTAINER_HOST", "unix:///c")];
        assert_eq!(find(None, &podman).unwrap(), "/c");
        let error = find(Some("tcp://host:2375"), &[]).unwrap_err();
        assert!(
            error.starts_with("the engine at tcp://host:2375 can't be used"),
            "{error}"
        );
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("podman");
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("podman.sock"), "").unwrap();
        let folder = folder.path().to_str().unwrap();
        let found = find(None, &[("XDG_RUNTIME_DIR", folder)]).unwrap();
        assert!(found.contains(".sock"), "{found}");
    }
}
