//! System calls: sockets that keep messages whole, files in memory, signals and process ids.

pub mod memory_file;
pub mod process;
pub mod seqpacket;
