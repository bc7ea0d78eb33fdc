//! The relay's connections by number, and when each must be looked at.
//!
//! A slot has one deadline. The heap has at most a few entries per slot: a deadline that moves away is not
//! taken out but looked at again when its entry is due, so that a request costs no work here.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use protocols::time::Time;

use super::peer::{Client, Node, Peer};
use super::pool::Place;
use crate::node::NodeKey;
use crate::relay::stream::Conn;
use crate::snapshot::Snapshot;

/// Connections and deadlines.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    due: BinaryHeap<Reverse<(Time, u32)>>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    peer: Option<Peer>,
    deadline: Option<Time>,
    /// The earliest entry of this slot in the heap. Outlives the connection.
    armed: Option<Time>,
}

impl Slots {
    /// `None`: no number is left.
    pub(super) fn insert(&mut self, peer: Peer) -> Option<Conn> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot { generation: 0, peer: None, deadline: None, armed: None });
                slot
            }
        };
        let it = self.slots.get_mut(slot as usize)?;
        it.peer = Some(peer);
        it.deadline = None;
        Some(Conn { slot, generation: it.generation })
    }

    pub(super) fn remove(&mut self, conn: Conn) -> Option<Peer> {
        let slot = self.slot(conn)?;
        let peer = slot.peer.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        slot.deadline = None;
        self.free.push(conn.slot);
        Some(peer)
    }

    pub(super) fn is_client(&self, conn: Conn) -> Option<bool> {
        let slot = self.slots.get(conn.slot as usize)?;
        let peer = slot.peer.as_ref().filter(|_| slot.generation == conn.generation)?;
        Some(matches!(peer, Peer::Client(_)))
    }

    pub(super) fn client(&mut self, conn: Conn) -> Option<&mut Client> {
        match self.slot(conn)?.peer.as_mut()? {
            Peer::Client(it) => Some(it),
            Peer::Node(_) => None,
        }
    }

    pub(super) fn node(&mut self, conn: Conn) -> Option<&mut Node> {
        match self.slot(conn)?.peer.as_mut()? {
            Peer::Node(it) => Some(it),
            Peer::Client(_) => None,
        }
    }

    fn slot(&mut self, conn: Conn) -> Option<&mut Slot> {
        self.slots.get_mut(conn.slot as usize).filter(|it| it.generation == conn.generation)
    }

    /// Looks at the connection then, and not before.
    pub(super) fn arm(&mut self, conn: Conn, deadline: Time) {
        let Some(slot) = self.slot(conn) else { return };
        slot.deadline = Some(deadline);
        if slot.armed.is_none_or(|armed| deadline < armed) {
            slot.armed = Some(deadline);
            self.due.push(Reverse((deadline, conn.slot)));
        }
    }

    /// When [`Slots::expired`] has something to look at.
    pub(super) fn next(&self) -> Option<Time> {
        self.due.peek().map(|Reverse((time, _))| *time)
    }

    /// A connection whose time has come. Its deadline is taken off.
    pub(super) fn expired(&mut self, now: Time) -> Option<Conn> {
        while let Some(Reverse((time, index))) = self.due.peek().copied() {
            if time > now {
                return None;
            }
            self.due.pop();
            let Some(slot) = self.slots.get_mut(index as usize) else { continue };
            if slot.armed != Some(time) {
                continue; // an earlier entry was pushed since
            }
            slot.armed = None;
            match slot.deadline {
                Some(deadline) if deadline > now => {
                    slot.armed = Some(deadline);
                    self.due.push(Reverse((deadline, index)));
                }
                Some(_) => {
                    slot.deadline = None;
                    return Some(Conn { slot: index, generation: slot.generation });
                }
                None => {}
            }
        }
        None
    }

    /// Every client's connection.
    pub(super) fn clients(&self) -> Vec<Conn> {
        self.those(|it| matches!(it, Peer::Client(_)))
    }

    /// Every connection to a node.
    pub(super) fn nodes(&self) -> Vec<Conn> {
        self.those(|it| matches!(it, Peer::Node(_)))
    }

    fn those(&self, is_it: impl Fn(&Peer) -> bool) -> Vec<Conn> {
        let numbered = (0..).zip(&self.slots);
        numbered
            .filter(|(_, it)| it.peer.as_ref().is_some_and(&is_it))
            .map(|(slot, it)| Conn { slot, generation: it.generation })
            .collect()
    }

    /// Nodes that have another identity now are known by that.
    pub(super) fn rename_nodes(&mut self, snapshot: &Snapshot) {
        let rename = |place: &mut Place| {
            let id = place.node.and_then(|it| snapshot.find(it));
            place.node = id.map(|it| snapshot.node(it).key).or(place.node);
        };
        for peer in self.slots.iter_mut().filter_map(|it| it.peer.as_mut()) {
            match peer {
                Peer::Node(node) => rename(&mut node.place),
                Peer::Client(client) => {
                    let mut exchange = client.exchange.as_deref_mut();
                    if let Some(it) = &mut exchange {
                        it.followers.iter_mut().filter_map(|it| it.place.as_mut()).for_each(rename);
                        it.place.as_mut().into_iter().for_each(rename);
                    }
                }
            }
        }
    }

    /// The node of every connection that carries something.
    pub(super) fn busy_nodes(&self) -> impl Iterator<Item = NodeKey> + '_ {
        self.slots.iter().filter_map(|it| match &it.peer {
            Some(Peer::Node(node)) if node.client.is_some() => node.place.node,
            _ => None,
        })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.due.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn client() -> Peer {
        Peer::Client(Client::new(0, "192.0.2.1:1".parse().unwrap()))
    }

    #[test]
    fn an_old_number_means_nothing() {
        let mut slots = Slots::default();
        let old = slots.insert(client()).unwrap();
        assert!(slots.remove(old).is_some());
        let new = slots.insert(client()).unwrap();
        assert_eq!((new.slot, new.generation), (old.slot, old.generation + 1));
        assert!(slots.client(old).is_none() && slots.remove(old).is_none());
        assert!(slots.client(new).is_some());
    }

    #[test]
    fn deadlines_move_without_work_and_come_in_order() {
        let mut slots = Slots::default();
        let one = slots.insert(client()).unwrap();
        let two = slots.insert(client()).unwrap();
        slots.arm(one, at(100));
        for millis in 101..1_000 {
            slots.arm(one, at(millis));
        }
        slots.arm(two, at(500));
        assert_eq!(slots.entries(), 2);
        assert_eq!(slots.expired(at(99)), None);
        assert_eq!(slots.expired(at(100)), None, "it moved");
        assert_eq!(slots.expired(at(600)), Some(two));
        slots.arm(one, at(700));
        assert_eq!(slots.expired(at(700)), Some(one));
        assert_eq!((slots.expired(at(5_000)), slots.next()), (None, None));
    }

    #[test]
    fn many_short_connections_leave_few_entries() {
        let mut slots = Slots::default();
        for round in 0..10_000 {
            let conn = slots.insert(client()).unwrap();
            slots.arm(conn, at(round + 60_000));
            slots.remove(conn);
        }
        assert_eq!(slots.entries(), 1);
    }
}
