//! A SIP message as a play writes and reads it: start line, header lines in order, body.
//!
//! Deliberately naive and independent of `protocols::sip`. Names compare without case and in their long
//! form, so a play asks for `Via` and finds `v`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A message to build or to look at. Header lines keep their order; values are trimmed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// Request line or status line, without the line end.
    pub start: String,
    /// Name as written, and value.
    pub headers: Vec<(String, String)>,
    /// Everything after the empty line.
    pub body: Vec<u8>,
}

impl Message {
    /// Starts a message that has only a first line.
    pub fn new(start: impl Into<String>) -> Message {
        Message { start: start.into(), headers: Vec::new(), body: Vec::new() }
    }

    /// Reads one whole message; `None` if it is not one.
    pub fn parse(bytes: &[u8]) -> Option<Message> {
        let end = bytes.windows(4).position(|it| it == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let mut message = Message::new(lines.next()?);
        for line in lines {
            if line.starts_with([' ', '\t']) {
                let (_, value) = message.headers.last_mut()?;
                value.push(' ');
                value.push_str(line.trim());
                continue;
            }
            let (name, value) = line.split_once(':')?;
            message.headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        message.body = bytes[end + 4..].to_vec();
        message.start.contains("SIP/2.0").then_some(message)
    }

    /// As it goes on the wire. `Content-Length` is added if there is none.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.start);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.find("Content-Length").is_none() {
            text.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        text.push_str("\r\n");
        [text.into_bytes(), self.body.clone()].concat()
    }

    /// Appends a header line.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Message {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Replaces the first header line of that name, or appends one.
    pub fn set(mut self, name: &str, value: impl Into<String>) -> Message {
        match self.headers.iter_mut().find(|(it, _)| is_same(it, name)) {
            Some((_, old)) => *old = value.into(),
            None => self.headers.push((name.to_owned(), value.into())),
        }
        self
    }

    /// Removes every header line of that name.
    pub fn without(mut self, name: &str) -> Message {
        self.headers.retain(|(it, _)| !is_same(it, name));
        self
    }

    /// Sets the body with its type.
    pub fn with_body(mut self, kind: &str, body: impl Into<Vec<u8>>) -> Message {
        self.body = body.into();
        self.set("Content-Type", kind)
    }

    /// Same message to another Request-URI.
    pub fn to_uri(mut self, uri: &str) -> Message {
        self.start = format!("{} {uri} SIP/2.0", self.method());
        self
    }

    /// Value of the first header line of that name.
    pub fn find(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| is_same(it, name)).map(|(_, value)| value.as_str())
    }

    /// Value of the first header line of that name, which must be there.
    pub fn header(&self, name: &str) -> &str {
        self.find(name).unwrap_or_else(|| panic!("no {name} in\n{self}"))
    }

    /// All values of a list header, whether on lines of their own or joined by commas.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.headers.iter().filter(|(it, _)| is_same(it, name));
        lines.flat_map(|(_, value)| split_list(value)).collect()
    }

    /// Via values, top first.
    pub fn vias(&self) -> Vec<&str> {
        self.all("Via")
    }

    /// Route values, top first.
    pub fn routes(&self) -> Vec<&str> {
        self.all("Route")
    }

    /// Record-Route values, top first.
    pub fn record_routes(&self) -> Vec<&str> {
        self.all("Record-Route")
    }

    /// Whether this is a request.
    pub fn is_request(&self) -> bool {
        !self.start.starts_with("SIP/")
    }

    /// The method of a request, or the method a response answers.
    pub fn method(&self) -> &str {
        let line = if self.is_request() { Some(self.start.as_str()) } else { None };
        match line {
            Some(line) => line.split(' ').next().unwrap_or_default(),
            None => self.find("CSeq").and_then(|it| it.split_whitespace().nth(1)).unwrap_or(""),
        }
    }

    /// Status code, 0 for requests.
    pub fn status(&self) -> u16 {
        let code = self.start.strip_prefix("SIP/2.0 ").and_then(|rest| rest.get(..3));
        code.and_then(|it| it.parse().ok()).unwrap_or(0)
    }

    /// Request-URI of a request.
    pub fn uri(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// The Call-ID.
    pub fn call_id(&self) -> &str {
        self.header("Call-ID")
    }

    /// Tag of `From` or `To`.
    pub fn tag(&self, name: &str) -> Option<String> {
        param(self.header(name).rsplit('>').next()?, "tag")
    }

    /// Whether it is what a play calls `what`: `INVITE`, `180`, or `200 BYE`.
    pub fn is(&self, what: &str) -> bool {
        let mut words = what.split(' ');
        let first = words.next().unwrap_or_default();
        let right_kind = match first.parse::<u16>() {
            Ok(code) => self.status() == code,
            Err(_) => self.is_request() && self.method() == first,
        };
        right_kind && words.next().is_none_or(|method| self.method() == method)
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.to_bytes()))
    }
}

/// The parts of a URI that routing looks at. Reads `Name <sip:u@h:p;a=b>;x=y`, `<sip:...>` and bare URIs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Uri {
    /// User part, empty if absent.
    pub user: String,
    /// Host without brackets.
    pub host: String,
    /// Port, 5060 if absent.
    pub port: u16,
    /// Parameters of the URI, not of the header.
    pub params: String,
}

impl Uri {
    /// Reads the URI inside a header value or a Request-URI.
    pub fn of(text: &str) -> Uri {
        let inside = text.split_once('<').map_or(text, |(_, rest)| rest);
        let inside = inside.split('>').next().unwrap_or_default();
        let rest = inside.split_once(':').map_or(inside, |(_, rest)| rest);
        let (address, params) = match rest.find(';') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (user, address) = address.rsplit_once('@').unwrap_or(("", address));
        let (host, port) = host_and_port(address, 5060);
        Uri { user: user.to_owned(), host, port, params: params.to_owned() }
    }

    /// One parameter; a flag is the empty text.
    pub fn param(&self, name: &str) -> Option<String> {
        param(&self.params, name)
    }

    /// Where a message for this URI goes, if its host is a literal.
    pub fn address(&self) -> Option<SocketAddr> {
        let ip: IpAddr = self.host.parse().ok()?;
        Some(SocketAddr::new(ip, self.port))
    }
}

/// Splits `host:port`, taking brackets off.
pub(crate) fn host_and_port(text: &str, default: u16) -> (String, u16) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|it| it.split_once(']')) {
        let port = rest.strip_prefix(':').and_then(|it| it.parse().ok());
        return (host.to_owned(), port.unwrap_or(default));
    }
    match text.split_once(':') {
        Some((host, port)) => (host.to_owned(), port.trim().parse().unwrap_or(default)),
        None => (text.trim().to_owned(), default),
    }
}

/// Value of `;name=value` in a list of parameters; a parameter without value is the empty text.
pub fn param(text: &str, name: &str) -> Option<String> {
    text.split(';').skip(1).find_map(|it| {
        let (key, value) = it.split_once('=').unwrap_or((it, ""));
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// Splits at commas that are outside `<>` and quotes.
fn split_list(value: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth, mut quoted) = (Vec::new(), 0, 0, false);
    for (at, letter) in value.char_indices() {
        match letter {
            '"' => quoted = !quoted,
            '<' if !quoted => depth += 1,
            '>' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                parts.push(value[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(value[start..].trim());
    parts
}

/// Bytes of body that a head promises, however broken the rest of it is.
pub(crate) fn content_length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head).replace("\r\n ", " ").replace("\r\n\t", " ");
    let mut fields = head.split("\r\n").filter_map(|it| it.split_once(':'));
    let said = fields.find(|(name, _)| is_same(name.trim(), "Content-Length"));
    said.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

fn is_same(a: &str, b: &str) -> bool {
    long(a).eq_ignore_ascii_case(long(b))
}

/// The long form of a compact header name (RFC 3261 §7.3.3, and `k`, `r`, `o`, `u` of its successors).
fn long(name: &str) -> &str {
    let rows = [
        ("v", "Via"),
        ("f", "From"),
        ("t", "To"),
        ("i", "Call-ID"),
        ("m", "Contact"),
        ("l", "Content-Length"),
        ("c", "Content-Type"),
        ("e", "Content-Encoding"),
        ("s", "Subject"),
        ("k", "Supported"),
        ("r", "Refer-To"),
        ("o", "Event"),
        ("u", "Allow-Events"),
    ];
    rows.iter().find(|(short, _)| short.eq_ignore_ascii_case(name)).map_or(name, |(_, long)| long)
}
