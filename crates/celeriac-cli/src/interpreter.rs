//! The interpreter that a command is for.

use std::path::{Path, PathBuf};

use celeriac_pool::python::interpreter::find;

use crate::failure::Failure;

/// Finds it; `named` is what `--python` or `CELERIAC_PYTHON` says.
pub(crate) fn interpreter(named: Option<&Path>) -> Result<PathBuf, Failure> {
    Ok(find(named, |name| std::env::var_os(name))?)
}
