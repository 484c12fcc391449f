//! The interpreter that a command is for.

use std::path::{Path, PathBuf};

use celeriac_pool::python::interpreter::find;

use crate::failure::Failure;

/// Finds it; `named` is what `--python` or `CELERIAC_PYTHON` says.
pub(crate) fn interpreter(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let found = find(named, |name| std::env::var_os(name))?;
    // Who runs it may be in another folder by then.
    std::path::absolute(&found)
        .map_err(|error| Failure::new(format!("{} can't be found: {error}", found.display())))
}
