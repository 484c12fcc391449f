//! A RabbitMQ node of the test's own.
//!
//! A node takes seconds to start, so tests share one and each works in a vhost of its own. The
//! vhosts are made with the node: `rabbitmqctl` starts an Erlang machine for every call.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::{free_port, spawn_with};

/// How many vhosts are made with a node.
const VHOSTS: usize = 48;
/// Longer than a node needs to start on a machine that is busy.
const STARTED_WITHIN: Duration = Duration::from_mins(2);
/// Where Debian's package keeps the scripts that need not run as the user `rabbitmq`.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// A running node, with its port mapper.
pub struct RabbitMqServer {
    node: Child,
    port_mapper: Child,
    folder: TempDir,
    ports: Ports,
    vhosts: AtomicUsize,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    amqp: u16,
    distribution: u16,
    port_mapper: u16,
}

impl RabbitMqServer {
    /// The node that all tests of a process share, each in a vhost of its own.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<RabbitMqServer> = LazyLock::new(|| {
            let (send, receive) = std::sync::mpsc::channel();
            // The kernel ends the node with the thread that started it: this one stays.
            std::thread::spawn(move || {
                let mut server = RabbitMqServer::start();
                server.folder.disable_cleanup(true);
                let cleaner = remove_after_this_process(server.folder.path());
                send.send(server).unwrap();
                let _cleaner = cleaner;
                loop {
                    std::thread::park();
                }
            });
            receive.recv().unwrap()
        });
        &SHARED
    }

    /// Starts a node and waits until it answers.
    pub fn start() -> Self {
        Self::start_with("", "[].")
    }

    /// Starts a node with more lines for `rabbitmq.conf`, and with an `advanced.config`.
    pub fn start_with(configuration: &str, advanced: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        // Somebody else may take a port first: then others are tried.
        for _ in 0..10 {
            let ports = Ports {
                amqp: free_port(),
                distribution: free_port(),
                port_mapper: free_port(),
            };
            configure(path, ports, configuration, advanced);
            let mut port_mapper = spawn_with(
                Command::new("epmd").args(["-port", &ports.port_mapper.to_string()]),
                |command| command.env("ERL_EPMD_ADDRESS", "127.0.0.1"),
            );
            let mut node = start_node(path, ports);
            if wait_for_answer(ports.amqp, &mut node) {
                return Self {
                    node,
                    port_mapper,
                    folder,
                    ports,
                    vhosts: AtomicUsize::new(0),
                };
            }
            end(&mut node);
            end(&mut port_mapper);
        }
        panic!(
            "RabbitMQ did not start; its log:\n{}",
            logs(&path.join("log"))
        );
    }

    /// The port for AMQP.
    pub fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// The URL of a vhost, as the user `guest`.
    pub fn url(&self, vhost: &str) -> String {
        let port = self.ports.amqp;
        format!("amqp://guest:guest@127.0.0.1:{port}/{vhost}")
    }

    /// The name of an empty vhost that no other caller gets.
    pub fn vhost(&self) -> String {
        let number = self.vhosts.fetch_add(1, Ordering::Relaxed);
        assert!(
            number < VHOSTS,
            "more tests than vhosts: raise VHOSTS in server/rabbitmq.rs"
        );
        vhost_name(number)
    }

    /// Makes one more vhost, by any name, for the user `guest`.
    pub fn add_vhost(&self, name: &str) {
        self.control(&["add_vhost", name]);
        self.control(&["set_permissions", "-p", name, "guest", ".*", ".*", ".*"]);
    }

    /// Runs `rabbitmqctl` on this node, and returns what it says.
    pub fn control(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(script("rabbitmqctl"));
        environment(&mut command, self.folder.path(), self.ports);
        let output = command
            .args(["-q", "-n", &node_name(self.ports)])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?} failed: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        said
    }

    /// Ends the node at once, as a crash does.
    pub fn kill(&mut self) {
        end(&mut self.node);
    }

    /// Starts the node again after [`RabbitMqServer::kill`], on the same ports, with what it kept.
    pub fn restart(&mut self) {
        self.node = start_node(self.folder.path(), self.ports);
        assert!(
            wait_for_answer(self.ports.amqp, &mut self.node),
            "RabbitMQ did not start again; its log:\n{}",
            logs(&self.folder.path().join("log"))
        );
    }
}

impl Drop for RabbitMqServer {
    fn drop(&mut self) {
        end(&mut self.node);
        end(&mut self.port_mapper);
    }
}

fn end(process: &mut Child) {
    drop(process.kill());
    drop(process.wait());
}

/// Removes a folder when this process has ended, however it ends: what is static is never dropped.
fn remove_after_this_process(folder: &Path) -> Child {
    Command::new("sh")
        .args([
            "-c",
            "read -r _; until rm -rf -- \"$0\"; do sleep 0.1; done",
        ])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn vhost_name(number: usize) -> String {
    format!("test-{number}")
}

fn node_name(ports: Ports) -> String {
    format!("celeriac-{}@localhost", ports.amqp)
}

/// A script of RabbitMQ: where Debian keeps it, or in the path.
fn script(name: &str) -> String {
    let installed = Path::new(SCRIPTS).join(name);
    if installed.exists() {
        installed.to_string_lossy().into_owned()
    } else {
        name.to_owned()
    }
}

fn configure(folder: &Path, ports: Ports, configuration: &str, advanced: &str) {
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    std::fs::create_dir_all(folder.join("home")).unwrap();
    let mut vhosts = r#"{"name": "/"}"#.to_owned();
    let permission = |vhost: &str| {
        format!(
            r#"{{"user": "guest", "vhost": "{vhost}", "configure": ".*", "write": ".*", "read": ".*"}}"#
        )
    };
    let mut permissions = permission("/");
    for number in 0..VHOSTS {
        let name = vhost_name(number);
        write!(vhosts, r#", {{"name": "{name}"}}"#).unwrap();
        write!(permissions, ", {}", permission(&name)).unwrap();
    }
    write(
        "definitions.json",
        &format!(
            r#"{{"users": [{{"name": "guest", "password": "guest", "tags": ["administrator"]}}],
                "vhosts": [{vhosts}], "permissions": [{permissions}]}}"#
        ),
    );
    write(
        "rabbitmq.conf",
        &format!(
            "listeners.tcp.1 = 127.0.0.1:{}\nload_definitions = {}\ndisk_free_limit.absolute = 1MB\n\
             log.console = false\n{configuration}\n",
            ports.amqp,
            folder.join("definitions.json").display()
        ),
    );
    write("advanced.config", advanced);
    write("plugins", "[].");
}

fn environment(command: &mut Command, folder: &Path, ports: Ports) {
    let in_folder = |name: &str| folder.join(name);
    command
        .env("HOME", in_folder("home"))
        .env("ERL_CRASH_DUMP", in_folder("crash"))
        .env("ERL_EPMD_PORT", ports.port_mapper.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODENAME", node_name(ports))
        .env("RABBITMQ_DIST_PORT", ports.distribution.to_string())
        .env("RABBITMQ_MNESIA_BASE", in_folder("data"))
        .env("RABBITMQ_LOG_BASE", in_folder("log"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", in_folder("plugins"))
        .env("RABBITMQ_CONFIG_FILE", in_folder("rabbitmq.conf"))
        .env(
            "RABBITMQ_ADVANCED_CONFIG_FILE",
            in_folder("advanced.config"),
        )
        .env("RABBITMQ_FEATURE_FLAGS_FILE", in_folder("feature-flags"))
        .env("RABBITMQ_PID_FILE", in_folder("pid"))
        // The machine's own configuration is not ours.
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        // The script becomes the node itself, so that ending it ends the node.
        .env("RUNNING_UNDER_SYSTEMD", "1");
}

fn start_node(folder: &Path, ports: Ports) -> Child {
    spawn_with(&mut Command::new(script("rabbitmq-server")), |command| {
        environment(command, folder, ports);
        command
    })
}

/// Waits until the node answers; `false` when it ends instead.
#[expect(
    clippy::disallowed_methods,
    reason = "a deadline for a server that never answers"
)]
fn wait_for_answer(port: u16, node: &mut Child) -> bool {
    let deadline = std::time::Instant::now() + STARTED_WITHIN;
    while std::time::Instant::now() < deadline {
        if node.try_wait().unwrap().is_some() {
            return false;
        }
        // It listens only when all else is done; connection.start is its first word.
        let answered = TcpStream::connect(("127.0.0.1", port)).is_ok_and(|mut stream| {
            let mut answer = [0; 1];
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            stream.write_all(b"AMQP\x00\x00\x09\x01").is_ok()
                && stream.read_exact(&mut answer).is_ok()
        });
        if answered {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

fn logs(folder: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return "there is none".to_owned();
    };
    entries
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok())
        .collect()
}
