//! The statistics port of a running balancer, as `trunkctl` talks to it.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

/// One HTTP exchange with `at` (`host:port`); the body of a 200.
///
/// # Errors
///
/// Who did not answer, or what was answered, as one line.
pub fn ask(at: &str, method: &str, target: &str, body: &[u8]) -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{at}: {error}");
    let addresses = at.to_socket_addrs().map_err(|error| failed(&error))?;
    let mut stream = Err("no address".to_owned());
    for address in addresses {
        stream = TcpStream::connect_timeout(&address, WAIT_MAX).map_err(|error| failed(&error));
        if stream.is_ok() {
            break;
        }
    }
    let mut stream = stream?;
    stream.set_read_timeout(Some(WAIT_MAX)).map_err(|error| failed(&error))?;
    let bytes = body.len();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {at}\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n"
    );
    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    sent.map_err(|error| failed(&error))?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(|error| failed(&error))?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(failed(&"not an HTTP answer"));
    };
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        Ok(body.to_owned())
    } else {
        Err(format!("{at}: {status}: {}", body.trim_end()))
    }
}

/// A time as people write it: a number with `ms`, `s`, `m` or `h`; seconds without.
pub fn time_of(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let time = Duration::from_millis(number.checked_mul(millis)?);
    (time <= TIME_MAX).then_some(time)
}

/// A text as a query parameter's value.
pub fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

/// A thousand nodes with all their properties, several times over.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
const WAIT_MAX: Duration = Duration::from_secs(10);
/// A month: longer is a mistake.
const TIME_MAX: Duration = Duration::from_secs(31 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let cases = [
            ("30m", Some(1_800_000)),
            ("90s", Some(90_000)),
            ("90", Some(90_000)),
            ("2h", Some(7_200_000)),
            ("250ms", Some(250)),
            ("0", Some(0)),
            ("", None),
            ("m", None),
            ("1.5h", None),
            ("-1s", None),
            ("5 m", None),
            ("99999999h", None),
            ("99999999999999999999s", None),
        ];
        for (text, want) in cases {
            assert_eq!(time_of(text), want.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn names_survive_a_query() {
        assert_eq!(encoded("[::1]:5060"), "%5B%3A%3A1%5D%3A5060");
        assert_eq!(encoded("n1-a.b_c~d"), "n1-a.b_c~d");
        assert_eq!(encoded("a&b=\u{e4} %"), "a%26b%3D%C3%A4%20%25");
    }
}
