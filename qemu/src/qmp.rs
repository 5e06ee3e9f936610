//! A client of QEMU's machine protocol, as far as hot-plugging needs it. Every wait is bounded.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::failure::{Context, Failure};

/// A connection in command mode.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    line: Vec<u8>,
    events: Vec<Value>,
}

/// How long one command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

impl Qmp {
    /// Connects and negotiates; all of it within `patience`.
    pub fn connect(socket: &Path, patience: Duration) -> Result<Self, Failure> {
        let deadline = Instant::now() + patience;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => {
                    return Err(Failure::run(format!("{}: {error}", socket.display())));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let reader = BufReader::new(stream.try_clone().context("QMP")?);
        let mut qmp = Self {
            reader,
            writer: stream,
            line: Vec::new(),
            events: Vec::new(),
        };
        let greeting = qmp.receive(deadline)?;
        if greeting.get("QMP").is_none() {
            return Err(Failure::run(format!(
                "{} does not speak QMP",
                socket.display()
            )));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Failure> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.writer, "{request}").context(format!("QMP {command}"))?;
        let deadline = Instant::now() + COMMAND_LIMIT;
        loop {
            let mut reply = self.receive(deadline)?;
            if reply.get("event").is_some() {
                self.events.push(reply);
            } else if let Some(error) = reply.get("error") {
                let why = error["desc"]
                    .as_str()
                    .unwrap_or("no reason given")
                    .to_string();
                return Err(Failure::run(format!("QEMU refuses {command}: {why}")));
            } else if let Some(result) = reply.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    /// Runs a command of the human monitor and gives what it prints.
    pub fn monitor(&mut self, command: &str) -> Result<String, Failure> {
        let result = self.execute("human-monitor-command", json!({ "command-line": command }))?;
        Ok(result.as_str().unwrap_or_default().trim().to_string())
    }

    /// Waits for an event that `matches`; false when it has not come within `patience`.
    pub fn await_event(
        &mut self,
        patience: Duration,
        matches: impl Fn(&str, &Value) -> bool,
    ) -> Result<bool, Failure> {
        let is = |event: &Value| matches(event["event"].as_str().unwrap_or(""), &event["data"]);
        let deadline = Instant::now() + patience;
        if let Some(known) = self.events.iter().position(is) {
            self.events.remove(known);
            return Ok(true);
        }
        loop {
            match self.receive_until(deadline)? {
                None => return Ok(false),
                Some(message) if message.get("event").is_some() && is(&message) => return Ok(true),
                Some(_) => {}
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Value, Failure> {
        self.receive_until(deadline)?
            .ok_or_else(|| Failure::run("QEMU does not answer on its QMP socket"))
    }

    /// The next message, or nothing at the deadline. Half a line is kept for the next call.
    fn receive_until(&mut self, deadline: Instant) -> Result<Option<Value>, Failure> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.writer.set_read_timeout(Some(left)).context("QMP")?;
            match self.reader.read_until(b'\n', &mut self.line) {
                Ok(_) if self.line.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.line);
                    return serde_json::from_slice(&line).map(Some).context("QMP");
                }
                Ok(_) => return Err(Failure::run("QEMU has closed its QMP socket")),
                Err(error) => match error.kind() {
                    std::io::ErrorKind::WouldBlock
                    | std::io::ErrorKind::TimedOut
                    | std::io::ErrorKind::Interrupted => {}
                    _ => return Err(Failure::run(format!("QMP: {error}"))),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::thread::JoinHandle;

    /// A QEMU that answers each line it gets with the next of `replies`.
    fn fake(name: &str, replies: &'static [&'static str]) -> (PathBuf, JoinHandle<Vec<String>>) {
        let path = std::env::temp_dir().join(format!("longshore-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut got = Vec::new();
            for (n, reply) in replies.iter().enumerate() {
                if n > 0 {
                    match lines.next() {
                        Some(Ok(line)) => got.push(line),
                        _ => break,
                    }
                }
                stream.write_all(reply.as_bytes()).unwrap();
            }
            got
        });
        (path, server)
    }

    const GREETING: &str = "{\"QMP\": {}}\r\n";

    #[test]
    fn commands_results_errors_and_events() {
        let (path, server) = fake(
            "qmp-all",
            &[
                GREETING,
                "{\"return\": {}}\r\n",
                "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"ioat0\"}}\r\n{\"return\": 7}\r\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}}\r\n",
            ],
        );
        let mut qmp = Qmp::connect(&path, Duration::from_secs(5)).unwrap();
        assert_eq!(qmp.execute("query-x", json!({"a": 1})).unwrap(), json!(7));
        let error = qmp.execute("query-y", json!({})).unwrap_err();
        assert_eq!(error.message, "QEMU refuses query-y: no such thing");
        let deleted =
            |name: &str, data: &Value| name == "DEVICE_DELETED" && data["device"] == "ioat0";
        assert!(qmp.await_event(Duration::from_secs(1), deleted).unwrap());
        assert!(qmp.execute("query-z", json!({})).is_err());
        let got = server.join().unwrap();
        assert!(got[1].contains("query-x") && got[1].contains("\"a\":1"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn silence_is_bounded() {
        let path = std::env::temp_dir().join(format!("longshore-qmp-mute-{}", std::process::id()));
        let _listener = UnixListener::bind(&path).unwrap();
        let start = Instant::now();
        let error = Qmp::connect(&path, Duration::from_millis(100))
            .err()
            .unwrap();
        assert!(error.message.contains("does not answer"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5));
        std::fs::remove_file(&path).unwrap();
        assert!(Qmp::connect(&path, Duration::from_millis(50)).is_err());
    }
}
