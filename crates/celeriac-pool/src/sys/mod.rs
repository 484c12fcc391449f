//! System calls: sockets that keep messages whole, files in memory, signals and process ids.
//! The only unsafe code of celeriac is here, two lines of it.

pub mod memory_file;
pub mod process;
pub mod seqpacket;
