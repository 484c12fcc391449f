//! What stands in `#[celeriac::task(…)]`.

use proc_macro2::TokenStream;
use quote::{ToTokens as _, quote};
use syn::parse::{Parse, ParseStream};
use syn::{Error, Expr, ExprLit, Ident, Lit, Result, Token};

use crate::span;

/// All that is known, for whoever mistypes one.
const KNOWN: [&str; 21] = [
    "name",
    "queue",
    "priority",
    "max_retries",
    "retry",
    "default_retry_delay",
    "retry_backoff",
    "retry_backoff_max",
    "retry_jitter",
    "time_limit",
    "soft_time_limit",
    "rate_limit",
    "acks_late",
    "acks_on_failure",
    "acks_on_timeout",
    "reject_on_worker_lost",
    "ignore_result",
    "store_errors_even_if_ignored",
    "track_started",
    "send_events",
    "cancel_grace",
];

/// The options of a task, as statements that set them.
#[derive(Default)]
pub(crate) struct Attribute {
    /// The name that was given.
    pub(crate) name: Option<String>,
    /// Statements that change `options`.
    pub(crate) statements: Vec<TokenStream>,
}

impl Parse for Attribute {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut attribute = Self::default();
        let mut seen: Vec<Ident> = Vec::new();
        while !input.is_empty() {
            let name: Ident = input.parse()?;
            if seen.contains(&name) {
                return Err(Error::new_spanned(&name, format!("{name} is given twice")));
            }
            let value = if input.peek(Token![=]) {
                input.parse::<Token![=]>()?;
                Some(input.parse::<Expr>()?)
            } else {
                None
            };
            attribute.set(&name, value.as_ref())?;
            seen.push(name);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(attribute)
    }
}

impl Attribute {
    fn set(&mut self, name: &Ident, value: Option<&Expr>) -> Result<()> {
        let word = name.to_string();
        let statement = match &*word {
            "name" => {
                self.name = Some(text(name, value)?);
                return Ok(());
            }
            "queue" => {
                let queue = text(name, value)?;
                quote! { options.queue = ::core::option::Option::Some(#queue.to_owned()); }
            }
            "priority" => {
                let priority = number::<u8>(name, value)?;
                if priority > 9 {
                    return Err(Error::new_spanned(value, "priorities go from 0 to 9"));
                }
                quote! { options.priority = ::core::option::Option::Some(#priority); }
            }
            "max_retries" => match value {
                Some(Expr::Path(path)) if path.path.is_ident("None") => quote! {
                    options.retry.max_retries = ::core::option::Option::None;
                },
                _ => {
                    let most = number::<u32>(name, value)?;
                    quote! { options.retry.max_retries = ::core::option::Option::Some(#most); }
                }
            },
            "retry" => {
                let is_on = flag(name, value)?;
                quote! { options.retry.on_error = #is_on; }
            }
            "default_retry_delay" => {
                let delay = duration(name, value)?;
                quote! { options.retry.delay = #delay; }
            }
            "retry_backoff" => {
                let first = match value {
                    None => quote! { ::core::time::Duration::from_secs(1) },
                    Some(_) => duration(name, value)?,
                };
                quote! {
                    options.retry.backoff = ::core::option::Option::Some(#first);
                    options.retry.on_error = true;
                }
            }
            "retry_backoff_max" => {
                let most = duration(name, value)?;
                quote! { options.retry.max = #most; }
            }
            "retry_jitter" => {
                let is_on = flag(name, value)?;
                quote! { options.retry.jitter = #is_on; }
            }
            "time_limit" | "soft_time_limit" => {
                let seconds = span::seconds(literal(name, value)?)?;
                quote! {
                    options.celery.#name = ::celeriac::private::seconds(#seconds);
                }
            }
            "rate_limit" => {
                let rate = text(name, value)?;
                check_rate(&rate).map_err(|reason| Error::new_spanned(value, reason))?;
                quote! { options.celery.rate_limit = ::core::option::Option::Some(#rate.to_owned()); }
            }
            "acks_late"
            | "acks_on_failure"
            | "acks_on_timeout"
            | "reject_on_worker_lost"
            | "ignore_result"
            | "store_errors_even_if_ignored"
            | "send_events" => {
                let is_on = flag(name, value)?;
                quote! { options.celery.#name = #is_on; }
            }
            "track_started" => {
                let is_on = flag(name, value)?;
                quote! { options.track_started = ::core::option::Option::Some(#is_on); }
            }
            "cancel_grace" => {
                let grace = duration(name, value)?;
                quote! { options.cancel_grace = #grace; }
            }
            _ => {
                let known = KNOWN.join(", ");
                let text = format!("there is no option {word}; there are: {known}");
                return Err(Error::new_spanned(name, text));
            }
        };
        self.statements.push(statement);
        Ok(())
    }
}

fn literal<'v>(name: &Ident, value: Option<&'v Expr>) -> Result<&'v Lit> {
    match value {
        Some(Expr::Lit(ExprLit { lit, .. })) => Ok(lit),
        Some(other) => Err(Error::new_spanned(other, format!("{name} takes a literal"))),
        None => Err(Error::new_spanned(
            name,
            format!("{name} wants a value: {name} = …"),
        )),
    }
}

fn text(name: &Ident, value: Option<&Expr>) -> Result<String> {
    match literal(name, value)? {
        Lit::Str(text) if !text.value().is_empty() => Ok(text.value()),
        other => Err(Error::new_spanned(
            other,
            format!("{name} takes a text: {name} = \"…\""),
        )),
    }
}

fn number<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &Ident,
    value: Option<&Expr>,
) -> Result<T> {
    match literal(name, value)? {
        Lit::Int(number) => number.base10_parse(),
        other => Err(Error::new_spanned(
            other,
            format!("{name} takes a whole number"),
        )),
    }
}

/// `acks_late`, or `acks_late = false`.
fn flag(name: &Ident, value: Option<&Expr>) -> Result<bool> {
    if value.is_none() {
        return Ok(true);
    }
    match literal(name, value)? {
        Lit::Bool(is_on) => Ok(is_on.value),
        other => Err(Error::new_spanned(
            other,
            format!("{name} takes true or false"),
        )),
    }
}

fn duration(name: &Ident, value: Option<&Expr>) -> Result<TokenStream> {
    let seconds = span::seconds(literal(name, value)?)?;
    Ok(quote! { ::core::time::Duration::from_secs_f64(#seconds) }.into_token_stream())
}

/// Celery's notation, as `celeriac_protocol::RateLimit` reads it: here it is an error at build time.
fn check_rate(rate: &str) -> std::result::Result<(), String> {
    let (count, unit) = rate.split_once('/').unwrap_or((rate, "s"));
    let is_number = count.trim().parse::<f64>().is_ok_and(|count| count >= 0.0);
    if is_number && ["s", "m", "h"].contains(&unit.trim()) {
        Ok(())
    } else {
        Err("write a number and a unit, such as \"10/s\", \"100/m\" or \"5/h\"".to_owned())
    }
}
