//! Answers of our own, stateless (RFC 3261 §8.2.6, §8.2.7; `sip.md` 2.10, 2.13).

use protocols::bytes::{Span, write_decimal};
use protocols::sip::Transport;
use protocols::sip::message::Method;
use protocols::sip::message::{Malformed, Message, salvage};
use protocols::sip::reply;
use protocols::sip::via::Via;

use super::settings::Settings;
use super::via::{self, TopVia};
use super::{Incoming, State};
use crate::relay::{Arrival, DropReason, Failure, Hop, Verdict};
use crate::snapshot::{Family, Snapshot};

/// An answer of our own.
pub(super) struct Answer<'a> {
    pub status: u16,
    pub reason: &'a str,
    /// Complete header lines.
    pub extra: &'a [u8],
    /// What an ACK, which is never answered, is counted as.
    pub otherwise: DropReason,
}

impl Answer<'_> {
    pub(super) const fn plain(status: u16, reason: &str, otherwise: DropReason) -> Answer<'_> {
        Answer { status, reason, extra: b"", otherwise }
    }
}

/// It would come back (RFC 3261 §16.3(4)).
pub(super) const LOOP: Answer<'_> = Answer::plain(482, "Loop Detected", DropReason::Loop);

impl State {
    /// Nobody is there to take it.
    pub(super) fn no_node(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        method: Method,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let status = settings.config.no_node_status;
        let answer = Answer {
            status,
            reason: "No nodes available",
            extra: if status == 503 { b"Retry-After: 5\r\n" } else { b"" },
            otherwise: DropReason::NoNode,
        };
        self.answer(settings, incoming, method, &answer, out)
    }

    /// 503 for what cannot be sent on, by the configuration (`sip.md` 2.10).
    pub(super) fn service_unavailable(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        method: Method,
        otherwise: DropReason,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let config = &settings.config;
        if !config.send_5xx {
            return Verdict::Drop(otherwise);
        }
        let extra = config.send_5xx_reason.as_ref().map_or_else(String::new, |text| {
            format!("Reason: SIP;cause={};text=\"{text}\"\r\n", config.send_5xx_cause)
        });
        let answer = Answer {
            status: 503,
            reason: "Service Unavailable",
            extra: extra.as_bytes(),
            otherwise,
        };
        self.answer(settings, incoming, method, &answer, out)
    }

    /// The answer to a message whose only way failed: 430 where that was a client's own connection and it
    /// is gone (RFC 5626 §5.3), else 503.
    pub(super) fn unreachable(
        &mut self,
        settings: &Settings,
        arrival: &Arrival,
        bytes: &[u8],
        failed: Failure,
        snapshot: &Snapshot,
        out: &mut Vec<u8>,
    ) -> Verdict {
        out.clear();
        let Ok(message) = Message::parse(bytes, None) else {
            return Verdict::Drop(DropReason::Malformed);
        };
        if !message.is_request() {
            return Verdict::Drop(failed.reason);
        }
        self.calls.handle_failure(arrival.now, &message);
        let method = message.method();
        let listener = settings.listener(arrival.listener);
        let incoming = Incoming {
            arrival,
            leg: listener.leg,
            transport: listener.transport,
            family: Family::of(arrival.source.ip()),
            message: &message,
            via: TopVia::of(&message),
            snapshot,
        };
        self.buffers.via.clear();
        via::amend(&incoming.via, arrival, incoming.transport, settings, &mut self.buffers.via);
        let Failure { hop, reason, .. } = failed;
        let is_flow = match hop {
            Some(Hop::Flow { or, .. }) => or.is_none(),
            Some(Hop::Stream { from, to }) => {
                let transport = settings.listener(from).transport;
                let is_node = snapshot.at(to, None, None).is_some() || snapshot.remembers(to);
                matches!(transport, Transport::Ws | Transport::Wss) && !is_node
            }
            Some(Hop::Datagram { .. }) | None => false,
        };
        if is_flow && reason == DropReason::ConnectionGone {
            let answer = Answer::plain(430, "Flow Failed", reason);
            return self.answer(settings, &incoming, method, &answer, out);
        }
        self.service_unavailable(settings, &incoming, method, reason, out)
    }

    pub(super) fn answer(
        &mut self,
        settings: &Settings,
        incoming: &Incoming<'_>,
        method: Method,
        answer: &Answer<'_>,
        out: &mut Vec<u8>,
    ) -> Verdict {
        if method == Method::Ack {
            return Verdict::Drop(answer.otherwise);
        }
        out.clear();
        self.answered = Some((answer.status, incoming.leg, incoming.transport));
        self.write_answer(incoming, answer, out);
        Verdict::Reply { hop: answer_hop(settings, incoming) }
    }

    pub(super) fn write_answer(
        &mut self,
        incoming: &Incoming<'_>,
        answer: &Answer<'_>,
        out: &mut Vec<u8>,
    ) {
        let message = incoming.message;
        let top_via = match self.buffers.via.as_slice() {
            [] => incoming.via.text,
            amended => amended,
        };
        // The same for every retransmission, on every shard (`sip.md` 2.10).
        let tag = &mut self.buffers.tag;
        tag.clear();
        if answer.status > 100 {
            tag.extend_from_slice(b"lb");
            write_decimal(tag, via::transaction(&incoming.via, message));
        }
        reply::reply(message, answer.status, answer.reason, tag, top_via, answer.extra, out);
    }

    /// Answers what can be answered of bytes that are no message (`sip.md` 2.13).
    pub(super) fn refuse_malformed(
        &mut self,
        settings: &Settings,
        arrival: &Arrival,
        bytes: &[u8],
        malformed: Malformed,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let listener = settings.listener(arrival.listener);
        let (Some(status), Some(salvage)) = (malformed.status(), salvage(bytes)) else {
            return Verdict::Drop(DropReason::Malformed);
        };
        out.clear();
        let via = Via::parse(salvage.via).map(|via| TopVia {
            text: via.text,
            span: Span::default(),
            via,
        });
        self.buffers.via.clear();
        let is_amended = via.as_ref().is_some_and(|it| {
            via::amend(it, arrival, listener.transport, settings, &mut self.buffers.via)
        });
        let top = if is_amended { self.buffers.via.as_slice() } else { salvage.via };
        let reason = match status {
            505 => "Version Not Supported".to_owned(),
            513 => "Message Too Large".to_owned(),
            _ => format!("Bad Request ({malformed})"),
        };
        reply::reply_to_malformed(&salvage, status, &reason, top, out);
        self.counters.response(status, listener.leg, listener.transport, 0);
        self.counters.dropped(DropReason::Malformed);
        Verdict::Reply { hop: hop_back(settings, arrival, via.as_ref()) }
    }
}

/// Where our answer goes.
pub(super) fn answer_hop(settings: &Settings, incoming: &Incoming<'_>) -> Hop {
    hop_back(settings, incoming.arrival, Some(&incoming.via))
}

/// Back on the connection, or to the address that the top Via stands for: the sender's where it cannot be
/// read.
fn hop_back(settings: &Settings, arrival: &Arrival, top: Option<&TopVia<'_>>) -> Hop {
    let Arrival { listener: from, source, .. } = *arrival;
    match arrival.flow {
        Some(flow) => Hop::Flow { flow, or: None, is_response: true },
        None => Hop::Datagram {
            from,
            to: top.map_or(source, |it| {
                via::answer_address(it, source, settings.listener(from).transport, settings)
            }),
        },
    }
}
