//! A worker inside a program of one's own.
