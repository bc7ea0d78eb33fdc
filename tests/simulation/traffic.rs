//! Datagrams on their way: from agents through shards to agents, each decision judged on the spot.

use super::*;

impl World {
    pub(super) fn begin(&mut self, address: SocketAddr, method: &str, uri: &str, user: &str) {
        let mut effects = Effects::default();
        let Some(agent) = self.agents.get_mut(&address) else { return };
        let call_id = agent.begin(method, uri, &mut effects);
        let status = match user {
            "busy" => 486,
            "ring" => 487,
            _ => 200,
        };
        self.expected.insert(call_id, status);
        self.carry_out(address, effects);
    }

    pub(super) fn carry_out(&mut self, agent: SocketAddr, effects: Effects) {
        let Some(it) = self.agents.get(&agent) else { return };
        for (delay, timer) in effects.timers {
            self.net.after(delay, Event::Timer { agent, name: it.name.clone(), timer });
        }
        let is_odd = |it: &PretendNode| node_address(it.number) == agent && it.number % 2 == 1;
        let strays = self.nodes.iter().any(is_odd);
        for (to, bytes) in effects.sends {
            let is_answer = bytes.starts_with(b"SIP/");
            let port = if strays && is_answer { ELSEWHERE } else { agent.port() };
            self.send(SocketAddr::new(agent.ip(), port), to, bytes, None);
        }
    }

    pub(super) fn send(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
        origin: Option<Box<Origin>>,
    ) {
        let line = self.trace.then(|| first_line(&bytes));
        let datagram = Event::Datagram { from, to, bytes, origin };
        if !self.net.carry(datagram, self.profile.weather, &mut self.draw) {
            self.say(|| format!("  lost {from} -> {to}: {}", line.unwrap_or_default()));
        }
    }

    pub(super) fn arrive(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
        origin: Option<Box<Origin>>,
    ) {
        if to == EXTERNAL || (to == INTERNAL && self.profile.two_legs) {
            return self.decide(from, to, bytes);
        }
        if let Some(node) = self.nodes.iter().find(|it| node_address(it.number) == to)
            && node.state != State::Up
        {
            if let Some(origin) = origin.filter(|_| node.state == State::Refusing) {
                let delay = self.draw.millis(1, 20);
                self.net.after(delay, Event::Refused { to, origin });
            }
            return;
        }
        let Some(agent) = self.agents.get_mut(&to) else {
            self.fail(&format!("a datagram to {to}, where nobody ever was"), &bytes, b"");
        };
        let mut effects = Effects::default();
        agent.handle(from, &bytes, &mut self.draw, &mut effects);
        self.carry_out(to, effects);
    }

    /// The kernel hands a datagram to a shard.
    fn decide(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let shards = self.shards.len();
        let shard = if self.profile.scattered {
            self.draw.below(shards)
        } else {
            let port = usize::from(from.port());
            let ip: usize = from.ip().to_string().bytes().map(usize::from).sum();
            (port + ip) % shards
        };
        let leg = if to == INTERNAL { Leg::Internal } else { Leg::External };
        let arrival = self.stage.arrival(self.net.now(), leg, Transport::Udp, from);
        let origin = Origin {
            shard,
            leg,
            arrival,
            bytes,
            hop: Hop::Datagram { from: arrival.listener, to },
            attempts: 0,
        };
        self.conclude(origin, None);
    }

    /// A datagram came back: the shard avoids the node and decides the message again.
    pub(super) fn refused(&mut self, to: SocketAddr, origin: Origin) {
        let shard = &mut self.shards[origin.shard];
        if let Some((key, way)) = shard.relay.refused(to, Transport::Udp, &shard.snapshot) {
            let node = shard.snapshot.find(key).map(|it| shard.snapshot.node(it));
            if node.is_some_and(|it| !it.suspect.has(way)) {
                shard.snapshot = Arc::new(shard.snapshot.suspecting(key, way));
            }
        }
        let until = self.net.now() + SUSPECT + CHECK + Duration::from_millis(SWITCH_MS as u64);
        for node in self.nodes.iter_mut().filter(|it| node_address(it.number) == to) {
            node.avoided_until = until;
        }
        let shard = origin.shard;
        self.say(|| format!("{to} refused a datagram of shard {shard}"));
        self.conclude(origin, Some(to));
    }

    /// Decides, judges, and does what was decided. `failed`: the message comes back from there.
    fn conclude(&mut self, origin: Origin, failed: Option<SocketAddr>) {
        let now = self.net.now();
        let Origin { shard: index, leg, mut arrival, ref bytes, hop, attempts } = origin;
        arrival.now = now;
        let mut out = Vec::new();
        let shard = &mut self.shards[index];
        let snapshot = Arc::clone(&shard.snapshot);
        let again = if attempts > ATTEMPTS_MAX { Again::Nowhere } else { Again::Elsewhere };
        let verdict = match failed {
            None => shard.relay.handle(&arrival, bytes, &snapshot, &mut out),
            Some(_) => {
                let failed = Failure { hop: Some(hop), reason: DropReason::ConnectionGone, again };
                shard.relay.undelivered(&arrival, bytes, failed, &snapshot, &mut out)
            }
        };
        let mut reports = Vec::new();
        while let Some(report) = shard.relay.poll_report(now, &snapshot) {
            reports.push(report);
        }
        self.say(|| {
            let (line, source) = (first_line(bytes), arrival.source);
            let again = if failed.is_some() { " again" } else { "" };
            format!("shard {index}{again}: {source} {line} => {}", told(verdict, &out))
        });
        let decision = Decision {
            shard: index,
            snapshot: &snapshot,
            leg,
            arrival: &arrival,
            bytes,
            verdict,
            out: &out,
            failed,
            is_last: failed.is_some() && again == Again::Nowhere,
        };
        if let Err(broken) = self.judge.check(&decision) {
            self.fail(&format!("shard {index}: {broken}; {verdict:?}"), bytes, &out);
        }
        self.check_members(&snapshot);
        for report in reports {
            if let engine::relay::Report::Beat(said) = &report {
                let heard = self.nodes.iter_mut().find(|it| {
                    node_address(it.number).ip() == said.ip
                        && it.version == said.version.0
                        && said.session.as_deref() == Some(&it.incarnation.to_string())
                });
                if let Some(node) = heard {
                    node.hear(now);
                }
            }
            let _ = self.registry.handle_report(now, report);
        }
        match verdict {
            Verdict::Forward { hop: hop @ Hop::Datagram { from, to }, is_request, .. } => {
                let sender = self.stage.settings.listener(from).address;
                let may_go_again = is_request && snapshot.at(to, None, None).is_some();
                let again = || Box::new(Origin { hop, attempts: attempts + 1, ..origin });
                let origin = may_go_again.then(again);
                self.send(sender, to, out, origin);
            }
            Verdict::Reply { hop: Hop::Datagram { from, to } } => {
                let sender = self.stage.settings.listener(from).address;
                self.send(sender, to, out, None);
            }
            _ => {}
        }
    }
}
