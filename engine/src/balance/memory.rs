//! Remembered calls of one shard: which node each lives on, until it has been idle too long.
//!
//! A cache, not a truth: bounded, and empty after a restart. Keyed by the 64-bit routing hash of the
//! Call-ID, so that an entry is 48 bytes and 4 of index whatever a peer calls its call; two calls with
//! one hash would only share a node. Everything a message does here takes constant time: calls wait in
//! the order they were filed, and one found to be in use when its turn comes is filed again. All of a
//! dead node's calls move at once, because a call names an owner and only the owner names the node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use protocols::time::Time;

use crate::node::{Node, NodeKey};
use crate::snapshot::NODES_MAX;

/// The table. Takes address space for all its calls when made and memory as they come.
///
/// Each call carries a `T` beside its node; algorithms need none.
pub(crate) struct Memory<T = ()> {
    /// First entry by hash; entries with the same place are chained.
    places: Vec<Link>,
    entries: Vec<Entry<T>>,
    /// Entries forgotten and not yet used again, chained by `newer`.
    free: Link,
    /// Filed first; the others follow by `newer`.
    oldest: Link,
    newest: Link,
    calls: usize,
    /// Those of them that count.
    counted: usize,
    owners: Vec<Owner>,
    /// The owner that new calls of a node get.
    current: ahash::HashMap<NodeKey, u32>,
    /// Keyed at random: peers choose Call-IDs, and must not be able to choose one long chain.
    spread: ahash::RandomState,
    idle: Duration,
    calls_max: usize,
}

/// The node of a remembered call. It may be dead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Home {
    /// Its identity.
    pub(crate) node: NodeKey,
    /// Its address, if it was live when it got calls.
    pub(crate) ip: Option<IpAddr>,
}

/// A call that was stored.
pub(crate) struct Kept<'m, T> {
    /// What it carries.
    pub(crate) more: &'m mut T,
    /// It was not known to live there.
    pub(crate) is_new: bool,
}

/// Index of an entry plus one; 0 is none, so that unused memory is zero and costs nothing.
type Link = u32;

#[derive(Clone, Copy, Debug)]
struct Entry<T> {
    hash: u64,
    seen: Time,
    filed: Time,
    owner: u32,
    next_in_place: Link,
    newer: Link,
    /// Whether it is a call, and not free for one.
    used: bool,
    /// Whether it counts here, and not on the shard that it began on.
    counts: bool,
    more: T,
}

/// Several owners may name one node after failovers.
#[derive(Clone, Copy, Debug)]
struct Owner {
    home: Home,
    calls: usize,
    /// Those of them that count.
    counted: usize,
}

#[allow(clippy::indexing_slicing)] // links and owners are made here, never by a peer
impl<T: Copy + Default> Memory<T> {
    /// Remembers at most `calls_max` calls, none longer than `idle` after its last message.
    pub(crate) fn new(calls_max: usize, idle: Duration) -> Memory<T> {
        let calls_max = calls_max.min(CALLS_MAX);
        Memory {
            places: vec![0; calls_max.next_power_of_two()],
            entries: Vec::with_capacity(calls_max),
            free: 0,
            oldest: 0,
            newest: 0,
            calls: 0,
            counted: 0,
            owners: Vec::new(),
            current: ahash::HashMap::default(),
            spread: ahash::RandomState::new(),
            idle,
            calls_max,
        }
    }

    /// Other limits; the calls that they have room for stay. Reads the whole table if its size changes.
    pub(crate) fn configure(&mut self, calls_max: usize, idle: Duration) {
        self.idle = idle;
        let calls_max = calls_max.min(CALLS_MAX);
        if calls_max == self.calls_max {
            return;
        }
        while self.calls > calls_max {
            self.evict();
        }
        self.calls_max = calls_max;
        self.entries.reserve_exact(calls_max.saturating_sub(self.entries.len()));
        self.places = vec![0; calls_max.next_power_of_two()];
        for at in 0..self.entries.len() {
            if self.entries[at].used {
                let place = self.place(self.entries[at].hash);
                self.entries[at].next_in_place = self.places[place];
                self.places[place] = link(at);
            }
        }
    }

    /// Calls in the table that count; those that fell idle leave it as messages come.
    pub(crate) fn len(&self) -> usize {
        self.counted
    }

    /// Where the call lives. It is in use from now on.
    pub(crate) fn find(&mut self, now: Time, hash: u64) -> Option<Home> {
        let owner = self.touch(now, hash)?.owner;
        Some(self.owners[owner as usize].home)
    }

    /// The call lives on this node from now on. Past the limit the oldest call is forgotten. `counts`: it has
    /// begun here; another shard may have begun it, where it counts unless it has been counted here.
    pub(crate) fn store(&mut self, now: Time, hash: u64, node: &Node, counts: bool) {
        self.put(now, hash, node, counts);
    }

    /// As [`Memory::store`], and it counts; what it carries is the caller's to change. `None`: nothing is kept.
    pub(crate) fn keep(&mut self, now: Time, hash: u64, node: &Node) -> Option<Kept<'_, T>> {
        self.put(now, hash, node, true)
    }

    fn put(&mut self, now: Time, hash: u64, node: &Node, mut counts: bool) -> Option<Kept<'_, T>> {
        self.expire(now);
        if self.calls_max == 0 {
            return None;
        }
        let owner = self.owner_of(node);
        self.owners[owner as usize].calls += 1;
        if let Some(at) = self.lookup(hash) {
            let entry = &mut self.entries[at];
            let before = &mut self.owners[entry.owner as usize];
            before.calls -= 1;
            before.counted -= usize::from(entry.counts);
            self.counted -= usize::from(entry.counts);
            let mut is_new = before.home.node != node.key;
            if now.since(entry.seen) > self.idle {
                entry.more = T::default(); // another call that has the old one's name
                is_new = true;
            } else {
                counts |= entry.counts;
            }
            (entry.owner, entry.seen, entry.counts) = (owner, now, counts);
            self.owners[owner as usize].counted += usize::from(counts);
            self.counted += usize::from(counts);
            return Some(Kept { more: &mut entry.more, is_new });
        }
        if self.calls == self.calls_max {
            self.evict();
        }
        let more = T::default();
        let (seen, filed, next_in_place, newer) = (now, now, 0, 0);
        self.owners[owner as usize].counted += usize::from(counts);
        self.counted += usize::from(counts);
        let entry =
            Entry { hash, seen, filed, owner, next_in_place, newer, used: true, counts, more };
        let at = match index(self.free) {
            Some(at) => {
                self.free = self.entries[at].newer;
                self.entries[at] = entry;
                at
            }
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        };
        let place = self.place(hash);
        self.entries[at].next_in_place = self.places[place];
        self.places[place] = link(at);
        self.file(at);
        self.calls += 1;
        Some(Kept { more: &mut self.entries[at].more, is_new: true })
    }

    /// What a remembered call carries. It is in use from now on.
    pub(crate) fn find_more(&mut self, now: Time, hash: u64) -> Option<&mut T> {
        self.touch(now, hash).map(|it| &mut it.more)
    }

    /// All calls of a node that are not idle: hash and what they carry. Reads the whole table.
    pub(crate) fn all_of(&self, now: Time, node: NodeKey) -> impl Iterator<Item = (u64, T)> + '_ {
        let is_there = move |it: &&Entry<T>| {
            it.used
                && self.owners[it.owner as usize].home.node == node
                && now.since(it.seen) <= self.idle
        };
        self.entries.iter().filter(is_there).map(|it| (it.hash, it.more))
    }

    /// Calls that live on a node.
    pub(crate) fn calls_of(&self, node: NodeKey) -> usize {
        self.owners.iter().filter(|it| it.home.node == node).map(|it| it.calls).sum()
    }

    /// Nodes that calls live on, and how many count on each.
    pub(crate) fn calls_by_node(&self) -> BTreeMap<NodeKey, u64> {
        let mut calls = BTreeMap::new();
        for owner in self.owners.iter().filter(|it| it.counted > 0) {
            *calls.entry(owner.home.node).or_default() += owner.counted as u64;
        }
        calls
    }

    /// All calls of `from` live on `to` from now on, however many they are. `ip` is the address of `to`,
    /// if it is known.
    pub(crate) fn move_all(&mut self, from: NodeKey, to: NodeKey, ip: Option<IpAddr>) {
        if from == to {
            return;
        }
        let known = self.owners.iter().find(|it| it.home.node == to).and_then(|it| it.home.ip);
        for owner in self.owners.iter_mut().filter(|it| it.home.node == from) {
            owner.home = Home { node: to, ip: ip.or(known) };
        }
        if let Some(owner) = self.current.remove(&from) {
            self.current.entry(to).or_insert(owner);
        }
    }

    /// Looks at the few calls filed first: forgets the idle ones, files those in use again.
    fn expire(&mut self, now: Time) {
        for _ in 0..STEPS {
            let Some(at) = index(self.oldest) else { return };
            let entry = self.entries[at];
            if now.since(entry.filed) <= self.idle {
                return; // those behind it were filed later
            }
            self.unfile();
            if now.since(entry.seen) > self.idle {
                self.forget(at);
            } else {
                self.file(at);
            }
        }
    }

    /// Forgets the call filed first; one used since then gets a second chance.
    fn evict(&mut self) {
        for step in 1..=STEPS {
            let Some(at) = index(self.oldest) else { return };
            self.unfile();
            if step == STEPS || self.entries[at].seen == self.entries[at].filed {
                self.forget(at);
                return;
            }
            self.file(at);
        }
    }

    /// Puts an entry behind all others. Its turn comes when it would be idle if it is not seen again.
    fn file(&mut self, at: usize) {
        self.entries[at].filed = self.entries[at].seen;
        self.entries[at].newer = 0;
        match index(self.newest) {
            Some(newest) => self.entries[newest].newer = link(at),
            None => self.oldest = link(at),
        }
        self.newest = link(at);
    }

    /// Takes the entry filed first out of the order.
    fn unfile(&mut self) {
        let Some(at) = index(self.oldest) else { return };
        self.oldest = self.entries[at].newer;
        if self.oldest == 0 {
            self.newest = 0;
        }
    }

    /// Drops an entry that is out of the order.
    fn forget(&mut self, at: usize) {
        let Entry { hash, owner, next_in_place, counts, .. } = self.entries[at];
        let place = self.place(hash);
        if self.places[place] == link(at) {
            self.places[place] = next_in_place;
        } else {
            let mut before = index(self.places[place]);
            while let Some(it) = before {
                if self.entries[it].next_in_place == link(at) {
                    self.entries[it].next_in_place = next_in_place;
                    break;
                }
                before = index(self.entries[it].next_in_place);
            }
        }
        self.owners[owner as usize].calls -= 1;
        self.owners[owner as usize].counted -= usize::from(counts);
        self.counted -= usize::from(counts);
        self.entries[at].used = false;
        self.entries[at].newer = self.free;
        self.free = link(at);
        self.calls -= 1;
    }

    /// A call that is not idle, in use from now on.
    fn touch(&mut self, now: Time, hash: u64) -> Option<&mut Entry<T>> {
        self.expire(now);
        let at = self.lookup(hash)?;
        let entry = &mut self.entries[at];
        if now.since(entry.seen) > self.idle {
            return None;
        }
        entry.seen = now;
        Some(entry)
    }

    fn lookup(&self, hash: u64) -> Option<usize> {
        let mut next = self.places[self.place(hash)];
        while let Some(at) = index(next) {
            if self.entries[at].hash == hash {
                return Some(at);
            }
            next = self.entries[at].next_in_place;
        }
        None
    }

    fn place(&self, hash: u64) -> usize {
        let mask = self.places.len() - 1;
        usize::try_from(self.spread.hash_one(hash)).unwrap_or(0) & mask
    }

    /// The owner for new calls of a node: its own, or a fresh one.
    fn owner_of(&mut self, node: &Node) -> u32 {
        if let Some(owner) = self.current.get(&node.key) {
            return *owner;
        }
        let fresh =
            Owner { home: Home { node: node.key, ip: Some(node.ip) }, calls: 0, counted: 0 };
        // Nodes that came and went leave owners behind: use those again before there are too many.
        let unused = (self.owners.len() >= OWNERS_MAX)
            .then(|| self.owners.iter().position(|it| it.calls == 0))
            .flatten();
        let owner = match unused {
            Some(owner) => {
                let before = self.owners[owner].home.node;
                if self.current.get(&before).is_some_and(|it| *it as usize == owner) {
                    self.current.remove(&before);
                }
                self.owners[owner] = fresh;
                owner
            }
            None => {
                self.owners.push(fresh);
                self.owners.len() - 1
            }
        };
        let owner = u32::try_from(owner).unwrap_or(0); // at most a few thousand
        self.current.insert(node.key, owner);
        owner
    }
}

/// The entry that a link names.
fn index(link: Link) -> Option<usize> {
    usize::try_from(link).ok()?.checked_sub(1)
}

/// The link that names an entry.
fn link(index: usize) -> Link {
    Link::try_from(index + 1).unwrap_or(0)
}

/// What a [`Link`] can name with room to spare.
const CALLS_MAX: usize = 1 << 30;

/// Entries looked at per message: more than one, so that a burst that fell idle drains faster than the
/// next one fills.
const STEPS: usize = 4;

/// Twice the nodes that a snapshot can have: all live ones and as many that left calls behind.
const OWNERS_MAX: usize = 2 * NODES_MAX;

const _: () = assert!(size_of::<Entry<()>>() + 2 * size_of::<Link>() <= 64, "see Calls");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::testing::{Numbers, node};

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1_000)
    }

    #[test]
    fn a_call_is_remembered_until_it_has_been_idle_too_long() {
        let mut memory = Memory::<()>::new(10, Duration::from_secs(5));
        memory.store(at(0), 1, &node(1), true);
        memory.store(at(0), 2, &node(2), true);
        for second in [3, 6, 11, 16] {
            let home = memory.find(at(second), 1).map(|it| it.node);
            assert_eq!(home, Some(node(1).key), "second {second}");
        }
        assert_eq!(memory.len(), 1, "the idle one left on the way");
        assert_eq!(memory.find(at(16), 2), None);
        assert_eq!(memory.find(at(22), 1), None);
        assert_eq!(memory.len(), 0);
        assert_eq!(memory.calls_of(node(1).key), 0);
    }

    #[test]
    fn an_idle_call_in_a_crowd_is_not_found_even_before_it_leaves() {
        let mut memory = Memory::<()>::new(1_000, Duration::from_secs(5));
        for hash in 0..1_000 {
            memory.store(at(0), hash, &node(1), true);
        }
        assert_eq!(memory.find(at(6), 999), None);
        assert!(memory.len() > 900, "a message pays for a few only");
        for _ in 0..250 {
            memory.find(at(6), 5_000);
        }
        assert_eq!(memory.len(), 0);
    }

    #[test]
    fn the_oldest_call_makes_room_but_one_in_use_stays() {
        let mut memory = Memory::<()>::new(8, Duration::from_secs(500));
        for hash in 0..8 {
            memory.store(at(hash), hash, &node(1), true);
        }
        memory.find(at(8), 0);
        memory.store(at(9), 8, &node(1), true);
        assert_eq!(memory.len(), 8);
        assert!(memory.find(at(9), 0).is_some(), "used");
        assert_eq!(memory.find(at(9), 1), None, "oldest that was not");
        assert!(memory.find(at(9), 2).is_some());
    }

    #[test]
    fn the_table_is_bounded_and_takes_no_more_space() {
        for calls_max in [0, 1, 7, 1_000] {
            let mut memory = Memory::<()>::new(calls_max, Duration::from_secs(500));
            let space = memory.entries.capacity();
            for hash in 0..3 * calls_max as u64 + 3 {
                memory.store(at(0), hash, &node(1), true);
                memory.find(at(0), hash / 2);
                assert!(memory.len() <= calls_max, "{calls_max}");
            }
            assert_eq!(memory.len(), calls_max);
            assert_eq!(memory.entries.capacity(), space);
        }
    }

    #[test]
    fn another_size_keeps_the_calls_that_it_has_room_for() {
        let mut memory = Memory::<()>::new(100, Duration::from_secs(500));
        for hash in 0..100 {
            memory.store(at(hash), hash, &node(1), true);
        }
        for (calls_max, kept) in [(1_000, 100), (1_000, 100), (40, 40), (41, 40)] {
            memory.configure(calls_max, Duration::from_secs(500));
            let found: Vec<u64> = (0..100).filter(|it| memory.lookup(*it).is_some()).collect();
            let newest: Vec<u64> = (100 - kept..100).collect();
            assert_eq!(found, newest, "{calls_max}");
            assert_eq!(memory.calls_of(node(1).key), newest.len());
        }
        for hash in 100..200 {
            memory.store(at(hash), hash, &node(2), true);
            assert!(memory.len() <= 41, "call {hash}");
            assert!(memory.find(at(hash), hash).is_some(), "call {hash}");
        }
        memory.configure(0, Duration::from_secs(500));
        memory.store(at(200), 200, &node(1), true);
        assert_eq!(memory.len(), 0);
    }

    #[test]
    fn a_table_full_of_calls_in_use_still_makes_room() {
        let mut memory = Memory::<()>::new(100, Duration::from_secs(500));
        for hash in 0..300 {
            memory.store(at(hash), hash, &node(1), true);
            for recent in hash.saturating_sub(99)..=hash {
                memory.find(at(hash + 1), recent);
            }
            assert!(memory.len() <= 100, "call {hash}");
            assert!(memory.find(at(hash + 1), hash).is_some(), "call {hash}");
        }
        assert_eq!(memory.len(), 100);
    }

    /// Any order of operations, against a table that scans.
    #[test]
    fn it_does_what_a_plain_list_does() {
        for seed in 1..=200 {
            let mut numbers = Numbers(seed * 0x9E37_79B9);
            let mut memory = Memory::<()>::new(64, Duration::from_secs(20));
            let mut plain: Vec<(u64, NodeKey, u64)> = Vec::new(); // hash, node, seen
            let mut now = 0;
            for step in 0..500 {
                now += numbers.next() % 2;
                let hash = numbers.next() % 48; // never full: eviction has its own test
                let (from, to) =
                    (node((numbers.next() % 4) as u16), node((numbers.next() % 4) as u16));
                plain.retain(|it| now - it.2 <= 20);
                match numbers.next() % 8 {
                    0..4 => {
                        let want = plain.iter_mut().find(|it| it.0 == hash).map(|it| {
                            it.2 = now;
                            it.1
                        });
                        let got = memory.find(at(now), hash).map(|it| it.node);
                        assert_eq!(got, want, "seed {seed} step {step}");
                    }
                    4..7 => {
                        plain.retain(|it| it.0 != hash);
                        plain.push((hash, to.key, now));
                        memory.store(at(now), hash, &to, true);
                    }
                    _ => {
                        for call in plain.iter_mut().filter(|it| it.1 == from.key) {
                            call.1 = to.key;
                        }
                        memory.move_all(from.key, to.key, Some(to.ip));
                    }
                }
                let total: usize = (0..4).map(|it| memory.calls_of(node(it).key)).sum();
                assert_eq!(total, memory.len(), "seed {seed} step {step}");
                assert!(memory.len() >= plain.len(), "seed {seed} step {step}");
            }
        }
    }

    #[test]
    fn nodes_that_come_and_go_leave_nothing_behind() {
        let mut memory = Memory::<()>::new(4, Duration::from_secs(5));
        for number in 0..u16::MAX {
            memory.store(at(0), u64::from(number), &node(number), true);
        }
        assert!(memory.owners.len() <= OWNERS_MAX);
        assert!(memory.current.len() <= OWNERS_MAX);
        assert_eq!(
            memory.find(at(0), u64::from(u16::MAX) - 1).unwrap().node,
            node(u16::MAX - 1).key
        );
    }
}
