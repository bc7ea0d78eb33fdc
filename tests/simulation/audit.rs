//! What must hold at the end, and of the node table at any time.

use super::*;

impl World {
    /// What must hold when everything is over.
    pub(super) fn audit(&mut self) {
        for agent in self.agents.values().filter(|it| it.name.starts_with('c')) {
            if agent.strangers > 0 {
                self.fail(&format!("{} got answers to what it never asked", agent.name), b"", b"");
            }
        }
        for index in 0..self.shards.len() {
            self.audit_counters(index);
        }
        let moves = matches!(self.profile.algorithm, WORST_CASE)
            || (self.profile.algorithm == ACTIVE_STANDBY && self.profile.changes);
        if self.profile.calm && !moves {
            self.audit_calls();
        }
    }

    /// Every call that was placed got its answer and ended on both sides.
    fn audit_calls(&self) {
        let mut answered = BTreeMap::new();
        for agent in self.agents.values() {
            for outcome in &agent.outcomes {
                let wanted = match (outcome.method.as_str(), self.expected.get(&outcome.call_id)) {
                    ("INVITE", Some(status)) => *status,
                    _ => 200,
                };
                if outcome.status != Some(wanted) && !(wanted != 200 && outcome.status == Some(200))
                {
                    self.fail(&format!("{}: {outcome:?}, not {wanted}", agent.name), b"", b"");
                }
                answered.insert(outcome.call_id.clone(), ());
            }
            if agent.is_busy() {
                self.fail(&format!("{} never came to an end: {agent:#?}", agent.name), b"", b"");
            }
        }
        if let Some(call) = self.expected.keys().find(|it| !answered.contains_key(*it)) {
            self.fail(&format!("{call} was never answered"), b"", b"");
        }
    }

    /// Counters tell of every message.
    fn audit_counters(&mut self, index: usize) {
        let tally = self.judge.tallies[index];
        let (now, snapshot) = (self.net.now(), &self.published);
        let counters = self.shards[index].relay.counters(now, snapshot, true).clone();
        let page = metrics(&Scrape {
            now: self.net.now(),
            process: Process {
                name: "",
                version: "",
                cpu_percent: 0,
                resident_bytes: 0,
                epoch_ms: 0,
                is_stopping: false,
            },
            snapshot: &self.published,
            registry: &self.registry,
            shards: &[(&counters, Load::default())],
            certificates: &[],
            beats: Beats::default(),
            residence: &Residence::default(),
        });
        let sum = |family: &str, with: &str| -> u64 {
            page.lines()
                .filter(|it| it.starts_with(&format!("{family}{{")) && it.contains(with))
                .filter_map(|it| it.rsplit_once(' ')?.1.parse::<u64>().ok())
                .sum()
        };
        let answers = tally.replies - tally.beats; // beats and their answers are no traffic
        let rows = [
            ("requests", tally.requests, sum("trunkline_sip_messages_total", "kind=\"request\"")),
            (
                "responses and answers",
                tally.responses + answers,
                sum("trunkline_sip_messages_total", "kind=\"response\""),
            ),
            ("drops", tally.drops, sum("trunkline_sip_dropped_total", "")),
            ("requests by method", tally.requests, sum("trunkline_sip_requests_total", "")),
            (
                "responses by code",
                tally.responses + answers,
                sum("trunkline_sip_responses_total", ""),
            ),
            (
                "messages",
                tally.beats + tally.requests + tally.responses + tally.again,
                tally.forwards + tally.replies + tally.resolves + tally.drops,
            ),
        ];
        for (what, happened, counted) in rows {
            if happened != counted {
                let text = format!("shard {index} counted {counted} {what}, there were {happened}");
                self.fail(&text, page.as_bytes(), b"");
            }
        }
    }

    /// A node that lives and is heard is in every shard's table.
    pub(super) fn check_members(&self, snapshot: &Snapshot) {
        let now = self.net.now();
        for node in self.nodes.iter().filter(|it| it.state == State::Up) {
            // The announcement of another version takes its time to replace the old one.
            let Some(heard) = node.heard else { continue };
            let since = now.since(heard);
            let late = Duration::from_millis(2 * SWITCH_MS as u64);
            if since < late || since > NODE_TIMEOUT || now.since(self.settled) < late {
                continue;
            }
            let key = tests::sim::node(node.number, node.version).key;
            let Some(id) = snapshot.find(key) else {
                self.fail(&format!("{} lives and beats but is no member", node.name()), b"", b"");
            };
            let found = snapshot.node(id);
            if !found.suspect.is_empty() && now > node.avoided_until {
                self.fail(&format!("{} is still avoided", node.name()), b"", b"");
            }
        }
    }
}
