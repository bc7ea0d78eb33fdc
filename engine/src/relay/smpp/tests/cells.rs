//! Every state with every kind of PDU, in both parts and both modes: the relay does what the tables of
//! [`protocols::smpp::session`] say.

use protocols::smpp::session::{Action, ClientState, Kind};

use super::*;
use crate::stats::smpp::SmppDrop;

const COMMANDS: [u32; 18] = [
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0b, 0x15, 0x21, 0x102, 0x103, 0x111,
    0x112, 0x113, 0x7777,
];

/// Every command with its response, and generic_nack.
fn commands() -> impl Iterator<Item = Command> {
    let requests = COMMANDS.into_iter().map(Command);
    requests.clone().chain(requests.map(Command::response)).chain([Command::GENERIC_NACK])
}

const SEQUENCE: u32 = 4711;

fn sample(command: Command) -> Vec<u8> {
    match Kind::of(command, false) {
        Kind::Bind => bind(command, SEQUENCE, "secret"),
        _ => request(command, SEQUENCE, b"some body"),
    }
}

/// A world with one session in `state`, and its SMSC connection if it has one.
fn session_in(state: ServerState, is_mux: bool) -> (World, Conn, Option<Conn>) {
    let only_one = |it: &mut SmppSettings| it.servers.truncate(1);
    let mut it = if is_mux { World::mux(only_one) } else { World::new(only_one) };
    if matches!(state, ServerState::Open | ServerState::Binding) {
        let esme = it.open();
        if state == ServerState::Binding {
            it.say(esme, &bind(Command::BIND_TRANSCEIVER, 1, "secret"));
        }
        return (it, esme, None);
    }
    let (esme, smsc) = if is_mux {
        let (esme, servers) = it.join(Command::BIND_TRANSCEIVER);
        (esme, servers[0].0)
    } else {
        let (esme, smsc, _) = it.bound();
        (esme, smsc)
    };
    match state {
        ServerState::Rebinding => it.lose(smsc, Gone::Reset),
        ServerState::Unbinding => it.say(smsc, &request(Command::UNBIND, 5, b"")),
        ServerState::Closed => {
            it.say(esme, &request(Command::UNBIND, 5, b""));
            if let Some(sent) = it.heard(smsc).into_iter().find(|it| it.command == Command::UNBIND)
            {
                it.say(smsc, &response(&sent, Status::OK, b""));
            }
        }
        _ => {}
    }
    it.heard(esme);
    it.heard(smsc);
    (it, esme, Some(smsc))
}

/// What of an action shows at the sender: its answer, and whether it is closed. `None`: no answer.
fn answer_of(action: Action, command: Command) -> (Option<(Command, Status)>, bool) {
    let response = command.response();
    match action {
        Action::Answer | Action::AnswerAndClose => {
            (Some((response, Status::OK)), action == Action::AnswerAndClose)
        }
        Action::Refuse(status) => (Some((response, status)), false),
        Action::RefuseAndClose(status) => (Some((response, status)), true),
        Action::Nack => (Some((Command::GENERIC_NACK, Status::INVALID_COMMAND_ID)), false),
        _ => (None, false),
    }
}

#[test]
fn the_server_part_does_what_the_table_says() {
    for is_mux in [false, true] {
        for state in ServerState::ALL {
            for command in commands() {
                let case = format!("{} {command:?}, mux {is_mux}", state.as_str());
                let (mut it, esme, smsc) = session_in(state, is_mux);
                assert_eq!(it.state(esme), Some(state), "{case}");
                let dropped = |it: &mut World| {
                    let counters = it.smpp.counters();
                    counters.drops(SmppDrop::State) + counters.drops(SmppDrop::Unexpected)
                };
                let before = dropped(&mut it);
                it.say(esme, &sample(command));
                let action = state.on(Kind::of(command, false));
                let heard = it.heard(esme);
                let passed = smsc.map(|smsc| it.heard(smsc)).unwrap_or_default();
                let (mut answer, mut is_over) = answer_of(action, command);
                let mut crosses = false;
                let mut goes_down = false;
                match action {
                    Action::Bind => {
                        assert_eq!(it.state(esme), Some(ServerState::Binding), "{case}")
                    }
                    Action::Forward => crosses = true,
                    Action::Unbind if is_mux => {
                        answer = Some((UNBIND_RESP, Status::OK));
                        is_over = true;
                        goes_down = true; // it was the last session
                    }
                    Action::Unbind => {
                        crosses = true;
                        assert_eq!(it.state(esme), Some(ServerState::Unbinding), "{case}");
                    }
                    Action::Drop | Action::Return | Action::Unbound => {
                        assert_eq!(dropped(&mut it), before + 1, "{case}: nobody asked");
                    }
                    Action::Bound | Action::Pass => panic!("{case}: {action:?}"),
                    _ => {}
                }
                let got: Vec<_> = heard.iter().map(Said::head).collect();
                let want: Vec<_> = answer.iter().map(|it| (it.0, it.1, SEQUENCE)).collect();
                assert_eq!(got, want, "{case}");
                if crosses {
                    let sent = &sample(command)[16..];
                    assert_eq!(passed.len(), 1, "{case}");
                    assert_eq!((passed[0].command, &passed[0].body[..]), (command, sent), "{case}");
                } else if !goes_down {
                    assert_eq!(passed, [], "{case}");
                }
                if is_over {
                    let left = it.state(esme);
                    assert!(matches!(left, None | Some(ServerState::Closed)), "{case}: {left:?}");
                } else if !matches!(action, Action::Bind | Action::Unbind) {
                    assert_eq!(it.state(esme), Some(state), "{case}");
                }
                it.pass_millis(60_000);
            }
        }
    }
}

/// A world with an SMSC connection in `state`, and the ESME in front of it.
fn provider_in(state: ClientState, is_mux: bool) -> (World, Conn, Conn) {
    let only_one = |it: &mut SmppSettings| {
        it.servers.truncate(1);
        it.connect = Duration::from_secs(600);
        it.response = Duration::from_secs(600);
    };
    let mut it = if is_mux { World::mux(only_one) } else { World::new(only_one) };
    let (esme, smsc) = match state {
        ClientState::Initial | ClientState::Open | ClientState::Binding => {
            let esme = it.open();
            it.say(esme, &bind(Command::BIND_TRANSCEIVER, 1, "secret"));
            let smsc = it.wire.connecting[0].0;
            if state != ClientState::Initial {
                it.accept();
            }
            (esme, smsc)
        }
        _ if is_mux => {
            let (esme, servers) = it.join(Command::BIND_TRANSCEIVER);
            (esme, servers[0].0)
        }
        _ => {
            let (esme, smsc, _) = it.bound();
            (esme, smsc)
        }
    };
    let smsc = match state {
        ClientState::Rebinding => {
            it.lose(smsc, Gone::Reset);
            it.pass_millis(500);
            it.accept()[0].0
        }
        ClientState::Unbinding => {
            it.say(esme, &request(Command::UNBIND, 5, b""));
            smsc
        }
        _ => smsc,
    };
    if state == ClientState::Open {
        // It lasts no longer than it takes to send the bind: put there by hand.
        it.smpp.legs.provider_mut(smsc).unwrap().state = ClientState::Open;
    }
    it.heard(esme);
    it.heard(smsc);
    (it, esme, smsc)
}

#[test]
fn the_client_part_does_what_the_table_says() {
    for is_mux in [false, true] {
        // CLOSED: the connection is forgotten, there is nobody to send to.
        for state in ClientState::ALL.into_iter().filter(|it| *it != ClientState::Closed) {
            for command in commands() {
                let case = format!("{} {command:?}, mux {is_mux}", state.as_str());
                let (mut it, esme, smsc) = provider_in(state, is_mux);
                assert_eq!(it.smpp.legs.provider(smsc).unwrap().state, state, "{case}");
                it.say(smsc, &sample(command));
                let action = state.on(Kind::of(command, false));
                let heard = it.heard(smsc);
                let passed = it.heard(esme);
                let (mut answer, is_over) = answer_of(action, command);
                let mut crosses = matches!(action, Action::Forward | Action::Pass);
                match action {
                    Action::Unbind if is_mux => answer = Some((UNBIND_RESP, Status::OK)),
                    Action::Unbind => crosses = true,
                    Action::Bind | Action::RefuseAndClose(_) => panic!("{case}: {action:?}"),
                    _ => {}
                }
                let got: Vec<_> = heard.iter().map(Said::head).collect();
                let want: Vec<_> = answer.iter().map(|it| (it.0, it.1, SEQUENCE)).collect();
                assert_eq!(got, want, "{case}");
                if crosses {
                    let sent = &sample(command)[16..];
                    assert_eq!(passed.len(), 1, "{case}");
                    assert_eq!((passed[0].command, &passed[0].body[..]), (command, sent), "{case}");
                }
                let left = it.smpp.legs.provider(smsc).map(|it| it.state);
                match action {
                    Action::Unbind if is_mux => assert_eq!(left, None, "{case}"),
                    Action::Unbind => assert_eq!(left, Some(ClientState::Unbinding), "{case}"),
                    _ if is_over => assert_eq!(left, None, "{case}"),
                    _ => assert_eq!(left, Some(state), "{case}"),
                }
                it.pass_millis(700_000);
            }
        }
    }
}
