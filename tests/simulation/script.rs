//! What happens from outside: callers, nodes that come, go and speak for themselves, strangers.

use super::*;

impl World {
    /// Callers, one of them behind a NAT, and the first nodes.
    pub(super) fn people(&mut self) {
        for number in 0..4u16 {
            let name = format!("c{number}");
            let address = SocketAddr::from(([203, 0, 113, 10 + number as u8], 5062 + number));
            let mut caller = Agent::new(name.clone(), address, EXTERNAL);
            if number == 3 {
                caller.claimed = SocketAddr::from(([192, 168, 1, 7], 5060));
            }
            self.judge.callers.insert(name, address);
            self.agents.insert(address, caller);
            self.callers.push(address);
        }
        for number in 1..=u16::try_from(2 + self.draw.below(3)).unwrap() {
            self.join(number, 0);
        }
    }

    pub(super) fn join(&mut self, number: u16, version: i32) {
        let node = PretendNode {
            number,
            version,
            incarnation: 0,
            state: State::Up,
            leaving: false,
            died: Time::ZERO,
            heard: None,
            avoided_until: Time::ZERO,
        };
        self.nodes.push(node);
        self.start(self.nodes.len() - 1);
        let delay = self.draw.millis(0, 50);
        self.net.after(delay, Event::Beat(self.nodes.len() - 1));
    }

    /// The node's process runs, without memory of an earlier one.
    pub(super) fn start(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        (node.state, node.leaving, node.incarnation) = (State::Up, false, node.incarnation + 1);
        let (name, address) = (node.name(), node_address(node.number));
        let proxy = if self.profile.two_legs { INTERNAL } else { EXTERNAL };
        self.say(|| format!("{name} starts at {address}"));
        self.agents.insert(address, Agent::new(name, address, proxy));
    }

    /// What happens from outside, drawn in advance.
    pub(super) fn script(&mut self) {
        self.net.after(CHECK, Event::Tick);
        let at = |draw: &mut Draw| draw.millis(500, SCRIPT_MS);
        // Where a table change may move a ringing call, nothing promises that its CANCEL arrives.
        let rings = !self.profile.changes || !self.profile.calm || self.profile.remembers();
        let users: &[&'static str] = if rings {
            &["answer", "answer", "hangup", "busy", "ring"]
        } else {
            &["answer", "hangup", "busy"]
        };
        for _ in 0..8 {
            let caller = self.draw.below(self.callers.len());
            let user = *self.draw.one(users);
            let when = at(&mut self.draw);
            self.net.after(when, Event::Call { caller, user });
        }
        for _ in 0..2 {
            let caller = self.draw.below(self.callers.len());
            let when = at(&mut self.draw);
            let method = *self.draw.one(&["REGISTER", "MESSAGE", "OPTIONS"]);
            self.net.after(when, Event::Transaction { caller, method });
        }
        for _ in 0..3 {
            let node = self.draw.below(self.nodes.len());
            let user = *self.draw.one(users);
            let when = at(&mut self.draw);
            self.net.after(when, Event::NodeCall { node, user });
        }
        if self.profile.changes {
            self.upgrade();
        }
        if self.profile.deaths {
            for _ in 0..2 {
                let node = self.draw.below(self.nodes.len());
                let state = if self.draw.percent(50) { State::Silent } else { State::Refusing };
                let when = at(&mut self.draw);
                self.net.after(when, Event::Die { node, state });
                let away = self.draw.millis(300, 15_000);
                let version = i32::from(self.draw.percent(50));
                self.net.after(when + away, Event::Return { node, version });
            }
            for _ in 0..8 {
                let when = self.draw.millis(0, SCRIPT_MS);
                self.net.after(when, Event::Stranger);
            }
        }
    }

    /// A rolling upgrade: a node of the next version joins, an old one drains; or just one more node.
    fn upgrade(&mut self) {
        let newcomer = u16::try_from(self.nodes.len() + 1).unwrap();
        let version = i32::from(self.draw.percent(60));
        self.nodes.push(PretendNode {
            number: newcomer,
            version,
            incarnation: 0,
            state: State::Silent,
            leaving: false,
            died: Time::ZERO,
            heard: None,
            avoided_until: Time::ZERO,
        });
        let node = self.nodes.len() - 1;
        let when = self.draw.millis(3_000, 8_000);
        self.net.after(when, Event::Return { node, version });
        self.net.after(when, Event::Beat(node));
        let node = self.draw.below(node);
        let later = self.draw.millis(500, 5_000);
        self.net.after(when + later, Event::Drain { node });
    }

    pub(super) fn beat(&mut self, node: usize) {
        self.beat_once(node);
        self.net.after(BEAT, Event::Beat(node));
        // Who drains goes when its calls are over and the news has reached everybody.
        let it = &self.nodes[node];
        let address = node_address(it.number);
        let is_idle = self.agents.get(&address).is_none_or(|it| !it.is_busy());
        if it.leaving && it.state == State::Up && is_idle && self.draw.percent(20) {
            (self.nodes[node].state, self.nodes[node].died) = (State::Silent, self.net.now());
            let name = self.nodes[node].name();
            self.say(|| format!("{name} has left"));
        }
    }

    /// Says that the node lives: SIP OPTIONS on the nodes' leg; without one, as another protocol would.
    pub(super) fn beat_once(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if it.state != State::Up {
            return;
        }
        let address = node_address(it.number);
        let (port, name) = (address.port(), it.name());
        let body = format!(
            "hostname={name}\nip={}\nudpPort={port}\ntcpPort={port}\nversion={}\nsessionId={}\n{}",
            address.ip(),
            it.version,
            it.incarnation,
            if it.leaving { "GRACEFUL_SHUTDOWN=true\n" } else { "" }
        );
        if !self.profile.two_legs {
            let now = self.net.now();
            if self.draw.percent(self.profile.weather.lost) {
                return;
            }
            let said = engine::registry::Announcement::parse(body.as_bytes()).unwrap();
            it.hear(now);
            self.registry.handle_announcement(now, said).unwrap();
            return;
        }
        let beat = Message::new(format!("OPTIONS sip:{INTERNAL} SIP/2.0"))
            .with("Via", format!("SIP/2.0/UDP {address};branch=z9hG4bK{name}-b"))
            .with("Max-Forwards", "1")
            .with("From", format!("<sip:{name}@{address}>;tag=b"))
            .with("To", format!("<sip:{INTERNAL}>"))
            .with("Call-ID", format!("beat-{name}"))
            .with("CSeq", "1 OPTIONS")
            .with("Mobicents-Heartbeat", "1")
            .with_body("text/plain", body);
        self.send(address, INTERNAL, beat.to_bytes(), None);
    }

    /// Somebody who forges routes, hints and Vias to make us send to where nobody asked us to.
    pub(super) fn stranger(&mut self) {
        let from = SocketAddr::from(([198, 51, 100, 99], 5060));
        let victim = ["198.51.100.66:22", "172.16.9.9:5080", "172.16.100.1:22"];
        let victim = *self.draw.one(&victim);
        let (host, port) = victim.split_once(':').unwrap();
        let route = format!("<sip:{EXTERNAL};lr;node_host={host};node_port={port};version=0>");
        let via =
            format!("SIP/2.0/UDP {from};branch=z9hG4bKx-{};rport", self.draw.below(1_000_000));
        let request = |method: &str, uri: &str| {
            Message::new(format!("{method} {uri} SIP/2.0"))
                .with("Via", via.clone())
                .with("Max-Forwards", "70")
        };
        let tail = |it: Message, method: &str| {
            it.with("From", "<sip:x@x>;tag=x1")
                .with("To", "<sip:y@y>;tag=x2")
                .with("Call-ID", "x@x")
                .with("CSeq", format!("2 {method}"))
        };
        let message = match self.draw.below(6) {
            0 => tail(request("BYE", &format!("sip:x@{victim}")).with("Route", route), "BYE"),
            1 => tail(
                request("BYE", &format!("sip:x@{victim}"))
                    .with("Route", format!("<sip:{victim};lr>")),
                "BYE",
            ),
            2 => tail(request("INFO", &format!("sip:x@example.com;maddr={host}")), "INFO"),
            3 => {
                let ours = format!("SIP/2.0/UDP {EXTERNAL};branch=z9hG4bK0123456789abcdefe_0");
                let theirs = format!("SIP/2.0/UDP {victim};branch=z9hG4bKx-1");
                tail(Message::new("SIP/2.0 200 OK").with("Via", ours).with("Via", theirs), "INVITE")
            }
            from => {
                let [out, ours] =
                    [EXTERNAL, if self.profile.two_legs { INTERNAL } else { EXTERNAL }]
                        .map(|it| format!("SIP/2.0/UDP {it};branch=z9hG4bK0123456789abcdefi_0"));
                // Under the name of a node, or not.
                let claimed =
                    if from == 4 { victim.to_owned() } else { node_address(1).to_string() };
                let theirs =
                    format!("SIP/2.0/UDP {claimed};branch=z9hG4bKx-1;received={host};rport={port}");
                let message =
                    Message::new("SIP/2.0 180 Ringing").with("Via", out).with("Via", ours);
                tail(message.with("Via", theirs), "INVITE")
            }
        };
        self.agents.entry(from).or_insert_with(|| Agent::new("x".to_owned(), from, EXTERNAL));
        self.judge.callers.insert("x".to_owned(), from);
        self.send(from, EXTERNAL, message.to_bytes(), None);
    }
}
