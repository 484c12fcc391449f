//! The whole life of requests, with everything around the core made up.

mod adopt;
mod anything;
mod life;
mod remote;
mod scene;
mod successor;
