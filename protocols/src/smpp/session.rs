//! The two state machines of a balanced session as tables: what a PDU of each kind does in each state.
//!
//! The *server part* faces the ESME, the *client part* faces the SMSC; names and meaning of the states
//! are guide 1.8's, the cells `http-smpp-registry.md` 2.2, 2.3 and 2.8. The tables say what to do with a
//! PDU; who owns the connections and the numbers does it.

use super::{Command, Status};

/// What a PDU is, as far as the tables tell PDUs apart.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// bind_receiver, bind_transmitter, bind_transceiver.
    Bind,
    /// Response to one.
    BindResp,
    /// unbind.
    Unbind,
    /// Response to it.
    UnbindResp,
    /// enquire_link.
    EnquireLink,
    /// Response to it.
    EnquireLinkResp,
    /// What only an ESME asks for: submit_sm, submit_multi, query_sm, cancel_sm, replace_sm, and the
    /// broadcast operations of SMPP 5.0.
    Submit,
    /// Response to one.
    SubmitResp,
    /// deliver_sm, which only an SMSC sends.
    Deliver,
    /// Response to it.
    DeliverResp,
    /// What both may ask for: data_sm.
    Data,
    /// Response to it.
    DataResp,
    /// alert_notification, which only an SMSC sends and nobody answers.
    Alert,
    /// generic_nack.
    Nack,
    /// Any other request: outbind, reserved ids.
    Unknown,
    /// Any other response.
    UnknownResp,
}

impl Kind {
    /// Every kind, in numeric order.
    pub const ALL: [Kind; 16] = [
        Kind::Bind,
        Kind::BindResp,
        Kind::Unbind,
        Kind::UnbindResp,
        Kind::EnquireLink,
        Kind::EnquireLinkResp,
        Kind::Submit,
        Kind::SubmitResp,
        Kind::Deliver,
        Kind::DeliverResp,
        Kind::Data,
        Kind::DataResp,
        Kind::Alert,
        Kind::Nack,
        Kind::Unknown,
        Kind::UnknownResp,
    ];

    /// Sorts a command in. With `vendor` the ids that SMPP sets aside for vendors (§5.1.2.1) count as
    /// requests that both sides may send.
    pub const fn of(command: Command, vendor: bool) -> Kind {
        let is_response = command.is_response();
        let (request, response) = match command.request() {
            Command::BIND_RECEIVER | Command::BIND_TRANSMITTER | Command::BIND_TRANSCEIVER => {
                (Kind::Bind, Kind::BindResp)
            }
            Command::UNBIND => (Kind::Unbind, Kind::UnbindResp),
            Command::ENQUIRE_LINK => (Kind::EnquireLink, Kind::EnquireLinkResp),
            Command::SUBMIT_SM
            | Command::SUBMIT_MULTI
            | Command::QUERY_SM
            | Command::CANCEL_SM
            | Command::REPLACE_SM
            | Command::BROADCAST_SM
            | Command::QUERY_BROADCAST_SM
            | Command::CANCEL_BROADCAST_SM => (Kind::Submit, Kind::SubmitResp),
            Command::DELIVER_SM => (Kind::Deliver, Kind::DeliverResp),
            Command::DATA_SM => (Kind::Data, Kind::DataResp),
            Command::ALERT_NOTIFICATION => (Kind::Alert, Kind::UnknownResp),
            Command(0) => (Kind::Unknown, Kind::Nack),
            Command(0x0001_0200..=0x0001_02ff) if vendor => (Kind::Data, Kind::DataResp),
            _ => (Kind::Unknown, Kind::UnknownResp),
        };
        if is_response { response } else { request }
    }

    /// Whether somebody waits for an answer to it.
    pub const fn is_request(self) -> bool {
        match self {
            Kind::Bind
            | Kind::Unbind
            | Kind::EnquireLink
            | Kind::Submit
            | Kind::Deliver
            | Kind::Data
            | Kind::Unknown => true,
            Kind::BindResp
            | Kind::UnbindResp
            | Kind::EnquireLinkResp
            | Kind::SubmitResp
            | Kind::DeliverResp
            | Kind::DataResp
            | Kind::Alert
            | Kind::Nack
            | Kind::UnknownResp => false,
        }
    }
}

/// States of the server part, towards the ESME (guide 1.8).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ServerState {
    /// Connected; it may bind.
    Open,
    /// Its bind is under way.
    Binding,
    /// Bound.
    Bound,
    /// The client part has lost its SMSC and looks for another; requests are turned back.
    Rebinding,
    /// An unbind is under way, one way or the other.
    Unbinding,
    /// Over; the connection goes.
    Closed,
}

impl ServerState {
    /// Every state, in numeric order.
    pub const ALL: [ServerState; 6] = [
        ServerState::Open,
        ServerState::Binding,
        ServerState::Bound,
        ServerState::Rebinding,
        ServerState::Unbinding,
        ServerState::Closed,
    ];

    /// As the guide spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            ServerState::Open => "OPEN",
            ServerState::Binding => "BINDING",
            ServerState::Bound => "BOUND",
            ServerState::Rebinding => "REBINDING",
            ServerState::Unbinding => "UNBINDING",
            ServerState::Closed => "CLOSED",
        }
    }

    /// What a PDU from the ESME does.
    #[allow(clippy::indexing_slicing)] // enumerations index a table of their own size
    pub const fn on(self, kind: Kind) -> Action {
        SERVER[kind as usize][self as usize]
    }
}

/// States of the client part, towards the SMSC (guide 1.8).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ClientState {
    /// The connection is being opened.
    Initial,
    /// Connected; the bind goes out.
    Open,
    /// The bind is under way.
    Binding,
    /// Bound.
    Bound,
    /// After a loss: connecting and binding anew.
    Rebinding,
    /// An unbind is under way, one way or the other.
    Unbinding,
    /// Over.
    Closed,
}

impl ClientState {
    /// Every state, in numeric order.
    pub const ALL: [ClientState; 7] = [
        ClientState::Initial,
        ClientState::Open,
        ClientState::Binding,
        ClientState::Bound,
        ClientState::Rebinding,
        ClientState::Unbinding,
        ClientState::Closed,
    ];

    /// As the guide spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            ClientState::Initial => "INITIAL",
            ClientState::Open => "OPEN",
            ClientState::Binding => "BINDING",
            ClientState::Bound => "BOUND",
            ClientState::Rebinding => "REBINDING",
            ClientState::Unbinding => "UNBINDING",
            ClientState::Closed => "CLOSED",
        }
    }

    /// What a PDU from the SMSC does.
    #[allow(clippy::indexing_slicing)] // enumerations index a table of their own size
    pub const fn on(self, kind: Kind) -> Action {
        CLIENT[kind as usize][self as usize]
    }
}

/// What a PDU does.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Action {
    /// Begins the session: OPEN becomes BINDING.
    Bind,
    /// Answers our bind: BOUND, or over.
    Bound,
    /// Goes to the other side under a number of ours, and its answer comes back. Only if the session was
    /// bound as one that may send it; else as [`Action::Refuse`] with
    /// [`Status::INVALID_BIND_STATUS`].
    Forward,
    /// Goes to the other side, and nobody answers it.
    Pass,
    /// Goes back to whoever asked, under its own number; dropped if nobody asked.
    Return,
    /// Begins the end: BOUND becomes UNBINDING.
    Unbind,
    /// Answers an unbind: over.
    Unbound,
    /// Answered by us: all is well. Goes nowhere.
    Answer,
    /// Answered by us: all is well. Then the session is over.
    AnswerAndClose,
    /// A sign of life and nothing else.
    Alive,
    /// Answered by us with this status; by generic_nack if there is no such response.
    Refuse(Status),
    /// The same, and then the session is over.
    RefuseAndClose(Status),
    /// generic_nack with [`Status::INVALID_COMMAND_ID`] and its own number.
    Nack,
    /// Nothing is done; it is counted.
    Drop,
}

use Action::{
    Alive, Answer, AnswerAndClose, Bound, Drop, Forward, Nack, Pass, Refuse, RefuseAndClose,
    Return, Unbind, Unbound,
};

const BUSY: Action = Refuse(Status::INVALID_BIND_STATUS);
const EARLY: Action = RefuseAndClose(Status::INVALID_BIND_STATUS);
const AGAIN: Action = Refuse(Status::ALREADY_BOUND);
const ERROR: Action = Refuse(Status::SYSTEM_ERROR);

/// By kind, then state: OPEN, BINDING, BOUND, REBINDING, UNBINDING, CLOSED.
#[rustfmt::skip]
const SERVER: [[Action; 6]; Kind::ALL.len()] = [
    /* Bind            */ [Action::Bind, BUSY, AGAIN, ERROR, BUSY, Drop],
    /* BindResp        */ [Drop, Drop, Drop, Drop, Drop, Drop],
    /* Unbind          */ [EARLY, BUSY, Unbind, AnswerAndClose, Answer, Drop],
    /* UnbindResp      */ [Drop, Drop, Drop, Drop, Unbound, Drop],
    /* EnquireLink     */ [Answer, Answer, Answer, ERROR, Answer, Drop],
    /* EnquireLinkResp */ [Drop, Drop, Alive, Alive, Alive, Drop],
    /* Submit          */ [EARLY, BUSY, Forward, ERROR, BUSY, Drop],
    /* SubmitResp      */ [Drop, Drop, Drop, Drop, Drop, Drop],
    /* Deliver         */ [EARLY, BUSY, BUSY, ERROR, BUSY, Drop],
    /* DeliverResp     */ [Drop, Drop, Return, Return, Return, Drop],
    /* Data            */ [EARLY, BUSY, Forward, ERROR, BUSY, Drop],
    /* DataResp        */ [Drop, Drop, Return, Return, Return, Drop],
    /* Alert           */ [Drop, Drop, Drop, Drop, Drop, Drop],
    /* Nack            */ [Drop, Drop, Return, Return, Return, Drop],
    /* Unknown         */ [Nack, Nack, Nack, Nack, Nack, Drop],
    /* UnknownResp     */ [Drop, Drop, Drop, Drop, Drop, Drop],
];

/// By kind, then state: INITIAL, OPEN, BINDING, BOUND, REBINDING, UNBINDING, CLOSED.
#[rustfmt::skip]
const CLIENT: [[Action; 7]; Kind::ALL.len()] = [
    /* Bind            */ [Drop, Drop, Nack, Nack, Nack, Nack, Drop],
    /* BindResp        */ [Drop, Drop, Bound, Drop, Bound, Drop, Drop],
    /* Unbind          */ [Drop, Drop, AnswerAndClose, Unbind, AnswerAndClose, Answer, Drop],
    /* UnbindResp      */ [Drop, Drop, Drop, Drop, Drop, Unbound, Drop],
    /* EnquireLink     */ [Drop, Drop, Answer, Answer, Answer, Answer, Drop],
    /* EnquireLinkResp */ [Drop, Drop, Drop, Alive, Drop, Alive, Drop],
    /* Submit          */ [Drop, Drop, Nack, Nack, Nack, Nack, Drop],
    /* SubmitResp      */ [Drop, Drop, Drop, Return, Drop, Return, Drop],
    /* Deliver         */ [Drop, Drop, BUSY, Forward, BUSY, BUSY, Drop],
    /* DeliverResp     */ [Drop, Drop, Drop, Drop, Drop, Drop, Drop],
    /* Data            */ [Drop, Drop, BUSY, Forward, BUSY, BUSY, Drop],
    /* DataResp        */ [Drop, Drop, Drop, Return, Drop, Return, Drop],
    /* Alert           */ [Drop, Drop, Drop, Pass, Drop, Drop, Drop],
    /* Nack            */ [Drop, Drop, Bound, Return, Bound, Return, Drop],
    /* Unknown         */ [Drop, Drop, Nack, Nack, Nack, Nack, Drop],
    /* UnknownResp     */ [Drop, Drop, Drop, Drop, Drop, Drop, Drop],
];

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;

    use super::*;

    /// Every state of both parts with every kind: `(is the server part, state, kind, action)`.
    fn cells() -> impl Iterator<Item = (bool, &'static str, Kind, Action)> {
        Kind::ALL.into_iter().flat_map(|kind| {
            let server =
                ServerState::ALL.into_iter().map(move |it| (true, it.as_str(), kind, it.on(kind)));
            let client =
                ClientState::ALL.into_iter().map(move |it| (false, it.as_str(), kind, it.on(kind)));
            server.chain(client)
        })
    }

    /// `http-smpp-registry.md` 2.2 with what 2.8 puts right, written out by hand. A status alone is a response
    /// with it; `!` closes; `-` is nothing.
    const SERVER_BY_HAND: &str = "
        |                 OPEN  BINDING  BOUND    REBINDING  UNBINDING  CLOSED
        | Bind            bind  0x04     0x05     0x08       0x04       -
        | BindResp        -     -        -        -          -          -
        | Unbind          0x04! 0x04     unbind   0x00!      0x00       -
        | UnbindResp      -     -        -        -          unbound    -
        | EnquireLink     0x00  0x00     0x00     0x08       0x00       -
        | EnquireLinkResp -     -        alive    alive      alive      -
        | Submit          0x04! 0x04     forward  0x08       0x04       -
        | SubmitResp      -     -        -        -          -          -
        | Deliver         0x04! 0x04     0x04     0x08       0x04       -
        | DeliverResp     -     -        return   return     return     -
        | Data            0x04! 0x04     forward  0x08       0x04       -
        | DataResp        -     -        return   return     return     -
        | Alert           -     -        -        -          -          -
        | Nack            -     -        return   return     return     -
        | Unknown         nack  nack     nack     nack       nack       -
        | UnknownResp     -     -        -        -          -          -";

    /// 2.3 in the same way.
    const CLIENT_BY_HAND: &str = "
        |                 INITIAL OPEN  BINDING  BOUND    REBINDING  UNBINDING  CLOSED
        | Bind            -       -     nack     nack     nack       nack       -
        | BindResp        -       -     bound    -        bound      -          -
        | Unbind          -       -     0x00!    unbind   0x00!      0x00       -
        | UnbindResp      -       -     -        -        -          unbound    -
        | EnquireLink     -       -     0x00     0x00     0x00       0x00       -
        | EnquireLinkResp -       -     -        alive    -          alive      -
        | Submit          -       -     nack     nack     nack       nack       -
        | SubmitResp      -       -     -        return   -          return     -
        | Deliver         -       -     0x04     forward  0x04       0x04       -
        | DeliverResp     -       -     -        -        -          -          -
        | Data            -       -     0x04     forward  0x04       0x04       -
        | DataResp        -       -     -        return   -          return     -
        | Alert           -       -     -        pass     -          -          -
        | Nack            -       -     bound    return   bound      return     -
        | Unknown         -       -     nack     nack     nack       nack       -
        | UnknownResp     -       -     -        -        -          -          -";

    fn word(action: Action) -> String {
        match action {
            Action::Bind => "bind".into(),
            Bound => "bound".into(),
            Forward => "forward".into(),
            Pass => "pass".into(),
            Return => "return".into(),
            Unbind => "unbind".into(),
            Unbound => "unbound".into(),
            Answer => "0x00".into(),
            AnswerAndClose => "0x00!".into(),
            Alive => "alive".into(),
            Refuse(Status(status)) => format!("{status:#04x}"),
            RefuseAndClose(Status(status)) => format!("{status:#04x}!"),
            Nack => "nack".into(),
            Drop => "-".into(),
        }
    }

    #[test]
    fn every_cell_is_as_it_was_written_by_hand() {
        for (is_server, table) in [(true, SERVER_BY_HAND), (false, CLIENT_BY_HAND)] {
            let mut rows = table.lines().filter_map(|it| it.split_once('|')).map(|it| it.1);
            let states: Vec<&str> = rows.next().unwrap().split_whitespace().collect();
            let want = rows.flat_map(|row| {
                let (kind, words) = row.trim().split_once(' ').unwrap();
                let words: Vec<&str> = words.split_whitespace().collect();
                assert_eq!(words.len(), states.len(), "{row}");
                let pairs: Vec<_> = states.iter().zip(words).collect();
                pairs.into_iter().map(move |(state, word)| format!("{kind} {state} {word}"))
            });
            let got: Vec<String> = cells()
                .filter(|it| it.0 == is_server)
                .map(|(_, state, kind, action)| format!("{kind:?} {state} {}", word(action)))
                .collect();
            assert_eq!(got, want.collect::<Vec<_>>());
        }
    }

    #[test]
    fn only_requests_are_answered() {
        for cell in cells() {
            let (_, _, kind, action) = cell;
            let answers =
                matches!(action, Answer | AnswerAndClose | Refuse(_) | RefuseAndClose(_) | Nack);
            assert!(!answers || kind.is_request(), "{cell:?}");
            assert!(
                !matches!(action, Return | Bound | Unbound | Alive) || !kind.is_request(),
                "{cell:?}"
            );
            assert!(action != Forward || kind.is_request(), "{cell:?}");
            assert!(action != Pass || kind == Kind::Alert, "{cell:?}");
        }
    }

    #[test]
    fn an_esme_waits_for_no_answer_in_vain() {
        for cell in cells() {
            let (is_server, state, kind, action) = cell;
            if is_server && kind.is_request() && state != "CLOSED" {
                assert_ne!(action, Drop, "{cell:?}");
            }
        }
    }

    #[test]
    fn the_guides_words_hold() {
        for cell in cells() {
            let (is_server, state, kind, action) = cell;
            // OPEN "can receive only bind requests"; INITIAL, OPEN and CLOSED of the client part and CLOSED
            // of the server part "can't receive any messages".
            match (is_server, state) {
                (true, "OPEN") => {
                    assert_eq!(action == Action::Bind, kind == Kind::Bind, "{cell:?}")
                }
                (true, "CLOSED") | (false, "INITIAL" | "OPEN" | "CLOSED") => {
                    assert_eq!(action, Drop, "{cell:?}");
                }
                _ => assert_ne!(action, Action::Bind, "{cell:?}"),
            }
            // Only BOUND forwards and only UNBINDING takes the response to an unbind.
            assert!(!matches!(action, Forward | Pass | Unbind) || state == "BOUND", "{cell:?}");
            assert!(
                action != Unbound || (state == "UNBINDING" && kind == Kind::UnbindResp),
                "{cell:?}"
            );
            assert!(
                action != Bound || (!is_server && (state == "BINDING" || state == "REBINDING")),
                "{cell:?}"
            );
            // REBINDING "returns them back".
            if is_server && state == "REBINDING" && kind.is_request() {
                let want = match kind {
                    Kind::Unbind => AnswerAndClose,
                    Kind::Unknown => Nack,
                    _ => Refuse(Status::SYSTEM_ERROR),
                };
                assert_eq!(action, want, "{cell:?}");
            }
        }
    }

    #[test]
    fn every_command_has_a_kind() {
        let cases = [
            (0x0000_0001, Kind::Bind, Kind::BindResp),
            (0x0000_0002, Kind::Bind, Kind::BindResp),
            (0x0000_0009, Kind::Bind, Kind::BindResp),
            (0x0000_0003, Kind::Submit, Kind::SubmitResp),
            (0x0000_0004, Kind::Submit, Kind::SubmitResp),
            (0x0000_0007, Kind::Submit, Kind::SubmitResp),
            (0x0000_0008, Kind::Submit, Kind::SubmitResp),
            (0x0000_0021, Kind::Submit, Kind::SubmitResp),
            (0x0000_0111, Kind::Submit, Kind::SubmitResp),
            (0x0000_0112, Kind::Submit, Kind::SubmitResp),
            (0x0000_0113, Kind::Submit, Kind::SubmitResp),
            (0x0000_0005, Kind::Deliver, Kind::DeliverResp),
            (0x0000_0103, Kind::Data, Kind::DataResp),
            (0x0000_0006, Kind::Unbind, Kind::UnbindResp),
            (0x0000_0015, Kind::EnquireLink, Kind::EnquireLinkResp),
            (0x0000_0102, Kind::Alert, Kind::UnknownResp),
            (0x0000_000b, Kind::Unknown, Kind::UnknownResp),
            (0x0000_0000, Kind::Unknown, Kind::Nack),
            (0x0000_000a, Kind::Unknown, Kind::UnknownResp),
            (0x7fff_ffff, Kind::Unknown, Kind::UnknownResp),
        ];
        for (id, request, response) in cases {
            for vendor in [false, true] {
                assert_eq!(Kind::of(Command(id), vendor), request, "{id:#x}");
                assert_eq!(Kind::of(Command(id | 0x8000_0000), vendor), response, "{id:#x}");
            }
        }
        for (id, vendor, want) in [
            (0x0001_0200, false, Kind::Unknown),
            (0x0001_0200, true, Kind::Data),
            (0x8001_02ff, true, Kind::DataResp),
            (0x0001_0300, true, Kind::Unknown),
        ] {
            assert_eq!(Kind::of(Command(id), vendor), want, "{id:#x}");
        }
    }
}
