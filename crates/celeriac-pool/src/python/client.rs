//! Celery's own program in the app's interpreter, with the host's modules beside it
//! (`celeriac.host.client`).

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Map, Value, json};

use super::shim;

/// What the interpreter is started with. The first word after it is the number of the descriptor
/// that [`sources`] made, the others are Celery's.
///
/// The working directory is off the path while Celery is imported: a `struct.py` of the app's would
/// be taken for Python's own.
pub const LOADER: &str = "\
import sys
sys.path[:] = [folder for folder in sys.path if folder]
import json
with open(int(sys.argv.pop(1)), 'rb') as file:
    sources = json.load(file)
bootstrap = {'__name__': 'celeriac.bootstrap'}
exec(sources['bootstrap'], bootstrap)
sys.meta_path.insert(0, bootstrap['Embedded'](sources['modules']))
from celeriac.host.client import main
main(sources['settings'])
";

/// The host's sources in a file of memory, which a program that takes this one's place inherits, and
/// settings that count over the app's own.
///
/// # Errors
/// When there is no memory for it, or no descriptor.
pub fn sources(settings: &Map<String, Value>) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("celeriac", MemfdFlags::empty())?);
    let sources = json!({
        "bootstrap": shim::BOOTSTRAP,
        "modules": shim::modules(),
        "settings": settings,
    });
    file.write_all(sources.to_string().as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::process::Command;

    use super::*;

    /// Celery need not be there: it is missed in the words of `celeriac.host.client`.
    #[test]
    fn an_interpreter_finds_the_sources() {
        let sources = sources(&Map::new()).unwrap();
        let output = Command::new("python3")
            .args(["-I", "-c", LOADER, &sources.as_raw_fd().to_string()])
            .arg("--version")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        let is_celerys = said.contains("Celery is not installed") || output.status.success();
        assert!(is_celerys, "{said}");
    }
}
