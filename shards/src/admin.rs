//! The statistics and administration port: which commands there are, and what their URLs mean.
//!
//! Reads `http-smpp-registry.md` 1.12 (commands). Pure: [`read`] turns the bytes of one request into a
//! [`Command`] or a refusal; connections are `http.rs`, doing is `control.rs`. Not a general HTTP
//! server: one request per connection, no chunked bodies, no ranges.

use std::net::SocketAddr;
use std::time::Duration;

use engine::relay::Leg;
use log::LevelFilter;
use protocols::sip::Transport;

/// What one request asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// `/lbstat`: counters, the original's JSON.
    Stat,
    /// `/lbinfo`: nodes, JSON.
    Info,
    /// `/metrics`: Prometheus text.
    Metrics,
    /// `/health`: 200 while new work is welcome.
    Health,
    /// `/lbstop`: drain and stop.
    Stop,
    /// `/lbloglevel?logLevel=`.
    LogLevel(LevelFilter),
    /// `/lbnoderegex?regex=&ip=&port=`: ties users to a node; without ip and port, unties them.
    NodeRegex {
        /// Regular expression over the user, as it is to be compiled.
        regex: String,
        /// Address of the node.
        node: Option<SocketAddr>,
    },
    /// `/lbdrain?node=&deadline=`, `/lbundrain?node=`, `/lbremove?node=`: what the operator wants of a
    /// node.
    Order {
        /// Name of the node, as the operator knows it.
        node: String,
        /// What is wanted.
        order: Order,
    },
    /// `POST /lbexplain?source=&listener=`: routes the body without sending it.
    Explain {
        /// As if it came from here.
        source: Option<SocketAddr>,
        /// As if it came in here: address and transport.
        listener: Option<(SocketAddr, Transport)>,
        /// As if it came in on this leg, when no listener is named.
        leg: Option<Leg>,
        /// The SIP message.
        message: Vec<u8>,
    },
}

/// What the operator wants of a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// No new calls.
    Drain {
        /// And out after this time.
        time: Option<Duration>,
    },
    /// As if nothing had been ordered.
    Undrain,
    /// Out at once, until it is taken back.
    Remove,
}

impl Command {
    /// Whether it changes anything: only such commands ask for the password (1.12).
    const fn is_mutating(&self) -> bool {
        matches!(
            self,
            Command::Stop
                | Command::LogLevel(_)
                | Command::NodeRegex { .. }
                | Command::Order { .. }
        )
    }
}

/// One answer; the connection is closed after it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Response {
    /// HTTP status code.
    pub status: u16,
    /// `Content-Type`.
    pub media: &'static str,
    /// Body.
    pub body: String,
}

impl Response {
    /// Plain text.
    pub fn text(status: u16, body: impl Into<String>) -> Response {
        Response { status, media: "text/plain; charset=UTF-8", body: body.into() }
    }

    /// 200 with JSON.
    pub const fn json(body: String) -> Response {
        Response { status: 200, media: "application/json", body }
    }

    /// Head and body as sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            401 => "Unauthorized",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            408 => "Request Timeout",
            411 => "Length Required",
            413 => "Content Too Large",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Error",
        };
        let Response { status, media, body } = self;
        let bytes = body.len();
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {media}\r\nContent-Length: {bytes}\r\n\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// Who may change things.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Credentials {
    /// `securityRequired`.
    pub required: bool,
    /// `login`.
    pub login: Option<String>,
    /// `password`.
    pub password: Option<String>,
}

/// What the bytes of a connection are so far.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    /// Not complete: read on.
    More,
    /// Complete.
    Command(Command),
    /// Complete, or beyond repair: send this.
    Refused(Response),
}

/// Reads one request from everything received so far.
pub fn read(received: &[u8], credentials: &Credentials) -> Request {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let head_bytes = match head.parse(received) {
        Ok(httparse::Status::Complete(bytes)) if bytes <= HEAD_BYTES_MAX => bytes,
        Ok(httparse::Status::Partial) if received.len() < HEAD_BYTES_MAX => return Request::More,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return refused(431, "The request head is too large.\n");
        }
        Err(error) => return refused(400, format!("Not HTTP/1.1: {error}.\n")),
    };
    let header = |name: &str| {
        head.headers.iter().find(|it| it.name.eq_ignore_ascii_case(name)).map(|it| it.value)
    };
    if header("Transfer-Encoding").is_some() {
        return refused(411, "Send a Content-Length.\n");
    }
    let body_bytes = match header("Content-Length") {
        None => 0,
        Some(text) => match std::str::from_utf8(text).ok().and_then(|it| it.trim().parse().ok()) {
            Some(bytes) => bytes,
            None => return refused(400, "Content-Length is not a number.\n"),
        },
    };
    if body_bytes > BODY_BYTES_MAX {
        return refused(413, format!("At most {BODY_BYTES_MAX} bytes.\n"));
    }
    let Some(body) = received.get(head_bytes..head_bytes.saturating_add(body_bytes)) else {
        return Request::More;
    };
    match command(head.method.unwrap_or(""), head.path.unwrap_or(""), body, credentials) {
        Ok(command) => Request::Command(command),
        Err(response) => Request::Refused(response),
    }
}

fn refused(status: u16, text: impl Into<String>) -> Request {
    Request::Refused(Response::text(status, text))
}

fn command(
    method: &str,
    target: &str,
    body: &[u8],
    credentials: &Credentials,
) -> Result<Command, Response> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = path.to_ascii_lowercase();
    let is_post = method == "POST";
    if !is_post && !matches!(method, "GET" | "HEAD") {
        return Err(Response::text(405, "GET or POST.\n"));
    }
    let command = match path.as_str() {
        "/lbstat" => Command::Stat,
        "/lbinfo" => Command::Info,
        "/metrics" => Command::Metrics,
        "/health" => Command::Health,
        "/lbstop" => Command::Stop,
        "/lbloglevel" => {
            let text = parameter(query, "logLevel").unwrap_or_default();
            let level = crate::logs::level(&text).ok_or_else(|| {
                let levels = crate::logs::LEVELS;
                Response::text(400, format!("Use /lbloglevel?logLevel=L with one of {levels}.\n"))
            })?;
            Command::LogLevel(level)
        }
        "/lbnoderegex" => node_regex(query)?,
        "/lbdrain" => order(query, Order::Drain { time: deadline(query)? })?,
        "/lbundrain" => order(query, Order::Undrain)?,
        "/lbremove" => order(query, Order::Remove)?,
        "/lbexplain" if is_post => explain(query, body)?,
        "/lbexplain" => return Err(Response::text(405, "POST the SIP message as the body.\n")),
        _ => return Err(Response::text(404, "No such command.\n")),
    };
    if command.is_mutating() && !may(query, credentials) {
        return Err(Response::text(401, UNAUTHORIZED));
    }
    Ok(command)
}

fn node_regex(query: &str) -> Result<Command, Response> {
    let usage = || Response::text(400, "Use /lbnoderegex?regex=R&ip=A&port=P.\n");
    let regex = parameter(query, "regex").filter(|it| !it.is_empty()).ok_or_else(usage)?;
    let node = match (parameter(query, "ip"), parameter(query, "port")) {
        (Some(ip), Some(port)) => Some(SocketAddr::new(
            engine::names::literal(&ip).ok_or_else(usage)?,
            port.parse().map_err(|_| usage())?,
        )),
        (None, None) => None,
        _ => return Err(usage()),
    };
    Ok(Command::NodeRegex { regex, node })
}

fn order(query: &str, order: Order) -> Result<Command, Response> {
    let usage = "Use /lbdrain?node=N&deadline=30m, /lbundrain?node=N or /lbremove?node=N.\n";
    let node = parameter(query, "node").filter(|it| !it.is_empty());
    let node = node.ok_or_else(|| Response::text(400, usage))?;
    Ok(Command::Order { node, order })
}

fn deadline(query: &str) -> Result<Option<Duration>, Response> {
    let Some(text) = parameter(query, "deadline").filter(|it| !it.is_empty()) else {
        return Ok(None);
    };
    let usage = || Response::text(400, "deadline is a time such as 90s, 30m or 2h.\n");
    tools::time_of(&text).map(Some).ok_or_else(usage)
}

fn explain(query: &str, body: &[u8]) -> Result<Command, Response> {
    let wrong = |what: &str| Response::text(400, format!("{what}\n"));
    let source = match parameter(query, "source") {
        Some(text) => Some(text.parse().map_err(|_| wrong("source is not ip:port"))?),
        None => None,
    };
    let listener = match parameter(query, "listener") {
        Some(text) => {
            Some(listener(&text).ok_or_else(|| wrong("listener is not ip:port/transport"))?)
        }
        None => None,
    };
    let leg = match parameter(query, "leg").as_deref() {
        Some("external") => Some(Leg::External),
        Some("internal") => Some(Leg::Internal),
        Some(_) => return Err(wrong("leg is external or internal")),
        None => None,
    };
    if body.is_empty() {
        return Err(wrong("POST the SIP message as the body"));
    }
    Ok(Command::Explain { source, listener, leg, message: body.to_vec() })
}

/// `ip:port/transport`; UDP if none is written.
fn listener(text: &str) -> Option<(SocketAddr, Transport)> {
    let (address, transport) = text.split_once('/').unwrap_or((text, "udp"));
    Some((address.parse().ok()?, Transport::from_token(transport.as_bytes())?))
}

/// The value of a query parameter. The original never decoded `%`, so values come literally from old
/// scripts; where every `%` starts a valid escape it is one.
fn parameter(query: &str, name: &str) -> Option<String> {
    let (_, value) = query
        .split('&')
        .filter_map(|it| it.split_once('='))
        .find(|it| it.0.eq_ignore_ascii_case(name))?;
    Some(percent_decoded(value).unwrap_or_else(|| value.to_owned()))
}

/// `None` if any `%` is not followed by two hexadecimal digits, or the result is not UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(it) = rest.next() {
        if it == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(it);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Compares whole strings whatever the first difference, so that answers do not tell how close a guess
/// was.
fn may(query: &str, credentials: &Credentials) -> bool {
    if !credentials.required {
        return true;
    }
    let equals = |name: &str, want: &Option<String>| {
        let (Some(want), Some(given)) = (want, parameter(query, name)) else { return false };
        let pairs = want.bytes().zip(given.bytes());
        let difference =
            pairs.fold(want.len() ^ given.len(), |sum, (a, b)| sum | usize::from(a ^ b));
        difference == 0
    };
    equals("login", &credentials.login) & equals("password", &credentials.password)
}

/// The original's words.
const UNAUTHORIZED: &str = "Authorization required : Incorrect login or password request example : \
    127.0.0.1:2006/lbstop?login=daddy&password=123456";
/// Browsers send a dozen.
const HEADERS_MAX: usize = 64;
/// Requests are short: a regular expression is the longest thing in one.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The largest SIP message there is.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: &str) -> Request {
        read(request.as_bytes(), &Credentials::default())
    }

    fn get(target: &str) -> Request {
        ask(&format!("GET {target} HTTP/1.1\r\nHost: lb\r\n\r\n"))
    }

    #[test]
    fn urls_are_commands_whatever_their_case() {
        let node = "127.0.0.1:5080".parse().unwrap();
        let ordered = |node: &str, order| Command::Order { node: node.into(), order };
        let regex = |regex: &str, node| Command::NodeRegex { regex: regex.into(), node };
        let cases = [
            ("/lbstat", Command::Stat),
            ("/LBStat?x=1", Command::Stat),
            ("/lbinfo", Command::Info),
            ("/metrics", Command::Metrics),
            ("/health", Command::Health),
            ("/lbstop", Command::Stop),
            ("/lbloglevel?logLevel=DEBUG", Command::LogLevel(LevelFilter::Debug)),
            ("/lbloglevel?loglevel=off", Command::LogLevel(LevelFilter::Off)),
            ("/lbnoderegex?regex=(-)&ip=127.0.0.1&port=5080", regex("(-)", Some(node))),
            ("/lbnoderegex?regex=%28-%29%2b&ip=127.0.0.1&port=5080", regex("(-)+", Some(node))),
            ("/lbnoderegex?regex=50%+x&ip=127.0.0.1&port=5080", regex("50%+x", Some(node))),
            ("/lbnoderegex?regex=(-)", regex("(-)", None)),
            ("/lbdrain?node=n1", ordered("n1", Order::Drain { time: None })),
            ("/lbDrain?deadline=30m&node=10.0.0.1:5060", {
                let time = Some(Duration::from_secs(1_800));
                ordered("10.0.0.1:5060", Order::Drain { time })
            }),
            ("/lbundrain?node=%5B%3A%3A1%5D%3A5060", ordered("[::1]:5060", Order::Undrain)),
            ("/lbremove?node=n1", ordered("n1", Order::Remove)),
        ];
        for (target, want) in cases {
            assert_eq!(get(target), Request::Command(want), "{target}");
        }
    }

    #[test]
    fn wrong_requests_are_refused_with_their_status() {
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
        let headers = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        let cases = [
            ("GET / HTTP/1.1\r\n\r\n", 404),
            ("GET /lbstatx HTTP/1.1\r\n\r\n", 404),
            ("GET /lbloglevel HTTP/1.1\r\n\r\n", 400),
            ("GET /lbloglevel?logLevel=LOUD HTTP/1.1\r\n\r\n", 400),
            ("GET /lbnoderegex?regex= HTTP/1.1\r\n\r\n", 400),
            ("GET /lbnoderegex?regex=a&ip=1.2.3.4 HTTP/1.1\r\n\r\n", 400),
            ("GET /lbnoderegex?regex=a&ip=x&port=1 HTTP/1.1\r\n\r\n", 400),
            ("GET /lbexplain HTTP/1.1\r\n\r\n", 405),
            ("GET /lbdrain HTTP/1.1\r\n\r\n", 400),
            ("GET /lbundrain?node= HTTP/1.1\r\n\r\n", 400),
            ("GET /lbdrain?node=n&deadline=soon HTTP/1.1\r\n\r\n", 400),
            ("POST /lbexplain HTTP/1.1\r\n\r\n", 400),
            ("POST /lbexplain?source=x HTTP/1.1\r\nContent-Length: 1\r\n\r\na", 400),
            (
                "POST /lbexplain?listener=1.1.1.1:1/smoke HTTP/1.1\r\nContent-Length: 1\r\n\r\na",
                400,
            ),
            ("POST /lbexplain HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
            ("POST /lbexplain HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
            ("POST /lbexplain HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
            ("POST /lbexplain HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            ("DELETE /lbstat HTTP/1.1\r\n\r\n", 405),
            ("\x16\x03\x01\x02\0", 400),
            (&long, 431),
            (&headers, 431),
        ];
        for (request, want) in cases {
            match ask(request) {
                Request::Refused(it) => assert_eq!(it.status, want, "{request:.60}"),
                other => panic!("{request:.60}: {other:?}"),
            }
        }
    }

    #[test]
    fn only_changes_ask_for_the_password() {
        let some = |text: &str| Some(text.to_owned());
        let closed = Credentials { required: true, login: some("daddy"), password: some("1234") };
        let unset = Credentials { required: true, ..Credentials::default() };
        let cases = [
            ("/lbstat", &closed, true),
            ("/health", &unset, true),
            ("/lbstop", &closed, false),
            ("/lbstop?login=daddy&password=123", &closed, false),
            ("/lbstop?login=daddy&password=12345", &closed, false),
            ("/lbstop?login=mummy&password=1234", &closed, false),
            ("/lbstop?login=daddy&password=1234", &closed, true),
            ("/lbloglevel?logLevel=DEBUG", &closed, false),
            ("/lbnoderegex?regex=a", &closed, false),
            ("/lbdrain?node=n", &closed, false),
            ("/lbundrain?node=n", &closed, false),
            ("/lbremove?node=n", &closed, false),
            ("/lbremove?node=n&login=daddy&password=1234", &closed, true),
            ("/lbstop?login=&password=", &unset, false),
        ];
        for (target, credentials, want) in cases {
            let request = format!("GET {target} HTTP/1.1\r\n\r\n");
            match read(request.as_bytes(), credentials) {
                Request::Command(_) => assert!(want, "{target}"),
                Request::Refused(it) => {
                    assert_eq!((it.status, want), (401, false), "{target}");
                }
                Request::More => panic!("{target}"),
            }
        }
    }

    #[test]
    fn where_the_network_cuts_a_request_does_not_matter() {
        let request = "POST /lbexplain?source=10.0.0.1:5060&listener=[::1]:5065/tcp&leg=internal \
                       HTTP/1.1\r\ncontent-length: 5\r\n\r\nBYE \n";
        for cut in 0..request.len() {
            assert_eq!(ask(&request[..cut]), Request::More, "cut {cut}");
        }
        let want = Command::Explain {
            source: Some("10.0.0.1:5060".parse().unwrap()),
            listener: Some(("[::1]:5065".parse().unwrap(), Transport::Tcp)),
            leg: Some(Leg::Internal),
            message: b"BYE \n".to_vec(),
        };
        assert_eq!(ask(request), Request::Command(want));
    }

    #[test]
    fn any_bytes_are_an_answer() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..20_000 {
            let mut bytes =
                b"POST /lbnoderegex?regex=%a HTTP/1.1\r\nContent-Length: 3\r\n\r\n%%%".to_vec();
            for _ in 0..=round % 7 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = usize::try_from(state >> 32).unwrap() % bytes.len();
                bytes[at] = state.to_be_bytes()[7];
            }
            if let Request::Refused(it) = read(&bytes, &Credentials::default()) {
                assert!(it.status >= 400, "round {round}");
            }
        }
    }
}
