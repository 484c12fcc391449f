//! The attributes of `celeriac`, which re-exports and documents them.

mod attribute;
mod parameter;
mod span;
mod task;

use proc_macro::TokenStream;
use quote::quote;
use syn::{Error, ItemFn, parse_macro_input};

/// Makes a task of a function. See `celeriac::task`.
#[proc_macro_attribute]
pub fn task(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let attribute = parse_macro_input!(attribute as attribute::Attribute);
    let function = parse_macro_input!(item as ItemFn);
    task::expand(&attribute, function)
        .unwrap_or_else(Error::into_compile_error)
        .into()
}

/// Makes a program of a function that gives an app. See `celeriac::main`.
#[proc_macro_attribute]
pub fn main(attribute: TokenStream, item: TokenStream) -> TokenStream {
    if !attribute.is_empty() {
        let text = "#[celeriac::main] takes no arguments: the app has the settings";
        return Error::new(proc_macro2::Span::call_site(), text)
            .into_compile_error()
            .into();
    }
    let function = parse_macro_input!(item as ItemFn);
    let signature = &function.sig;
    if signature.asyncness.is_some() || !signature.inputs.is_empty() {
        let text = "#[celeriac::main] belongs on `fn app() -> celeriac::App`, without `async` and \
                    without parameters";
        return Error::new_spanned(signature, text)
            .into_compile_error()
            .into();
    }
    let name = &signature.ident;
    // A function of the name `main` would be the program already.
    let program = if name == "main" {
        let text = "give the function another name, such as `app`: #[celeriac::main] makes `main`";
        return Error::new_spanned(name, text).into_compile_error().into();
    } else {
        quote! {
            fn main() -> ::std::process::ExitCode {
                ::celeriac::run(#name())
            }
        }
    };
    quote! {
        #function
        #program
    }
    .into()
}
