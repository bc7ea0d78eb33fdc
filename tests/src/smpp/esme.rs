//! An ESME that a play drives step by step.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::{BIND_TRANSCEIVER, ENQUIRE_LINK, OK, Pdu, SUBMIT_SM, UNBIND, bind_body, message_body};
use crate::channel::{Came, Channel};
use crate::{Transport, wait_for};

/// One connection to the balancer. It reads only while the play waits for something, or polls it; then it
/// answers enquire_link and what [`Esme::answers`] says by itself.
pub struct Esme {
    channel: Channel,
    received: Vec<u8>,
    inbox: VecDeque<Pdu>,
    counts: BTreeMap<u32, u64>,
    answered: Vec<u32>,
    sequence: u32,
    has_ended: bool,
}

impl Esme {
    /// Connects.
    pub fn connect(to: SocketAddr) -> Esme {
        Esme::over(Transport::Tcp, to)
    }

    /// Connects by TLS.
    pub fn connect_tls(to: SocketAddr) -> Esme {
        Esme::over(Transport::Tls, to)
    }

    fn over(transport: Transport, to: SocketAddr) -> Esme {
        let channel = Channel::connect(transport, to).unwrap_or_else(|it| panic!("{to}: {it}"));
        Esme {
            channel,
            received: Vec::new(),
            inbox: VecDeque::new(),
            counts: BTreeMap::new(),
            answered: vec![ENQUIRE_LINK],
            sequence: 0,
            has_ended: false,
        }
    }

    /// Connects and binds as a transceiver, as the original's tests do.
    pub fn bound(to: SocketAddr) -> Esme {
        Esme::connect(to).bind("RestComm", "password")
    }

    /// Binds as a transceiver, and must succeed.
    pub fn bind(mut self, system_id: &str, password: &str) -> Esme {
        let answer = self.ask(BIND_TRANSCEIVER, &bind_body(system_id, password));
        assert_eq!((answer.status, answer.is_response()), (OK, true), "{answer:?}");
        self
    }

    /// The next request has the number after this one.
    pub fn numbered(mut self, sequence: u32) -> Esme {
        self.sequence = sequence;
        self
    }

    /// From now on requests of these kinds are answered with status 0, and only these.
    pub fn answers(&mut self, commands: &[u32]) {
        self.answered = commands.to_vec();
    }

    /// Sends a PDU as it is.
    pub fn send(&mut self, pdu: &Pdu) {
        self.send_bytes(&pdu.to_bytes());
    }

    /// Sends any bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.channel.send(bytes);
    }

    /// Sends a request under its next number, which is returned.
    pub fn request(&mut self, command: u32, body: &[u8]) -> u32 {
        self.sequence += 1;
        self.send(&Pdu::new(command, self.sequence, body));
        self.sequence
    }

    /// Sends a request and waits for its response.
    pub fn ask(&mut self, command: u32, body: &[u8]) -> Pdu {
        let sequence = self.request(command, body);
        self.answer_to(sequence)
    }

    /// Submits one message and waits for the response.
    pub fn submit(&mut self) -> Pdu {
        self.ask(SUBMIT_SM, &message_body(b"Hello world!"))
    }

    /// Unbinds, with success, and waits for the end of the connection.
    pub fn unbind(mut self) -> Esme {
        let answer = self.ask(UNBIND, b"");
        assert_eq!(answer.status, OK, "{answer:?}");
        self
    }

    /// The response to one of its requests.
    pub fn answer_to(&mut self, sequence: u32) -> Pdu {
        let what = format!("the response to {sequence}");
        self.expect(&what, |it| it.is_response() && it.sequence == sequence)
    }

    /// The next request of this kind.
    pub fn asked(&mut self, command: u32) -> Pdu {
        self.expect(&format!("a request {command:#x}"), |it| it.command == command)
    }

    /// Waits for a PDU and takes it out of the inbox.
    pub fn expect(&mut self, what: &str, is_it: impl Fn(&Pdu) -> bool) -> Pdu {
        wait_for(what, || {
            self.poll();
            let position = self.inbox.iter().position(&is_it);
            let has_ended = position.is_none() && self.has_ended;
            assert!(!has_ended, "the connection has ended before {what}; {:?}", self.inbox);
            self.inbox.remove(position?)
        })
    }

    /// Waits for the end of the connection.
    pub fn wait_end(&mut self) {
        wait_for("the end of a connection", || {
            self.poll();
            self.has_ended.then_some(())
        });
    }

    /// Whether the balancer has closed the connection, as far as was read.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// What was received and not asked for.
    pub fn inbox(&self) -> impl Iterator<Item = &Pdu> {
        self.inbox.iter()
    }

    /// How many PDUs of a kind have come, those that it answered included.
    pub fn count(&self, command: u32) -> u64 {
        self.counts.get(&command).copied().unwrap_or(0)
    }

    /// Takes in what has come.
    pub fn poll(&mut self) {
        loop {
            match self.channel.receive() {
                Came::Bytes(bytes) => self.received.extend(bytes),
                Came::Message(_) => unreachable!("SMPP has no frames"),
                Came::Nothing => break,
                Came::End => {
                    self.has_ended = true;
                    break;
                }
            }
        }
        let mut used = 0;
        while let Some((pdu, bytes)) = Pdu::cut(&self.received[used..]) {
            used += bytes;
            *self.counts.entry(pdu.command).or_default() += 1;
            if self.answered.contains(&pdu.command) {
                self.channel.send(&pdu.answer(OK, b"").to_bytes());
                continue;
            }
            self.inbox.push_back(pdu);
        }
        self.received.drain(..used);
    }

    /// Says that it will send no more; it still reads.
    pub fn end(&mut self) {
        self.socket().shutdown(Shutdown::Write).unwrap();
    }

    /// Hangs up.
    pub fn close(&mut self) {
        self.channel.close();
    }

    /// The socket itself.
    pub fn socket(&self) -> &TcpStream {
        self.channel.socket()
    }
}
