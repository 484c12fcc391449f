//! The whole life of requests, with everything around the core made up.

mod adopt;
mod anything;
mod lanes;
mod leases;
mod life;
mod limits;
mod memory;
mod remote;
mod scene;
mod stop;
mod store;
mod successor;
mod wakes;
