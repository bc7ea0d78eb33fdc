//! Answers of our own (`http-smpp-registry.md` 1.6, 1.7): short, well-formed, without a trace of what is behind.

use protocols::bytes::write_decimal;

/// One answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply<'a> {
    pub(super) status: u16,
    /// A field of this answer alone.
    pub(super) field: Option<(&'a str, &'a str)>,
    /// The answer to HEAD has no body.
    pub(super) is_head: bool,
    /// The connection ends with it.
    pub(super) closes: bool,
    /// The client speaks HTTP/1.0 and keeps the connection.
    pub(super) keeps_1_0: bool,
}

impl Reply<'_> {
    /// Appends the whole response.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let (reason, text) = words(self.status);
        out.extend_from_slice(b"HTTP/1.1 ");
        write_decimal(out, self.status);
        for part in [" ", reason, "\r\nContent-Type: text/plain; charset=UTF-8\r\nContent-Length: "]
        {
            out.extend_from_slice(part.as_bytes());
        }
        write_decimal(out, text.len() as u64);
        out.extend_from_slice(b"\r\n");
        if let Some((name, value)) = self.field {
            for part in [name, ": ", value, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
        if self.closes {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if self.keeps_1_0 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if !self.is_head {
            out.extend_from_slice(text.as_bytes());
        }
    }
}

/// Reason phrase and body.
const fn words(status: u16) -> (&'static str, &'static str) {
    match status {
        200 => ("OK", ""),
        302 => ("Found", ""),
        400 => ("Bad Request", "The request is not well-formed HTTP"),
        408 => ("Request Timeout", "The request took too long"),
        413 => ("Content Too Large", "The body of the request is too long"),
        414 => ("URI Too Long", "The target of the request is too long"),
        431 => ("Request Header Fields Too Large", "The head of the request is too long"),
        501 => ("Not Implemented", "The request asks for what is not served here"),
        502 => ("Bad Gateway", "The server did not answer"),
        503 => ("Service Unavailable", "Service is temporarily unavailable"),
        504 => ("Gateway Timeout", "The server did not answer in time"),
        505 => ("HTTP Version Not Supported", "This version of HTTP is not spoken here"),
        _ => ("Internal Server Error", "Internal error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_well_formed() {
        let all = Reply {
            status: 503,
            field: Some(("Retry-After", "5")),
            is_head: false,
            closes: true,
            keeps_1_0: false,
        };
        let mut out = Vec::new();
        all.write(&mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=UTF-8\r\n\
             Content-Length: 34\r\nRetry-After: 5\r\nConnection: close\r\n\r\n\
             Service is temporarily unavailable"
        );
        let mut out = Vec::new();
        Reply { is_head: true, closes: false, keeps_1_0: true, field: None, ..all }.write(&mut out);
        assert!(out.ends_with(b"Content-Length: 34\r\nConnection: keep-alive\r\n\r\n"));
    }
}
