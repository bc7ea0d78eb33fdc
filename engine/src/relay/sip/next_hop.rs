//! Where a request from a node goes: a literal, a name that must be resolved, a client's connection
//! (RFC 3261 §16.6(6), §16.6(7); `sip.md` 2.8, 8.5).

use std::net::SocketAddr;

use protocols::sip::Transport;
use protocols::sip::uri::{Scheme, Uri, parse_ip};
use protocols::time::Time;

use super::flow::Token;
use super::names::{NameCache, choose};
use super::settings::{Place, Settings};
use crate::names::Query;
use crate::relay::{DropReason, Hop, Leg};
use crate::snapshot::Family;

/// What became of the search for a next hop.
pub(super) enum NextHop<'s> {
    /// Send there.
    Found {
        /// Socket and texts of the leg it leaves by.
        place: &'s Place,
        /// Transport of that leg.
        transport: Transport,
        /// Where to.
        hop: Hop,
    },
    /// The name is not in the cache; the query is what to ask.
    Unknown,
    /// It cannot be reached; the request is answered 503, an ACK dropped for this reason.
    Unreachable(DropReason),
}

/// What the search depends on.
pub(super) struct Search<'a> {
    pub now: Time,
    pub family: Family,
    /// Top Route, else Request-URI.
    pub uri: &'a Uri<'a>,
    /// Transport where the URI names none.
    pub otherwise: Transport,
    /// Connection that the dialog's route set names.
    pub token: Option<Token>,
    /// What all messages of the transaction have in common.
    pub key: u64,
}

impl Search<'_> {
    /// `query` is a buffer for the name, should there be one to look up.
    pub(super) fn run<'s>(
        &self,
        settings: &'s Settings,
        names: &NameCache,
        query: &mut Query,
    ) -> NextHop<'s> {
        let uri = self.uri;
        let host = uri.param("maddr").filter(|it| !it.is_empty()).unwrap_or(uri.host);
        let literal = parse_ip(host);
        if let Some(Token { flow, listener }) = self.token {
            // The connection itself is the way, whatever transport the URI names: browsers write `ws`
            // over WSS. Its literal address is only for when the connection is gone.
            let listener = settings.listeners.get(usize::from(listener.0));
            let place = |it| settings.place(Leg::External, self.family, it);
            let transport = listener.map(|it| it.transport);
            let Some((transport, place)) = transport.and_then(|it| Some((it, place(it)?))) else {
                return NextHop::Unreachable(DropReason::NoListener);
            };
            let port = uri.effective_port(transport);
            let or = literal
                .filter(|it| Family::of(*it) == self.family)
                .filter(|_| !matches!(transport, Transport::Ws | Transport::Wss))
                .filter(|it| !settings.is_me(host, Some(*it), port))
                .map(|ip| (place.listener, SocketAddr::new(ip, port)));
            return NextHop::Found {
                place,
                transport,
                hop: Hop::Flow { flow, or, is_response: false },
            };
        }
        let named = match uri.transport() {
            Some(None) => return NextHop::Unreachable(DropReason::NoListener),
            Some(Some(transport)) => Some(transport),
            None => None,
        };
        let transport = match (uri.scheme, named.unwrap_or(self.otherwise)) {
            (Scheme::Sips, Transport::Udp | Transport::Tcp) => Transport::Tls,
            (Scheme::Sips, Transport::Ws) => Transport::Wss,
            (_, transport) => transport,
        };
        if let Some(ip) = literal {
            let to = SocketAddr::new(ip, uri.effective_port(transport));
            return self.reach(settings, transport, to);
        }
        let Ok(host) = std::str::from_utf8(host) else {
            return NextHop::Unreachable(DropReason::Unresolved);
        };
        query.host.clear();
        query.host.push_str(host);
        query.host.make_ascii_lowercase();
        query.port = uri.port;
        query.transport = named.or(Some(self.otherwise).filter(|it| *it != Transport::Udp));
        query.sips = uri.scheme == Scheme::Sips;
        let Some(targets) = names.find(self.now, query) else { return NextHop::Unknown };
        let found = choose(targets, self.key, |it| {
            Family::of(it.address.ip()) == self.family
                && settings.place(Leg::External, self.family, it.transport).is_some()
        });
        match found {
            Some(it) => self.reach(settings, it.transport, it.address),
            None => NextHop::Unreachable(DropReason::Unresolved),
        }
    }

    fn reach<'s>(
        &self,
        settings: &'s Settings,
        transport: Transport,
        to: SocketAddr,
    ) -> NextHop<'s> {
        if Family::of(to.ip()) != self.family || to.port() == 0 {
            return NextHop::Unreachable(DropReason::NoListener);
        }
        let place = |transport| settings.place(Leg::External, self.family, transport);
        // Clients on secure WebSocket call it `ws`, too: RFC 7118 has no other name for it.
        let is_secure = transport == Transport::Ws && place(transport).is_none();
        let transport = if is_secure { Transport::Wss } else { transport };
        match place(transport) {
            Some(place) => NextHop::Found { place, transport, hop: hop(place, transport, to) },
            None => NextHop::Unreachable(DropReason::NoListener),
        }
    }
}

/// The hop to an address from a place.
pub(super) fn hop(place: &Place, transport: Transport, to: SocketAddr) -> Hop {
    if transport.is_stream() {
        Hop::Stream { from: place.listener, to }
    } else {
        Hop::Datagram { from: place.listener, to }
    }
}
