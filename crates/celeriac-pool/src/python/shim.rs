//! The Python sources of the host: part of the binary, so that they always match it.

use serde_json::json;

/// What the interpreter is started with: it reads the bootstrap from the control channel. It is
/// short because `ps` shows it.
pub(super) const LOADER: &str = "import os, sys; \
     exec(b''.join(iter(lambda: os.read(int(sys.argv[1]), 1), b'\\0')))";

/// What it reads first, up to a NUL: this reads the modules below and begins.
pub(super) const BOOTSTRAP: &str = include_str!("../../../../python/celeriac/host/bootstrap.py");

macro_rules! modules {
    ($($name:literal: $path:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../python/celeriac/", $path)))),*]
    };
}

/// Names and sources. A name that ends with a dot is a package.
const MODULES: &[(&str, &str)] = modules! {
    "celeriac.": "__init__.py",
    "celeriac.exceptions": "exceptions.py",
    "celeriac.host.": "host/__init__.py",
    "celeriac.host.application": "host/application.py",
    "celeriac.host.body": "host/body.py",
    "celeriac.host.child": "host/child.py",
    "celeriac.host.client": "host/client.py",
    "celeriac.host.clients": "host/clients.py",
    "celeriac.host.configuration": "host/configuration.py",
    "celeriac.host.consumer": "host/consumer.py",
    "celeriac.host.control": "host/control.py",
    "celeriac.host.description": "host/description.py",
    "celeriac.host.errands": "host/errands.py",
    "celeriac.host.errors": "host/errors.py",
    "celeriac.host.event_loop": "host/event_loop.py",
    "celeriac.host.gossip": "host/gossip.py",
    "celeriac.host.greenlets": "host/greenlets.py",
    "celeriac.host.interrupted": "host/interrupted.py",
    "celeriac.host.jobs": "host/jobs.py",
    "celeriac.host.last_words": "host/last_words.py",
    "celeriac.host.local": "host/local.py",
    "celeriac.host.logs": "host/logs.py",
    "celeriac.host.main": "host/main.py",
    "celeriac.host.options": "host/options.py",
    "celeriac.host.plain": "host/plain.py",
    "celeriac.host.pools": "host/pools.py",
    "celeriac.host.processes": "host/processes.py",
    "celeriac.host.queues": "host/queues.py",
    "celeriac.host.remote": "host/remote.py",
    "celeriac.host.report": "host/report.py",
    "celeriac.host.requests": "host/requests.py",
    "celeriac.host.results": "host/results.py",
    "celeriac.host.revocations": "host/revocations.py",
    "celeriac.host.revokes": "host/revokes.py",
    "celeriac.host.start": "host/start.py",
    "celeriac.host.steps": "host/steps.py",
    "celeriac.host.threads": "host/threads.py",
    "celeriac.host.urls": "host/urls.py",
    "celeriac.host.warmth": "host/warmth.py",
    "celeriac.host.wire": "host/wire.py",
    "celeriac.host.worker": "host/worker.py",
    "celeriac.host.zygote": "host/zygote.py",
};

/// The modules as the bootstrap reads them.
pub(super) fn modules() -> serde_json::Value {
    MODULES
        .iter()
        .map(|(name, source)| json!([name, source]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module that is forgotten here would be missing at the worst moment.
    #[test]
    fn every_module_of_the_host_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../python/celeriac/host");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some(module) = name.strip_suffix(".py") else {
                continue;
            };
            let expected = match module {
                "bootstrap" => continue,
                "__init__" => "celeriac.host.".to_owned(),
                module => format!("celeriac.host.{module}"),
            };
            assert!(
                MODULES.iter().any(|(name, _)| *name == expected),
                "{expected} is missing"
            );
        }
    }
}
