//! The torture messages of RFC 4475 and the IPv6 messages of RFC 5118: what becomes of each.
//!
//! A proxy refuses only what it must understand and cannot: start line, Request-URI, top Via, CSeq,
//! Max-Forwards, Content-Length. Dates, Contacts, bodies, display names and unknown schemes pass.

extern crate std;

use std::format;
use std::string::String;

use super::message::{Field, Malformed, Message, Start, salvage};
use crate::testing::Random;

/// What a message must come to.
enum Fate {
    /// It is forwarded; this is read out of it, see [`summary`].
    Passes(&'static str),
    /// It is refused, for this reason.
    Refused(Malformed),
    /// The same, and nothing may be sent back: a response, or a header is missing.
    Dropped(Malformed),
}

use Fate::{Dropped, Passes, Refused};

macro_rules! messages {
    ($($rfc:literal / $name:literal => $fate:expr,)*) => {
        &[$(($name, include_bytes!(concat!("../../../tests/data/", $rfc, "/", $name, ".dat")), $fate)),*]
    };
}

type Row = (&'static str, &'static [u8], Fate);

#[rustfmt::skip]
const ROWS: &[Row] = messages! {
    // RFC 4475 §3.1.1, valid messages
    "rfc4475"/"wsinv" => Passes("INVITE vivekg@chair-dnrc.example.com via UDP 192.0.2.2 branch 390skdjuw of 3 routes 1 tags 98asjd8/1918181833n cseq 9 hops 68 body 150"),
    "rfc4475"/"intmeth" => Passes("OTHER 1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*:&it+has=1,weird!*pas$wo~d_too.(doesn't-it)@example.com via TCP host1.example.com branch z9hG4bK-.!%66*_+`'~ of 1 routes 0 tags _token~1'+`*%!-./- cseq 139122385 hops 255 body 0"),
    "rfc4475"/"esc01" => Passes("INVITE sips%3Auser%40example.com@example.net via UDP host5.example.net branch z9hG4bKkdjuw of 1 routes 0 tags 938/- cseq 234234 hops 87 body 150"),
    "rfc4475"/"escnull" => Passes("REGISTER example.com via UDP host5.example.com branch z9hG4bKkdjuw of 1 routes 0 tags 839923423/- cseq 14398234 hops 70 body 0"),
    "rfc4475"/"esc02" => Passes("OTHER registrar.example.com via TCP host.example.com branch z9hG4bK209%fzsnel234 of 1 routes 0 tags f232jadfj23/- cseq 29344 hops 70 body 0"),
    "rfc4475"/"lwsdisp" => Passes("OPTIONS user@example.com via UDP funky.example.com branch z9hG4bKkdjuw of 1 routes 0 tags 323/- cseq 60 hops 70 body 0"),
    "rfc4475"/"longreq" => Passes("INVITE user@example.com via TCP sip33.example.com branch - of 33 routes 0 tags 12982longlonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglonglong424/- cseq 3882340 hops 70 body 150"),
    "rfc4475"/"dblreq" => Passes("REGISTER example.com via UDP 192.0.2.125 branch z9hG4bKkdjuw23492 of 1 routes 0 tags 43251j3j324/- cseq 8 hops 8 body 0"),
    "rfc4475"/"semiuri" => Passes("OPTIONS user;par=u%40example.net@example.com via UDP 192.0.2.1 branch z9hG4bKkdjuw of 1 routes 0 tags 33242/- cseq 8 hops 3 body 0"),
    "rfc4475"/"transports" => Passes("OPTIONS user@example.com via UDP t1.example.com branch z9hG4bKkdjuw of 5 routes 0 tags 323/- cseq 60 hops 70 body 0"),
    "rfc4475"/"mpart01" => Passes("MESSAGE kumiko@example.org via UDP 127.0.0.1:5070 branch z9hG4bK-d87543-4dade06d0bdb11ee-1--d87543- of 1 routes 1 tags 2fb0dcc9/- cseq 1 hops 70 body 553"),
    "rfc4475"/"unreason" => Passes("200 INVITE via UDP 192.0.2.198 branch z9hG4bK1324923 of 1 routes 0 tags 11141343/2229 cseq 35 hops - body 154"),
    "rfc4475"/"noreason" => Passes("100 INVITE via UDP 192.0.2.105 branch z9hG4bK2398ndaoe of 1 routes 0 tags 39ansfi3/902jndnke3 cseq 35 hops - body 0"),
    // §3.1.2, invalid messages
    "rfc4475"/"badinv01" => Refused(Malformed::Via),
    "rfc4475"/"clerr" => Refused(Malformed::BodyCut { said: 9999, present: 154 }),
    "rfc4475"/"ncl" => Refused(Malformed::ContentLength),
    "rfc4475"/"scalar02" => Refused(Malformed::Cseq),
    "rfc4475"/"scalarlg" => Dropped(Malformed::Cseq),
    "rfc4475"/"quotbal" => Passes("INVITE user@example.com via UDP 192.0.2.59:5050 branch z9hG4bKkdjuw39234 of 1 routes 0 tags 93334/- cseq 8 hops 10 body 152"),
    "rfc4475"/"ltgtruri" => Refused(Malformed::RequestUri),
    "rfc4475"/"lwsruri" => Refused(Malformed::StartLine),
    "rfc4475"/"lwsstart" => Refused(Malformed::StartLine),
    "rfc4475"/"trws" => Refused(Malformed::StartLine),
    "rfc4475"/"escruri" => Passes("INVITE user@example.com via UDP host-of-the-hour.example.com branch z9hG4bKkdjuw of 1 routes 0 tags 341518/- cseq 149209342 hops 7 body 150"),
    "rfc4475"/"baddate" => Passes("INVITE user@example.com via UDP host.example.com branch z9hG4bKkdjuw of 1 routes 0 tags 2234923/- cseq 1392934 hops 70 body 150"),
    "rfc4475"/"regbadct" => Passes("REGISTER example.com via UDP 135.180.130.133:5060 branch z9hG4bKkdjuw of 1 routes 0 tags 998332/- cseq 1 hops 70 body 0"),
    "rfc4475"/"badaspec" => Passes("OPTIONS user@example.org via UDP host4.example.com:5060 branch z9hG4bKkdju43234 of 1 routes 0 tags 433423/- cseq 3923239 hops 70 body 0"),
    "rfc4475"/"baddn" => Passes("OPTIONS t.watson@example.org via UDP c.example.com:5060 branch z9hG4bKkdjuw of 1 routes 0 tags 43/- cseq 3923239 hops 70 body 0"),
    "rfc4475"/"badvers" => Refused(Malformed::Version),
    "rfc4475"/"mismatch01" => Refused(Malformed::CseqMethod),
    "rfc4475"/"mismatch02" => Refused(Malformed::CseqMethod),
    "rfc4475"/"bigcode" => Dropped(Malformed::StartLine),
    // §3.2, transaction layer
    "rfc4475"/"badbranch" => Passes("OPTIONS user@example.com via UDP 192.0.2.1 branch z9hG4bK of 1 routes 0 tags 33242/- cseq 8 hops 3 body 0"),
    // §3.3, application layer
    "rfc4475"/"insuf" => Dropped(Malformed::Missing(Field::From)),
    "rfc4475"/"unkscm" => Passes("OPTIONS  via TCP host9.example.com branch z9hG4bKkdjuw39234 of 1 routes 0 tags 384/- cseq 3923423 hops 3 body 0"),
    "rfc4475"/"novelsc" => Passes("OPTIONS  via TCP host9.example.com branch z9hG4bKkdjuw39234 of 1 routes 0 tags 384/- cseq 3923423 hops 3 body 0"),
    "rfc4475"/"unksm2" => Passes("REGISTER example.com via UDP 192.0.2.21:5060 branch z9hG4bKkdjuw of 1 routes 0 tags 3234233/- cseq 234902 hops 70 body 0"),
    "rfc4475"/"bext01" => Passes("OPTIONS user@example.com via TLS fold-and-staple.example.com branch z9hG4bKkdjuw of 1 routes 0 tags 242etr/- cseq 8 hops 6 body 0"),
    "rfc4475"/"invut" => Passes("INVITE user@example.com via UDP somehost.example.com branch z9hG4bKkdjuw of 1 routes 0 tags 8392034/- cseq 235448 hops 70 body 40"),
    "rfc4475"/"regaut01" => Passes("REGISTER example.com via TCP 192.0.2.253 branch z9hG4bKkdjuw of 1 routes 0 tags 87321hj23128/- cseq 9338 hops 8 body 0"),
    "rfc4475"/"multi01" => Refused(Malformed::Repeated(Field::Cseq)),
    "rfc4475"/"mcl01" => Refused(Malformed::Repeated(Field::ContentLength)),
    "rfc4475"/"bcast" => Passes("200 INVITE via UDP 192.0.2.198 branch z9hG4bK1324923 of 2 routes 0 tags 11141343/2229 cseq 35 hops - body 154"),
    "rfc4475"/"zeromf" => Passes("OPTIONS user@example.com via UDP host1.example.com branch z9hG4bKkdjuw2349i of 1 routes 0 tags 3ghsd41/- cseq 39234321 hops 0 body 0"),
    "rfc4475"/"cparam01" => Passes("REGISTER example.com via UDP saturn.example.com:5060 branch z9hG4bKkdjuw of 1 routes 0 tags DkfVgjkrtMwaerKKpe/- cseq 2 hops 70 body 0"),
    "rfc4475"/"cparam02" => Passes("REGISTER example.com via UDP saturn.example.com:5060 branch z9hG4bKkdjuw of 1 routes 0 tags 838293/- cseq 3 hops 70 body 0"),
    "rfc4475"/"regescrt" => Passes("REGISTER example.com via UDP host5.example.com branch z9hG4bKkdjuw of 1 routes 0 tags 8/- cseq 14398234 hops 70 body 0"),
    "rfc4475"/"sdp01" => Passes("INVITE user@example.com via UDP 192.0.2.15 branch z9hG4bKkdjuw of 1 routes 0 tags 234/- cseq 8 hops 5 body 150"),
    // §3.4, from before RFC 3261
    "rfc4475"/"inv2543" => Passes("INVITE UserB@example.com via UDP iftgw.example.com branch - of 1 routes 0 tags -/- cseq 56 hops - body 105"),
    // RFC 5118 §4.1 to §4.10
    "rfc5118"/"ipv6-good" => Passes("REGISTER 2001:db8::10 via UDP 2001:db8::9:1 branch z9hG4bKas3-111 of 1 routes 0 tags 81x2/- cseq 98176 hops 70 body 0"),
    "rfc5118"/"ipv6-bad" => Refused(Malformed::RequestUri),
    "rfc5118"/"port-ambiguous" => Passes("REGISTER 2001:db8::10:5070 via UDP 2001:db8::9:1 branch z9hG4bKas3-111 of 1 routes 0 tags 81x2/- cseq 98176 hops 70 body 0"),
    "rfc5118"/"port-unambiguous" => Passes("REGISTER 2001:db8::10 port 5070 via UDP 2001:db8::9:1 branch z9hG4bKas3-111 of 1 routes 0 tags 81x2/- cseq 98176 hops 70 body 0"),
    "rfc5118"/"via-received-param-with-delim" => Passes("BYE 2001:db8::10 via UDP 2001:db8::9:1 received 2001:db8::9:255 branch z9hG4bKas3-111 of 1 routes 0 tags 81x2/bd76ya cseq 321 hops 70 body 0"),
    "rfc5118"/"via-received-param-no-delim" => Passes("OPTIONS 2001:db8::10 via UDP 2001:db8::9:1 received 2001:db8::9:255 branch z9hG4bKas3 of 1 routes 0 tags 81x2/- cseq 921 hops 70 body 0"),
    "rfc5118"/"ipv6-in-sdp" => Passes("INVITE user@2001:db8::10 via UDP 2001:db8::20 branch z9hG4bKas3-111 of 1 routes 0 tags 81x2/- cseq 8612 hops 70 body 251"),
    "rfc5118"/"mult-ip-in-header" => Passes("BYE user@host.example.net via UDP 2001:db8::9:1:6050 branch z9hG4bKas3-111 of 3 routes 0 tags 81x2/9817--94 cseq 89187 hops 70 body 0"),
    "rfc5118"/"mult-ip-in-sdp" => Passes("INVITE user@2001:db8::10 via UDP 2001:db8::9:1 branch z9hG4bKas3-111 of 1 routes 0 tags 81x2/- cseq 8912 hops 70 body 189"),
    "rfc5118"/"ipv4-mapped-ipv6" => Passes("INVITE user@example.com via UDP ::ffff:192.0.2.10:19823 branch z9hG4bKbh19 of 2 routes 0 tags 81x2/- cseq 612 hops 70 body 245"),
    "rfc5118"/"ipv6-bug-abnf-3-colons" => Passes("OPTIONS user@2001:db8:::192.0.2.1 via UDP lab1.east.example.com branch z9hG4bKas3-111 of 1 routes 0 tags 810x2/- cseq 689 hops 70 body 0"),
    "rfc5118"/"ipv6-correct-abnf-2-colons" => Passes("OPTIONS user@2001:db8::192.0.2.1 via UDP lab1.east.example.com branch z9hG4bKas3-111 of 1 routes 0 tags 810x2/- cseq 689 hops 70 body 0"),
};

fn summary(message: &Message<'_>) -> String {
    let text = |it: &[u8]| String::from_utf8_lossy(it).into_owned();
    let or_dash = |it: Option<&[u8]>| it.map_or("-".into(), text);
    let mut out = String::new();
    match (message.start, message.request_uri) {
        (Start::Response { status, .. }, _) => {
            out += &format!("{status} {}", message.method().as_str());
        }
        (_, Some(uri)) => {
            let at = if uri.user.is_empty() { "" } else { "@" };
            out +=
                &format!("{} {}{at}{}", message.method().as_str(), text(uri.user), text(uri.host));
            if let Some(port) = uri.port {
                out += &format!(" port {port}");
            }
        }
        _ => out += "no Request-URI",
    }
    let via = &message.via;
    out += &format!(" via {} {}", text(via.transport_text), text(via.host));
    if let Some(port) = via.port {
        out += &format!(":{port}");
    }
    if let Some(ip) = via.received_ip() {
        out += &format!(" received {ip}");
    }
    out += &format!(" branch {} of {}", or_dash(via.branch), message.vias.len());
    out += &format!(" routes {}", message.routes.len());
    out += &format!(" tags {}/{}", or_dash(message.from_tag()), or_dash(message.to_tag()));
    out += &format!(" cseq {} hops ", message.cseq_number());
    out += &message.hops_left().map_or("-".into(), |it| format!("{it}"));
    out + &format!(" body {}", message.body.len())
}

#[test]
fn every_torture_message_meets_its_fate() {
    for (name, bytes, fate) in ROWS {
        match (Message::parse(bytes, None), fate) {
            (Ok(message), Passes(want)) => assert_eq!(summary(&message), *want, "{name}"),
            (Err(why), Refused(want)) => {
                assert_eq!(why, *want, "{name}");
                assert!(why.status().is_some() && salvage(bytes).is_some(), "{name} is answered");
            }
            (Err(why), Dropped(want)) => {
                assert_eq!(why, *want, "{name}");
                assert!(why.status().is_none() || salvage(bytes).is_none(), "{name} is dropped");
            }
            (Ok(message), _) => panic!("{name} passes: {}", summary(&message)),
            (Err(why), _) => panic!("{name} is refused: {why}"),
        }
    }
}

#[test]
fn cut_anywhere_or_mangled_they_panic_nothing() {
    for (name, bytes, _) in ROWS {
        for end in 0..bytes.len() {
            let _ = Message::parse(&bytes[..end], None);
            let _ = salvage(&bytes[..end]);
        }
        for seed in 0..300 {
            let mangled = Random::new(seed).mutate(bytes);
            if let Ok(message) = Message::parse(&mangled, Some(b"Subject")) {
                assert!(!summary(&message).is_empty(), "{name} seed {seed}");
            }
            let _ = salvage(&mangled);
        }
    }
}

#[test]
fn three_colons_are_read_as_two() {
    let rows = ROWS.iter().filter(|it| it.0.contains("colons"));
    for (name, bytes, _) in rows {
        let uri = Message::parse(bytes, None).unwrap().request_uri.unwrap();
        assert_eq!(uri.host_ip(), Some("2001:db8::192.0.2.1".parse().unwrap()), "{name}");
    }
}
