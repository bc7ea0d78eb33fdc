//! All sessions of a system_id share one connection to each server.

mod binds;
mod ends;
mod messages;
mod turns;

use super::*;
use crate::config::{SmppFull, SmppToNode, SmppToProvider};
use crate::relay::smpp::{SecureServers, SmppReceipts, TLS_LISTENER, owner};
use crate::relay::stream::Handover;
use crate::stats::smpp::SmppDrop;

const TRX: Command = Command::BIND_TRANSCEIVER;

/// `count` sessions of one system_id and their servers.
fn shared(it: &mut World, count: usize) -> (Vec<Conn>, Vec<Conn>) {
    let (first, servers) = it.join(TRX);
    let mut esmes = vec![first];
    for _ in 1..count {
        let (esme, more) = it.join(TRX);
        assert!(more.is_empty(), "nothing is connected for who comes later");
        esmes.push(esme);
    }
    (esmes, servers.into_iter().map(|it| it.0).collect())
}

/// Answers everything a server was asked; returns how many submit_sm that was.
fn serve(it: &mut World, smsc: Conn) -> usize {
    let asked = it.heard(smsc);
    asked.iter().for_each(|one| it.say(smsc, &response(one, Status::OK, b"id\0")));
    asked.iter().filter(|it| it.command == Command::SUBMIT_SM).count()
}
