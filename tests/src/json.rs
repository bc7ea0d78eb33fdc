//! Nodes that announce themselves by HTTP and JSON, as the stock client of the family does: `start` until
//! it is heard, then heartbeats; after three of them without an OK it begins anew as another session.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::PATIENCE;

/// Posts a body as one request on a connection of its own; status and body of the answer.
///
/// # Errors
///
/// What the socket says.
pub fn post(to: SocketAddr, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "POST / HTTP/1.1\r\nHost: lb\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}

/// A node's heartbeats. Dropping it falls silent.
pub struct JsonBeats {
    shared: Arc<Shared>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    balancer: SocketAddr,
    words: Map<String, Value>,
    session: AtomicU64,
    /// Heartbeats that were answered OK.
    heard: AtomicUsize,
    /// Starts that were.
    starts: AtomicUsize,
}

impl JsonBeats {
    /// Begins to announce a node of these properties, in an order that the balancer cannot rely on.
    pub fn start(balancer: SocketAddr, words: &[(&str, &str)]) -> JsonBeats {
        static SESSIONS: AtomicU64 = AtomicU64::new(1_485_157_008_580);
        let words = words.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let session = AtomicU64::new(SESSIONS.fetch_add(1_000, Ordering::Relaxed));
        let shared = Arc::new(Shared {
            balancer,
            words,
            session,
            heard: AtomicUsize::new(0),
            starts: AtomicUsize::new(0),
        });
        let (stop, stopped) = channel();
        let node = Arc::clone(&shared);
        let thread = spawn(move || {
            let (mut is_started, mut missed) = (false, 0);
            loop {
                if !is_started {
                    is_started = node.tell("start");
                    missed = 0;
                } else if node.tell("heartbeat") {
                    missed = 0;
                } else {
                    missed += 1;
                    if missed == 3 {
                        is_started = false;
                        node.session.fetch_add(1, Ordering::Relaxed);
                    }
                }
                if stopped.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        JsonBeats { shared, stop: Some(stop), thread: Some(thread) }
    }

    /// `shutdown`: it wants no new work. Whether that was heard.
    pub fn leave(&self) -> bool {
        self.shared.tell("shutdown")
    }

    /// Falls silent and tells that it stops. Whether that was heard.
    pub fn stop(&mut self) -> bool {
        self.fall_silent();
        self.shared.tell("stop")
    }

    /// Sends no more heartbeats.
    pub fn fall_silent(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Starts and heartbeats that were answered OK.
    pub fn heard(&self) -> (usize, usize) {
        let count = |it: &AtomicUsize| it.load(Ordering::Relaxed);
        (count(&self.shared.starts), count(&self.shared.heard))
    }

    /// Its `sessionId` now.
    pub fn session(&self) -> u64 {
        self.shared.session.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// One command; whether it was answered OK. The session goes as text in `start` and as a number
    /// afterwards, as the stock client writes it.
    fn tell(&self, command: &str) -> bool {
        let session = self.session.load(Ordering::Relaxed);
        let packet = if command == "start" {
            let mut words = self.words.clone();
            words.insert("sessionId".to_owned(), json!(session.to_string()));
            Value::Object(words)
        } else {
            json!({ "sessionId": session })
        };
        let body = json!({ command: packet }).to_string();
        let is_heard = post(self.balancer, &body)
            .is_ok_and(|it| it == (200, format!("{{\"{command}\":\"OK\"}}")));
        match command {
            "start" => self.starts.fetch_add(usize::from(is_heard), Ordering::Relaxed),
            _ => self.heard.fetch_add(usize::from(is_heard), Ordering::Relaxed),
        };
        is_heard
    }
}

impl Drop for JsonBeats {
    fn drop(&mut self) {
        self.fall_silent();
    }
}

/// Ten in the node timeout that plays use.
const INTERVAL: Duration = Duration::from_millis(150);
