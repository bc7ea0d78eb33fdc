//! A naive packet sprayer (the forwarder of `sip.md` 6.0): UDP round robin between balancers. It changes
//! the destination and nothing in the message; the source becomes the sprayer.

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use tools::ports;

/// One virtual address in front of several balancers.
pub struct Sprayer {
    /// The virtual address.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    socket: UdpSocket,
    targets: Mutex<Vec<SocketAddr>>,
    seen: Mutex<HashSet<Vec<u8>>>,
    is_closed: AtomicBool,
}

impl Sprayer {
    /// Binds the virtual address; the balancers behind it are named later, since their configuration
    /// needs the address first.
    pub fn bind() -> Sprayer {
        let socket =
            crate::wait_for("a free port", || UdpSocket::bind(("127.0.0.1", ports::free())).ok());
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let address = socket.local_addr().unwrap();
        let shared = Arc::new(Shared {
            socket,
            targets: Mutex::default(),
            seen: Mutex::default(),
            is_closed: AtomicBool::new(false),
        });
        let worker = shared.clone();
        Sprayer { address, shared, thread: Some(spawn(move || worker.run())) }
    }

    /// Starts spraying to these balancers.
    pub fn spray(&self, targets: &[SocketAddr]) {
        *self.shared.targets.lock().unwrap() = targets.to_vec();
    }

    /// How many different payloads passed.
    pub fn distinct(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }
}

impl Shared {
    fn run(&self) {
        let (mut buffer, mut turn) = (vec![0; 65_536], 0usize);
        while !self.is_closed.load(Ordering::Relaxed) {
            let Ok((length, _)) = self.socket.recv_from(&mut buffer) else { continue };
            let targets = self.targets.lock().unwrap();
            if targets.is_empty() {
                continue;
            }
            self.seen.lock().unwrap().insert(buffer[..length].to_vec());
            let _ = self.socket.send_to(&buffer[..length], targets[turn % targets.len()]);
            turn += 1;
        }
    }
}

impl Drop for Sprayer {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
