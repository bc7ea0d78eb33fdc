//! An SMSC that answers by itself, in a thread of its own.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use tools::ports;

use super::{BIND_RECEIVER, BIND_TRANSCEIVER, BIND_TRANSMITTER, OK, Pdu, UNBIND};
use crate::channel::{Came, Channel};
use crate::{Transport, wait_for};

/// A server of the balancer's. Dropping it closes everything.
pub struct Smsc {
    /// Where it listens.
    pub address: SocketAddr,
    transport: Transport,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What is done with a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reply {
    /// Status 0, with the body that the original's test server has.
    Ok,
    /// This status, and no body.
    Status(u32),
    /// Status 0 and this body.
    Body(Vec<u8>),
    /// Exactly these PDUs.
    Exactly(Vec<Pdu>),
    /// Silence.
    Nothing,
}

/// A PDU that came in.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Number of the connection, from 0.
    pub connection: usize,
    /// What came.
    pub pdu: Pdu,
}

/// Decides about requests. Sees everything that is no response.
type Rule = Box<dyn FnMut(usize, &Pdu) -> Reply + Send>;

struct Shared {
    state: Mutex<State>,
    is_stopping: AtomicBool,
}

struct State {
    rule: Rule,
    seen: Vec<Seen>,
    /// By number of the connection.
    connections: Vec<Connected>,
    outgoing: Vec<(usize, Vec<u8>)>,
    is_reading: bool,
}

struct Connected {
    /// `None` once it is closed.
    socket: Option<TcpStream>,
    peer: SocketAddr,
    is_open: bool,
    is_bound: bool,
    is_hung_up: bool,
}

impl Smsc {
    /// Starts one that accepts everything.
    pub fn start() -> Smsc {
        Smsc::over(Transport::Tcp)
    }

    /// Starts one inside TLS.
    pub fn start_tls() -> Smsc {
        Smsc::over(Transport::Tls)
    }

    /// So many of them.
    pub fn several<const COUNT: usize>() -> [Smsc; COUNT] {
        [(); COUNT].map(|()| Smsc::start())
    }

    fn over(transport: Transport) -> Smsc {
        let state = State {
            rule: Box::new(|_, _| Reply::Ok),
            seen: Vec::new(),
            connections: Vec::new(),
            outgoing: Vec::new(),
            is_reading: true,
        };
        let shared = Shared { state: Mutex::new(state), is_stopping: AtomicBool::new(false) };
        // A port that nobody else gets while it is stopped.
        let address = SocketAddr::from(([127, 0, 0, 1], ports::free()));
        let mut it = Smsc { address, transport, shared: Arc::new(shared), thread: None };
        it.restart();
        it
    }

    /// Listens again after [`Smsc::stop`], on the same port.
    pub fn restart(&mut self) {
        let listener = wait_for("the SMSC's port", || TcpListener::bind(self.address).ok());
        listener.set_nonblocking(true).unwrap();
        self.shared.is_stopping.store(false, Ordering::Relaxed);
        let (shared, transport) = (self.shared.clone(), self.transport);
        self.thread = Some(std::thread::spawn(move || serve(&shared, &listener, transport)));
    }

    /// Closes the port and all connections, without a word.
    pub fn stop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Decides about requests from now on. `rule` gets the number of the connection and the request.
    pub fn replies(&self, rule: impl FnMut(usize, &Pdu) -> Reply + Send + 'static) {
        self.state().rule = Box::new(rule);
    }

    /// Has all requests of a kind answered in a way, others with success.
    pub fn answers(&self, command: u32, reply: Reply) {
        self.replies(move |_, it| if it.command == command { reply.clone() } else { Reply::Ok });
    }

    /// Reads on, or does not.
    pub fn reads(&self, is_reading: bool) {
        self.state().is_reading = is_reading;
    }

    /// Sends on a connection.
    pub fn send(&self, connection: usize, pdu: &Pdu) {
        self.send_bytes(connection, &pdu.to_bytes());
    }

    /// Sends any bytes on a connection.
    pub fn send_bytes(&self, connection: usize, bytes: &[u8]) {
        self.state().outgoing.push((connection, bytes.to_vec()));
    }

    /// The socket of a connection: for plays that send more than is taken.
    pub fn socket(&self, connection: usize) -> TcpStream {
        let state = self.state();
        state.connections[connection].socket.as_ref().unwrap().try_clone().unwrap()
    }

    /// Closes one connection.
    pub fn hang_up(&self, connection: usize) {
        self.state().connections[connection].is_hung_up = true;
    }

    /// Everything that came.
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// How many PDUs of a kind came.
    pub fn count(&self, command: u32) -> usize {
        self.state().seen.iter().filter(|it| it.pdu.command == command).count()
    }

    /// How many binds came, of any kind.
    pub fn binds(&self) -> usize {
        self.state().seen.iter().filter(|it| is_bind(&it.pdu)).count()
    }

    /// Waits until so many PDUs of a kind have come.
    pub fn wait_count(&self, command: u32, count: usize) {
        wait_for(&format!("{count} of {command:#x}"), || {
            (self.count(command) >= count).then_some(())
        });
    }

    /// Waits for a PDU.
    pub fn wait(&self, what: &str, is_it: impl Fn(&Seen) -> bool) -> Seen {
        wait_for(what, || self.state().seen.iter().find(|it| is_it(it)).cloned())
    }

    /// Connections that are bound now, by number.
    pub fn bound(&self) -> Vec<usize> {
        let state = self.state();
        let all = state.connections.iter().enumerate();
        all.filter(|(_, it)| it.is_open && it.is_bound).map(|(number, _)| number).collect()
    }

    /// Connections that are open now, bound or not.
    pub fn open(&self) -> usize {
        self.state().connections.iter().filter(|it| it.is_open).count()
    }

    /// Connections since the start.
    pub fn connections(&self) -> usize {
        self.state().connections.len()
    }

    /// Where a connection came from.
    pub fn peer(&self, connection: usize) -> SocketAddr {
        self.state().connections[connection].peer
    }

    /// Waits until exactly so many connections are open.
    pub fn wait_open(&self, count: usize) {
        wait_for(&format!("{count} open connections"), || (self.open() == count).then_some(()));
    }

    /// Waits until exactly so many connections are bound.
    pub fn wait_bound(&self, count: usize) {
        wait_for(&format!("{count} bound connections"), || {
            (self.bound().len() == count).then_some(())
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for Smsc {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection as its thread has it.
struct Line {
    number: usize,
    channel: Channel,
    received: Vec<u8>,
}

fn serve(shared: &Shared, listener: &TcpListener, transport: Transport) {
    let mut lines: Vec<Line> = Vec::new();
    while !shared.is_stopping.load(Ordering::Relaxed) {
        let mut is_idle = true;
        match listener.accept() {
            Ok((socket, peer)) => {
                is_idle = false;
                // A handshake that fails is the play's own wish.
                if let Ok(channel) = Channel::accept(transport, socket) {
                    let mut state = shared.state.lock().unwrap();
                    let number = state.connections.len();
                    let connected = Connected {
                        socket: channel.socket().try_clone().ok(),
                        peer,
                        is_open: true,
                        is_bound: false,
                        is_hung_up: false,
                    };
                    state.connections.push(connected);
                    lines.push(Line { number, channel, received: Vec::new() });
                }
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
        }
        let mut state = shared.state.lock().unwrap();
        for (number, bytes) in std::mem::take(&mut state.outgoing) {
            if let Some(line) = lines.iter_mut().find(|it| it.number == number) {
                line.channel.send(&bytes);
            }
        }
        if state.is_reading {
            lines.retain_mut(|line| {
                let is_open = read(&mut state, line, &mut is_idle);
                if !is_open {
                    state.connections[line.number].end();
                }
                is_open
            });
        }
        drop(state);
        if is_idle {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let mut state = shared.state.lock().unwrap();
    for line in lines {
        state.connections[line.number].end();
    }
}

impl Connected {
    fn end(&mut self) {
        self.is_open = false;
        self.socket = None;
    }
}

/// Takes in what has come and answers it. `false`: the connection has ended.
fn read(state: &mut State, line: &mut Line, is_idle: &mut bool) -> bool {
    if state.connections[line.number].is_hung_up {
        return false;
    }
    match line.channel.receive() {
        Came::Bytes(bytes) => line.received.extend(bytes),
        Came::Message(_) | Came::Nothing => return true,
        Came::End => return false,
    }
    *is_idle = false;
    let (mut used, mut answers) = (0, Vec::new());
    while let Some((pdu, bytes)) = Pdu::cut(&line.received[used..]) {
        used += bytes;
        let reply = match pdu.is_response() {
            true => Reply::Nothing,
            false => (state.rule)(line.number, &pdu),
        };
        let connected = &mut state.connections[line.number];
        match reply {
            Reply::Ok => {
                connected.is_bound |= is_bind(&pdu);
                answers.extend(pdu.answer(OK, usual_body(&pdu)).to_bytes());
            }
            Reply::Status(status) => answers.extend(pdu.answer(status, b"").to_bytes()),
            Reply::Body(body) => {
                connected.is_bound |= is_bind(&pdu);
                answers.extend(pdu.answer(OK, body).to_bytes());
            }
            Reply::Exactly(pdus) => pdus.iter().for_each(|it| answers.extend(it.to_bytes())),
            Reply::Nothing => {}
        }
        if pdu.command == UNBIND {
            connected.is_bound = false;
        }
        state.seen.push(Seen { connection: line.number, pdu });
    }
    line.received.drain(..used);
    line.channel.send(&answers);
    true
}

fn is_bind(pdu: &Pdu) -> bool {
    matches!(pdu.command, BIND_RECEIVER | BIND_TRANSMITTER | BIND_TRANSCEIVER)
}

/// As the original's test server answers: 33 bytes to a bind, 17 to a message.
fn usual_body(pdu: &Pdu) -> &'static [u8] {
    match pdu.command {
        _ if is_bind(pdu) => b"cloudhopper\0\x02\x10\0\x01\x34",
        super::SUBMIT_SM | super::DATA_SM => b"\0",
        _ => b"",
    }
}
