//! What tests share: a small random generator, and a call's first message.

extern crate std;

use std::vec::Vec;

/// Marsaglia's xorshift: the same numbers from the same seed, everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    /// `bytes` with a few of them changed, removed, doubled or cut off; what SIP is made of is
    /// inserted more often than noise.
    pub(crate) fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        const PIECES: &[&[u8]] = &[
            b"\r\n",
            b"\r",
            b"\n",
            b" ",
            b"\t",
            b",",
            b";",
            b":",
            b"<",
            b">",
            b"\"",
            b"\\",
            b"(",
            b"@",
            b"=",
            b"/",
            b"[",
            b"]",
            b"\0",
            b"\xff",
            b"\r\n ",
            b"Via: ",
            b"Route: <sip:a;lr>,\r\n",
            b"Content-Length: 7\r\n",
            b"SIP/2.0",
            b"99999999999999999999",
            b"\r\n\r\n",
        ];
        let mut out = bytes.to_vec();
        for _ in 0..=self.below(6) {
            let at = self.below(out.len());
            match self.below(6) {
                0 => drop(out.splice(at..at, PIECES[self.below(PIECES.len())].iter().copied())),
                1 if !out.is_empty() => out[at] = self.next().to_le_bytes()[0],
                2 if !out.is_empty() => drop(out.drain(at..(at + self.below(20)).min(out.len()))),
                3 => {
                    let end = (at + self.below(200)).min(out.len());
                    let copy = out[at..end].to_vec();
                    let to = self.below(out.len());
                    drop(out.splice(to..to, copy));
                }
                4 if self.below(4) == 0 => out.truncate(at),
                _ => {
                    let piece = PIECES[self.below(PIECES.len())];
                    let end = (at + piece.len()).min(out.len());
                    drop(out.splice(at..end, piece.iter().copied()));
                }
            }
        }
        out
    }
}

/// The INVITE of a call as a phone behind a proxy sends it; about 900 bytes.
pub(crate) const INVITE: &[u8] = b"INVITE sip:bob@example.com SIP/2.0\r\n\
Via: SIP/2.0/UDP 203.0.113.5:5062;branch=z9hG4bK776asdhds;rport\r\n\
Via: SIP/2.0/UDP 198.51.100.7:5060;branch=z9hG4bKnashds8;received=192.0.2.1\r\n\
Max-Forwards: 70\r\n\
Route: <sip:10.0.0.1:5060;transport=udp;lr;node_host=172.16.0.10;node_port=5080;version=0>\r\n\
From: \"Alice\" <sip:alice@example.com>;tag=1928301774\r\n\
To: Bob <sip:bob@example.com>\r\n\
Call-ID: a84b4c76e66710@pc33.example.com\r\n\
CSeq: 314159 INVITE\r\n\
Contact: <sip:alice@203.0.113.5:5062>\r\n\
User-Agent: Trunkphone/4.2.1 (build 8841)\r\n\
Allow: INVITE, ACK, CANCEL, OPTIONS, BYE, REFER, NOTIFY, MESSAGE, UPDATE\r\n\
Supported: replaces, timer\r\n\
Content-Type: application/sdp\r\n\
Content-Length: 188\r\n\
\r\n\
v=0\r\n\
o=alice 2890844526 2890844526 IN IP4 203.0.113.5\r\n\
s=-\r\n\
c=IN IP4 203.0.113.5\r\n\
t=0 0\r\n\
m=audio 49172 RTP/AVP 0 8 101\r\n\
a=rtpmap:0 PCMU/8000\r\n\
a=rtpmap:8 PCMA/8000\r\n\
a=ptime:20\r\n\
a=sendrecv\r\n";
