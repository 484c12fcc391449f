//! The whole life of requests, with everything around the core made up.

mod anything;
mod life;
mod scene;
