//! Where a request carries the session that it belongs to: query and path parameters, cookies, instance ids.
//!
//! Source: `http-smpp-registry.md` 1.5; RFC 6265 §4.2.1 (cookies). Nothing is decoded: nodes compare what
//! they wrote themselves.

/// Value of a query parameter: in the text after the last `?`, between the first and the second `=`.
/// Names are compared as they stand. The first one counts; an empty value is none.
pub fn query_parameter<'t>(target: &'t [u8], name: &[u8]) -> Option<&'t [u8]> {
    let query = target.get(memchr::memrchr(b'?', target)? + 1..)?;
    query
        .split(|it| *it == b'&')
        .find_map(|pair| {
            let mut parts = pair.split(|it| *it == b'=');
            (parts.next() == Some(name)).then(|| parts.next().unwrap_or_default())
        })
        .filter(|it| !it.is_empty())
}

/// Value of a path parameter: `;name=value`, ended by `;`, `/`, `?` or the end (RFC 3986 §3.3).
pub fn path_parameter<'t>(target: &'t [u8], name: &[u8]) -> Option<&'t [u8]> {
    let path = target.split(|it| *it == b'?').next()?;
    path.split(|it| *it == b'/')
        .flat_map(|segment| segment.split(|it| *it == b';').skip(1))
        .find_map(|it| it.strip_prefix(name)?.strip_prefix(b"="))
        .filter(|it| !it.is_empty())
}

/// Value of the first cookie of this name, whatever the name's case, in the value of a Cookie field.
pub fn cookie<'f>(field: &'f [u8], name: &[u8]) -> Option<&'f [u8]> {
    field.split(|it| *it == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let equals = memchr::memchr(b'=', pair)?;
        let (key, value) = pair.split_at_checked(equals)?;
        let value = value.get(1..)?.trim_ascii();
        let bare = value.strip_prefix(b"\"").and_then(|it| it.strip_suffix(b"\"")).unwrap_or(value);
        (key.trim_ascii().eq_ignore_ascii_case(name) && !bare.is_empty()).then_some(bare)
    })
}

/// Instance id of a call in a REST target: `/x/y/Accounts/z/Calls…/ID<32 digits>-…`, 34 bytes.
pub fn instance_id(target: &[u8]) -> Option<&[u8]> {
    let mut parts = target.split(|it| *it == b'/').skip(3);
    let (accounts, _, calls) = (parts.next()?, parts.next()?, parts.next()?);
    let call = parts.next()?;
    if accounts != b"Accounts" || !calls.starts_with(b"Calls") {
        return None;
    }
    let dash = memchr::memchr(b'-', call)?;
    if dash + 1 >= call.len() {
        return None;
    }
    call.get(..INSTANCE_ID_BYTES)
}

/// `jvmRoute` at the end of a session id: behind the last dot, if anything stands before it.
pub fn route(session: &[u8]) -> Option<&[u8]> {
    let dot = memchr::memrchr(b'.', session).filter(|it| *it > 0)?;
    session.get(dot + 1..).filter(|it| !it.is_empty())
}

/// `ID` and 32 hexadecimal digits.
const INSTANCE_ID_BYTES: usize = 34;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_cookies_are_found() {
        type Find = fn(&'static [u8]) -> Option<&'static [u8]>;
        let query: Find = |it| query_parameter(it, b"jsessionid");
        let path: Find = |it| path_parameter(it, b"jsessionid");
        let jar: Find = |it| cookie(it, b"jsessionid");
        let cases: &[(&str, Find, &str, Option<&str>)] = &[
            ("query", query, "/app?jsessionid=a.b", Some("a.b")),
            ("behind others", query, "/app?x=1&jsessionid=2&y", Some("2")),
            ("after the last question mark", query, "/a?jsessionid=1?jsessionid=2", Some("2")),
            ("up to the second equals sign", query, "/a?jsessionid=1=2", Some("1")),
            ("case matters", query, "/a?JSESSIONID=1", None),
            ("another name", query, "/a?xjsessionid=1", None),
            ("empty", query, "/a?jsessionid=", None),
            ("no value", query, "/a?jsessionid", None),
            ("no query", query, "/a", None),
            ("path", path, "/a/b;jsessionid=1.n1?x=;jsessionid=2", Some("1.n1")),
            ("path among others", path, "/a;v=1;jsessionid=7/b", Some("7")),
            ("not in the query", path, "/a?;jsessionid=7", None),
            ("no path parameter", path, "/jsessionid=7", None),
            ("cookie", jar, "JSESSIONID=ab.n1", Some("ab.n1")),
            ("among others", jar, "a=b; jsessionId=x=y ;c", Some("x=y")),
            ("quoted", jar, "JSESSIONID=\"ab.n1\"", Some("ab.n1")),
            ("the first", jar, "JSESSIONID=1; JSESSIONID=2", Some("1")),
            ("no such cookie", jar, "XJSESSIONID=1;JSESSIONID;=;", None),
            ("route", |it| route(it), "a.b.n1", Some("n1")),
            ("route of nothing", |it| route(it), ".n1", None),
            ("empty route", |it| route(it), "n1.", None),
            ("no route", |it| route(it), "n1", None),
        ];
        for (name, find, text, want) in cases {
            let got = find(text.as_bytes());
            assert_eq!(got, want.map(str::as_bytes), "{name}");
        }
    }

    #[test]
    fn instance_ids_stand_in_rest_targets() {
        let id = "ID1f2a2222772f4195948d040a2ccc648c";
        let found = [
            "/restcomm/2012-04-24/Accounts/AC1/Calls.json/ID1f2a2222772f4195948d040a2ccc648c-CA00af",
            "/a/b/Accounts/c/Calls/ID1f2a2222772f4195948d040a2ccc648c-C/more",
        ];
        for target in found {
            assert_eq!(instance_id(target.as_bytes()), Some(id.as_bytes()), "{target}");
        }
        let none = [
            "/restcomm/2012-04-24/Accounts/AC1/Calls.json/CA00af",
            "/a/b/Accounts/c/Calls/ID1-CA2",
            "/a/b/Accounts/c/Calls/ID1f2a2222772f4195948d040a2ccc648c-",
            "/a/b/accounts/c/Calls/ID1f2a2222772f4195948d040a2ccc648c-C",
            "/a/b/Accounts/c/Conf/ID1f2a2222772f4195948d040a2ccc648c-C",
            "/a/b/Accounts/c/Calls",
            "",
        ];
        for target in none {
            assert_eq!(instance_id(target.as_bytes()), None, "{target}");
        }
    }
}
