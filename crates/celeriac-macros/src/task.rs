//! `#[celeriac::task]`: a function becomes a type of its name, which is a task.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Error, Expr, GenericArgument, ItemFn, Lit, PathArguments, Result, ReturnType, Type, parse_quote,
};

use crate::attribute::Attribute;
use crate::parameter::{Default, Parameter, is_named, parameters};

pub(crate) fn expand(attribute: &Attribute, mut function: ItemFn) -> Result<TokenStream> {
    let signature = &function.sig;
    if !signature.generics.params.is_empty() {
        let text = "a task is called by name: it can't be generic";
        return Err(Error::new_spanned(&signature.generics, text));
    }
    let is_async = signature.asyncness.is_some();
    let task = signature.ident.clone();
    let visibility = std::mem::replace(&mut function.vis, parse_quote!(pub));
    let (has_context, arguments) = parameters(function.sig.inputs.iter_mut())?;
    let (documentation, attributes): (Vec<_>, Vec<_>) = std::mem::take(&mut function.attrs)
        .into_iter()
        .partition(|attribute| attribute.path().is_ident("doc"));
    let (output, is_fallible) = output(&function.sig.output);
    function.sig.ident = format_ident!("call");

    let name = attribute
        .name
        .clone()
        .unwrap_or_else(|| format!("@.{task}"));
    let shown = attribute.name.clone().unwrap_or_else(|| task.to_string());
    let statements = &attribute.statements;
    let described = arguments.iter().map(described);
    let reads = arguments.iter().map(|parameter| read(&shown, parameter));
    let names: Vec<_> = arguments.iter().map(|parameter| &parameter.name).collect();
    let types: Vec<_> = arguments.iter().map(|parameter| &parameter.of).collect();
    let context = has_context.then(|| quote! { context, });
    let awaits = is_async.then(|| quote! { .await });
    let end = if is_fallible {
        quote! { answer.map_err(::celeriac::Error::from)? }
    } else {
        quote! { answer }
    };
    let answer = quote! {
        let answer = #task::call(#context #(#names),*) #awaits;
        ::celeriac::private::to_value(&#end)
    };
    let run = if is_async {
        answer
    } else {
        // The context goes to the thread, used or not: while it is there, the place in the pool is
        // taken.
        quote! {
            ::celeriac::private::blocking(move || {
                #[allow(unused_variables)]
                let context = context;
                #answer
            })
            .await
        }
    };
    let given = quote! { #(#names: #types),* };

    Ok(quote! {
        #(#documentation)*
        #[allow(non_camel_case_types)]
        #[derive(::core::clone::Clone, ::core::marker::Copy, ::core::fmt::Debug)]
        #visibility struct #task;

        #[allow(dead_code, clippy::needless_pass_by_value, clippy::too_many_arguments,
            clippy::unused_async)]
        impl #task {
            /// The task's name; `@` stands for that of the app.
            pub const NAME: &'static str = #name;

            /// A call with these arguments, to be sent or combined with others.
            pub fn s(#given) -> ::celeriac::Call<#output> {
                let args = ::std::vec![#(::celeriac::private::argument(#names)),*];
                ::celeriac::Call::new(Self::NAME, args)
            }

            /// A call with these arguments, before which no results of other tasks are put.
            pub fn si(#given) -> ::celeriac::Call<#output> {
                Self::s(#(#names),*).immutable()
            }

            /// A call without arguments yet: results of other tasks go before those that are added.
            pub fn partial() -> ::celeriac::Call<#output> {
                ::celeriac::Call::new(Self::NAME, ::std::vec::Vec::new())
            }

            /// The function itself, which runs here and now.
            #(#attributes)*
            #function
        }

        const _: () = {
            const PARAMETERS: &[::celeriac::private::Parameter] = &[#(#described),*];

            impl ::celeriac::Definition for #task {
                fn name(&self) -> &'static str {
                    Self::NAME
                }

                fn options(&self) -> ::celeriac::Options {
                    #[allow(unused_mut)]
                    let mut options = <::celeriac::Options as ::core::default::Default>::default();
                    #(#statements)*
                    options
                }

                fn run(
                    &self,
                    context: ::celeriac::Context,
                    arguments: ::celeriac::Arguments,
                ) -> ::celeriac::private::Running {
                    ::std::boxed::Box::pin(async move {
                        #[allow(unused_mut, unused_variables)]
                        let mut bound = arguments
                            .bind(&context.request().task, PARAMETERS)?
                            .into_iter();
                        #(#reads)*
                        #run
                    })
                }
            }
        };
    })
}

fn described(parameter: &Parameter) -> TokenStream {
    let name = parameter.name.to_string();
    let has_default = parameter.default.is_some();
    quote! {
        ::celeriac::private::Parameter { name: #name, has_default: #has_default }
    }
}

fn read(task: &str, parameter: &Parameter) -> TokenStream {
    let Parameter { name, of, default } = parameter;
    let word = name.to_string();
    let missing = match default {
        Some(Default::OfType) => quote! { <#of as ::core::default::Default>::default() },
        // A text is a `&str`, and few parameters are.
        Some(Default::Value(value)) if is_text(value) => {
            quote! { <#of as ::core::convert::From<&str>>::from(#value) }
        }
        Some(Default::Value(value)) => quote! { #value },
        // It was bound: without a default it was given.
        None => {
            quote! { ::celeriac::private::read(#task, #word, ::celeriac::private::Value::Null)? }
        }
    };
    quote! {
        let #name: #of = match bound.next().flatten() {
            ::core::option::Option::Some(value) => ::celeriac::private::read(#task, #word, value)?,
            ::core::option::Option::None => #missing,
        };
    }
}

fn is_text(value: &Expr) -> bool {
    matches!(value, Expr::Lit(literal) if matches!(literal.lit, Lit::Str(_)))
}

/// The type of the value that a function gives, and whether it may give an error in its place.
fn output(output: &ReturnType) -> (TokenStream, bool) {
    let ReturnType::Type(_, of) = output else {
        return (quote! { () }, false);
    };
    if is_named(of, "Result")
        && let Type::Path(path) = &**of
        && let Some(last) = path.path.segments.last()
        && let PathArguments::AngleBracketed(arguments) = &last.arguments
        && let Some(GenericArgument::Type(value)) = arguments.args.first()
    {
        return (quote! { #value }, true);
    }
    (quote! { #of }, false)
}
