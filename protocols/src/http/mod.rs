//! HTTP/1.x as it passes a balancer: heads are read and edited, bodies are counted and passed on.
//!
//! Reads RFC 9110 (semantics) and RFC 9112 (framing), strictly: what two readers could take for different
//! messages is refused, never passed on. Leaves bodies, and every line that is not for one hop only,
//! byte for byte as they came.

pub mod body;
pub mod head;
pub mod session;

/// Request methods (RFC 9110 §9.3, RFC 5789), as the statistics tell them apart.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Method {
    /// CONNECT.
    Connect,
    /// DELETE.
    Delete,
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// OPTIONS.
    Options,
    /// PATCH.
    Patch,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// TRACE.
    Trace,
    /// Any other; forwarded all the same.
    Other,
}

impl Method {
    /// Every method, in the order of the statistics; [`Method::index`] is the position.
    pub const ALL: [Method; 10] = [
        Method::Connect,
        Method::Delete,
        Method::Get,
        Method::Head,
        Method::Options,
        Method::Patch,
        Method::Post,
        Method::Put,
        Method::Trace,
        Method::Other,
    ];

    /// The method of this token; case matters (RFC 9110 §9.1).
    pub fn of(token: &[u8]) -> Method {
        match token {
            b"GET" => Method::Get,
            b"POST" => Method::Post,
            b"HEAD" => Method::Head,
            b"PUT" => Method::Put,
            b"DELETE" => Method::Delete,
            b"OPTIONS" => Method::Options,
            b"PATCH" => Method::Patch,
            b"TRACE" => Method::Trace,
            b"CONNECT" => Method::Connect,
            _ => Method::Other,
        }
    }

    /// As the request line spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Connect => "CONNECT",
            Method::Delete => "DELETE",
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Options => "OPTIONS",
            Method::Patch => "PATCH",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Trace => "TRACE",
            Method::Other => "OTHER",
        }
    }

    /// Position in [`Method::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether a request asks for nothing to be changed (RFC 9110 §9.2.1).
    pub const fn is_safe(self) -> bool {
        matches!(self, Method::Get | Method::Head | Method::Options | Method::Trace)
    }

    /// Whether a request may be sent again when nobody knows if it was carried out (RFC 9110 §9.2.2).
    pub const fn is_idempotent(self) -> bool {
        match self {
            Method::Delete
            | Method::Get
            | Method::Head
            | Method::Options
            | Method::Put
            | Method::Trace => true,
            Method::Connect | Method::Patch | Method::Post | Method::Other => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_found_by_their_own_spelling_only() {
        for (index, method) in Method::ALL.into_iter().enumerate() {
            assert_eq!(method.index(), index);
            if method != Method::Other {
                assert_eq!(Method::of(method.as_str().as_bytes()), method);
            }
        }
        for token in ["get", "", "GETT", "PROPFIND", "OTHER"] {
            assert_eq!(Method::of(token.as_bytes()), Method::Other, "{token}");
        }
    }
}
