//! DNS messages (RFC 1035 §4): one question out, one record set in.

use std::time::Duration;

use engine::names::{ALIASES_MAX, Kind, Lookup, NEGATIVE_TTL_MAX, Record, RecordSet, domain};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

/// What a response means for the lookup.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Reading {
    /// The record set; empty if there are no such records.
    Set(RecordSet),
    /// It did not fit in a datagram: ask again by TCP (RFC 7766 §5).
    Truncated,
    /// The server cannot help; another might.
    ServerFailed,
    /// Not a response to this question: forged, late or broken. Keep waiting.
    Foreign,
}

/// One question, recursion desired. `None`: the name does not fit a message.
pub(super) fn question(id: u16, lookup: &Lookup) -> Option<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(&lookup.name).ok()?;
    packet.questions.push(Question::new(name, qtype(lookup.kind), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec().ok()
}

/// Reads a response to the question of `id` and `lookup`.
pub(super) fn read(id: u16, lookup: &Lookup, bytes: &[u8]) -> Reading {
    let Ok(packet) = Packet::parse(bytes) else { return Reading::Foreign };
    let is_ours = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        && matches!(packet.questions.as_slice(), [question]
            if question.qtype == qtype(lookup.kind) && is_name(&question.qname, &lookup.name));
    if !is_ours {
        return Reading::Foreign;
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Reading::Truncated;
    }
    match packet.rcode() {
        RCODE::NoError | RCODE::NameError => Reading::Set(record_set(&packet, lookup)),
        _ => Reading::ServerFailed,
    }
}

/// The records of the name, through the CNAMEs that the answer itself holds.
fn record_set(packet: &Packet<'_>, lookup: &Lookup) -> RecordSet {
    let mut name = lookup.name.clone();
    let mut ttl = u32::MAX;
    for _ in 0..ALIASES_MAX {
        let mut records = Vec::new();
        let mut alias = None;
        for answer in packet.answers.iter().filter(|it| is_name(&it.name, &name)) {
            if let RData::CNAME(target) = &answer.rdata {
                (alias, ttl) = (domain(&target.0.to_string()), ttl.min(answer.ttl));
            } else if let Some(record) = record(&answer.rdata, lookup.kind) {
                ttl = ttl.min(answer.ttl);
                records.push(record);
            }
        }
        match alias {
            Some(alias) if records.is_empty() => name = alias,
            _ if !records.is_empty() => return RecordSet { records, ttl: seconds(ttl) },
            _ if name != lookup.name => {
                let records = vec![Record::Alias(name)];
                return RecordSet { records, ttl: seconds(ttl) };
            }
            _ => break,
        }
    }
    RecordSet { records: Vec::new(), ttl: negative_ttl(packet) }
}

fn record(rdata: &RData<'_>, kind: Kind) -> Option<Record> {
    Some(match (kind, rdata) {
        (Kind::A, RData::A(it)) => Record::Address(std::net::Ipv4Addr::from(it.address).into()),
        (Kind::Aaaa, RData::AAAA(it)) => {
            Record::Address(std::net::Ipv6Addr::from(it.address).into())
        }
        (Kind::Srv, RData::SRV(it)) => Record::Srv {
            priority: it.priority,
            weight: it.weight,
            port: it.port,
            target: it.target.to_string(),
        },
        (Kind::Naptr, RData::NAPTR(it)) => Record::Naptr {
            order: it.order,
            preference: it.preference,
            flags: it.flags.to_string(),
            service: it.services.to_string(),
            regexp: it.regexp.to_string(),
            replacement: it.replacement.to_string(),
        },
        _ => return None,
    })
}

/// RFC 2308 §5: the lesser of the SOA's own TTL and its last field.
fn negative_ttl(packet: &Packet<'_>) -> Duration {
    let soa = packet.name_servers.iter().find_map(|it| match &it.rdata {
        RData::SOA(soa) => Some(seconds(it.ttl.min(soa.minimum))),
        _ => None,
    });
    soa.map_or(NEGATIVE_TTL_MAX, |it| it.min(NEGATIVE_TTL_MAX))
}

/// RFC 2181 §8: a TTL with the highest bit set counts as zero.
const fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(if ttl > i32::MAX as u32 { 0 } else { ttl as u64 })
}

fn is_name(name: &Name<'_>, wanted: &str) -> bool {
    name.to_string().eq_ignore_ascii_case(wanted)
}

const fn qtype(kind: Kind) -> QTYPE {
    QTYPE::TYPE(match kind {
        Kind::A => TYPE::A,
        Kind::Aaaa => TYPE::AAAA,
        Kind::Srv => TYPE::SRV,
        Kind::Naptr => TYPE::NAPTR,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::{A, CNAME};

    fn lookup() -> Lookup {
        Lookup { name: "sip.example.com".into(), kind: Kind::A }
    }

    fn reply(edit: impl FnOnce(&mut Packet<'_>)) -> Vec<u8> {
        let question = question(7, &lookup()).unwrap();
        let mut packet = Packet::parse(&question).unwrap().into_reply();
        edit(&mut packet);
        packet.build_bytes_vec_compressed().unwrap()
    }

    fn a(name: &'static str, ttl: u32) -> ResourceRecord<'static> {
        let rdata = RData::A(A { address: 0xc000_0201 });
        ResourceRecord::new(Name::new_unchecked(name), CLASS::IN, ttl, rdata)
    }

    fn cname(name: &'static str, to: &'static str) -> ResourceRecord<'static> {
        let rdata = RData::CNAME(CNAME(Name::new_unchecked(to)));
        ResourceRecord::new(Name::new_unchecked(name), CLASS::IN, 20, rdata)
    }

    #[test]
    fn responses_are_read_or_refused() {
        let ip = Record::Address("192.0.2.1".parse().unwrap());
        let set = |records: &[Record], ttl| {
            Reading::Set(RecordSet { records: records.to_vec(), ttl: Duration::from_secs(ttl) })
        };
        let cases: Vec<(&str, Vec<u8>, Reading)> = vec![
            (
                "plain",
                reply(|it| it.answers.push(a("SIP.Example.com", 30))),
                set(std::slice::from_ref(&ip), 30),
            ),
            (
                "others ignored",
                reply(|it| it.answers.push(a("evil.example.com", 30))),
                set(&[], 60),
            ),
            (
                "through an alias",
                reply(|it| {
                    it.answers.push(cname("sip.example.com", "x.example.com"));
                    it.answers.push(a("x.example.com", 30));
                }),
                set(&[ip], 20),
            ),
            (
                "alias to follow",
                reply(|it| it.answers.push(cname("sip.example.com", "x.example.com"))),
                set(&[Record::Alias("x.example.com".into())], 20),
            ),
            (
                "alias loop",
                reply(|it| it.answers.push(cname("sip.example.com", "sip.example.com"))),
                set(&[], 60),
            ),
            ("no such name", reply(|it| *it.rcode_mut() = RCODE::NameError), set(&[], 60)),
            (
                "server failure",
                reply(|it| *it.rcode_mut() = RCODE::ServerFailure),
                Reading::ServerFailed,
            ),
            ("cut", reply(|it| it.set_flags(PacketFlag::TRUNCATION)), Reading::Truncated),
            ("other id", reply(|it| it.set_id(8)), Reading::Foreign),
            ("other question", reply(|it| it.questions.clear()), Reading::Foreign),
            ("our own question back", question(7, &lookup()).unwrap(), Reading::Foreign),
            ("nothing", vec![], Reading::Foreign),
        ];
        for (name, bytes, want) in cases {
            assert_eq!(read(7, &lookup(), &bytes), want, "{name}");
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm() {
        let whole = reply(|it| {
            it.answers.push(cname("sip.example.com", "x.example.com"));
            it.answers.push(a("x.example.com", 30));
        });
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..50_000 {
            let mut bytes = whole.clone();
            for _ in 0..3 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = usize::try_from(state >> 40).unwrap() % bytes.len();
                bytes[at] = state.to_be_bytes()[7];
            }
            bytes.truncate(usize::try_from(state >> 50).unwrap() % (bytes.len() * 2));
            read(7, &lookup(), &bytes);
        }
    }
}
