//! The parameters of a function that is a task.

use syn::{Error, Expr, FnArg, Ident, Pat, PatType, Result, Type};

/// One parameter that callers give.
pub(crate) struct Parameter {
    /// Its name.
    pub(crate) name: Ident,
    /// Its type.
    pub(crate) of: Type,
    /// What it is where it is left out; `None` where it must be given.
    pub(crate) default: Option<Default>,
}

/// What a parameter is that was left out.
pub(crate) enum Default {
    /// `#[default]`, or a parameter that is an `Option`: its type's own.
    OfType,
    /// `#[default = …]`.
    Value(Box<Expr>),
}

/// The parameters of a function, and whether the first of them is the task's context. `#[default]`
/// is taken out of the function.
pub(crate) fn parameters<'p>(
    inputs: impl Iterator<Item = &'p mut FnArg>,
) -> Result<(bool, Vec<Parameter>)> {
    let mut has_context = false;
    let mut parameters = Vec::new();
    for (at, input) in inputs.enumerate() {
        let typed = match input {
            FnArg::Typed(typed) => typed,
            FnArg::Receiver(receiver) => {
                let text = "a task is a function, not a method";
                return Err(Error::new_spanned(receiver, text));
            }
        };
        if at == 0 && is_named(&typed.ty, "Context") {
            has_context = true;
            continue;
        }
        parameters.push(parameter(typed)?);
    }
    Ok((has_context, parameters))
}

fn parameter(typed: &mut PatType) -> Result<Parameter> {
    let Pat::Ident(pattern) = &*typed.pat else {
        let text = "an argument of a task needs a name: callers may give it by name";
        return Err(Error::new_spanned(&typed.pat, text));
    };
    let name = pattern.ident.clone();
    if matches!(&*typed.ty, Type::Reference(_)) {
        let text = "an argument of a task is read from a message: take an owned type, such as \
                    String in place of &str";
        return Err(Error::new_spanned(&typed.ty, text));
    }
    let mut default = is_named(&typed.ty, "Option").then_some(Default::OfType);
    let (own, others): (Vec<_>, Vec<_>) = std::mem::take(&mut typed.attrs)
        .into_iter()
        .partition(|attribute| attribute.path().is_ident("default"));
    typed.attrs = others;
    for attribute in own {
        default = Some(match &attribute.meta {
            syn::Meta::Path(_) => Default::OfType,
            syn::Meta::NameValue(pair) => Default::Value(Box::new(pair.value.clone())),
            syn::Meta::List(list) => {
                return Err(Error::new_spanned(list, "write #[default = value]"));
            }
        });
    }
    let of = (*typed.ty).clone();
    Ok(Parameter { name, of, default })
}

/// Whether a type's path ends in this name.
pub(crate) fn is_named(of: &Type, name: &str) -> bool {
    let Type::Path(path) = of else {
        return false;
    };
    let last = path.path.segments.last();
    last.is_some_and(|segment| segment.ident == name)
}
