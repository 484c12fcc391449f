//! The keeper as a program of its own, for programs that can't be one themselves.

fn main() {
    celeriac_command::keeper::enter();
}
