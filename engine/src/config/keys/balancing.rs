//! Which nodes there are, how one is chosen, and when one is not trusted.

use super::{Key, Kind, Unit};
use crate::config::value;

pub(super) const NODES: &[Key] = &[
    Key::new(
        &["nodeTimeout"],
        &["common/nodeTimeout"],
        "8400",
        "Silence after which a node is taken out.",
        "5100",
        Kind::Time { unit: Unit::Millis, min: 15, at: |it| &mut it.config.node_timeout },
    ),
    Key::new(
        &["heartbeatInterval"],
        &["common/heartbeatInterval"],
        "150",
        "Period of the check for silent nodes.",
        "200",
        Kind::Time { unit: Unit::Millis, min: 15, at: |it| &mut it.config.heartbeat_interval },
    ),
    Key::new(
        &["heartbeatSources"],
        &["common/heartbeatSources"],
        "",
        "Networks whose heartbeats are believed. Unset: everyone who reaches the node side.",
        "172.16.0.0/12,127.0.0.1",
        Kind::Other {
            allowed: "a comma list of addresses or address/prefix",
            set: |draft, text| {
                value::list(text, value::network).map(|it| draft.config.heartbeat_sources = it)
            },
            differs: |a, b| a.heartbeat_sources != b.heartbeat_sources,
        },
    ),
    Key::new(
        &["staticNodes"],
        &["sip/staticNodes"],
        "",
        "Nodes that send no heartbeats: we probe them with OPTIONS. host[:port][/transport+transport]; \
         udp and the transport's usual port where nothing else is said.",
        "192.0.2.20:5080,192.0.2.21:5080/udp+tcp",
        Kind::Other {
            allowed: "a comma list of host[:port][/udp+tcp]",
            set: |draft, text| {
                value::list(text, value::static_node).map(|it| draft.config.static_nodes = it)
            },
            differs: |a, b| a.static_nodes != b.static_nodes,
        },
    ),
    Key::new(
        &["probeInterval"],
        &["sip/probeInterval"],
        "2000",
        "From one probe of a static node to the next.",
        "5000",
        Kind::Time { unit: Unit::Millis, min: 15, at: |it| &mut it.config.probe.interval },
    ),
    Key::new(
        &["probeTimeout"],
        &["sip/probeTimeout"],
        "1000",
        "How long a probe waits for its answer.",
        "500",
        Kind::Time { unit: Unit::Millis, min: 15, at: |it| &mut it.config.probe.timeout },
    ),
    Key::new(
        &["probeRise"],
        &["sip/probeRise"],
        "2",
        "Answers in a row that make a static node live.",
        "1",
        Kind::Count { min: 1, max: 1000, at: |it| &mut it.config.probe.rise },
    ),
    Key::new(
        &["probeFall"],
        &["sip/probeFall"],
        "3",
        "Probes in a row without an answer that make a static node dead.",
        "2",
        Kind::Count { min: 1, max: 1000, at: |it| &mut it.config.probe.fall },
    ),
    Key::new(
        &["extraServerNodes"],
        &["sip/extraServerNodes"],
        "",
        "Further servers: what comes from there goes towards clients. host[:port], port 5060 if none is said.",
        "192.0.2.12:5080,192.0.2.13",
        Kind::Other {
            allowed: "a comma list of host[:port]",
            set: |draft, text| {
                value::list(text, value::host_port).map(|it| draft.config.extra_server_nodes = it)
            },
            differs: |a, b| a.extra_server_nodes != b.extra_server_nodes,
        },
    ),
    Key::new(
        &["performanceTestingMode"],
        &["sip/performanceTestingMode"],
        "false",
        "The extra server nodes get calls as if they sent heartbeats, and never expire.",
        "true",
        Kind::Flag(|it| &mut it.config.performance_testing_mode),
    ),
];

pub(super) const ALGORITHM: &[Key] = &[
    Key::new(
        &["algorithmClass"],
        &["sip/algorithm/algorithmClass"],
        "CallIDAffinityBalancerAlgorithm",
        "How the node of a new call is chosen. Only the last segment of the class name counts.",
        "HeaderConsistentHashBalancerAlgorithm",
        Kind::Other {
            allowed: "CallIDAffinityBalancerAlgorithm, HeaderConsistentHashBalancerAlgorithm, \
                      PersistentConsistentHashBalancerAlgorithm, \
                      PureConsistentHashBalancerAlgorithm, ClusterSubdomainAffinityAlgorithm, \
                      UserBasedAlgorithm, ActiveStandbyAlgorithm or \
                      WorstCaseUdpTestAffinityAlgorithm",
            set: |draft, text| {
                let name = value::algorithm(text)?;
                if name.is_none() {
                    draft.warnings.push(format!(
                        "{text} is closed source; CallIDAffinityBalancerAlgorithm takes its place"
                    ));
                }
                draft.config.algorithm = name.unwrap_or("CallIDAffinityBalancerAlgorithm");
                Ok(())
            },
            differs: |a, b| a.algorithm != b.algorithm,
        },
    ),
    Key::new(
        &["callIdAffinityMaxTimeInCache"],
        &["sip/algorithm/callIdAffinityMaxTimeInCache"],
        "500",
        "Idle time after which a remembered call is forgotten. 0 means the default.",
        "600",
        Kind::Other {
            allowed: "a whole number of seconds from 0 to 2147483647",
            set: |draft, text| {
                let seconds = value::number::<u32>(text, 0, 0x7fff_ffff)?;
                if seconds == 0 {
                    draft.warnings.push("0 would forget every call at once; 500 is used".into());
                }
                let seconds = if seconds == 0 { 500 } else { seconds };
                draft.config.call_idle = std::time::Duration::from_secs(u64::from(seconds));
                Ok(())
            },
            differs: |a, b| a.call_idle != b.call_idle,
        },
    ),
    Key::new(
        &["callIdAffinityMaxCalls"],
        &["sip/algorithm/callIdAffinityMaxCalls"],
        "1000000",
        "Most calls that one shard remembers, at up to 200 bytes each. Past it the oldest are forgotten.",
        "100000",
        Kind::Size { min: 1, max: 100_000_000, at: |it| &mut it.config.calls_max },
    ),
    Key::new(
        &["callIdAffinityGroupFailover"],
        &["sip/algorithm/callIdAffinityGroupFailover"],
        "false",
        "All calls of a dead node move to one node, instead of spreading.",
        "true",
        Kind::Flag(|it| &mut it.config.group_failover),
    ),
    Key::new(
        &["userAffinityMaxTimeInCache"],
        &[],
        "",
        "callIdAffinityMaxTimeInCache for UserBasedAlgorithm.",
        "600",
        Kind::Span { unit: Unit::Seconds, min: 1, at: |it| &mut it.user_idle },
    )
    .deprecated("callIdAffinityMaxTimeInCache"),
    Key::new(
        &["userAffinityGroupFailover"],
        &[],
        "",
        "callIdAffinityGroupFailover for UserBasedAlgorithm.",
        "true",
        Kind::Other {
            allowed: "true or false",
            set: |draft, text| {
                let is_set = !text.is_empty();
                draft.user_group_failover = if is_set { Some(value::flag(text)?) } else { None };
                Ok(())
            },
            differs: |_, _| false, // seen under the key that takes its place
        },
    )
    .deprecated("callIdAffinityGroupFailover"),
    Key::new(
        &["sipHeaderAffinityKey"],
        &["sip/algorithm/sipHeaderAffinityKey"],
        "",
        "Header that the choice follows: Call-ID if unset (To with UserBasedAlgorithm), From, To, from.user, \
         to.user, or any other header name.",
        "X-Session",
        Kind::Other {
            allowed: "a header name, From, To, from.user or to.user",
            set: |draft, text| {
                let is_set = !text.is_empty();
                draft.affinity_key = if is_set { Some(value::header_name(text)?) } else { None };
                Ok(())
            },
            differs: |a, b| a.affinity_key != b.affinity_key,
        },
    ),
    Key::new(
        &["sipHeaderAffinityExclusionPattern", "sipHeaderAffinityKeyExclusionPattern"],
        &[
            "sip/algorithm/sipHeaderAffinityExclusionPattern",
            "sip/algorithm/sipHeaderAffinityKeyExclusionPattern",
        ],
        "",
        "Values of the affinity header that do not count; the fallback header is used instead.",
        "anonymous.*",
        Kind::Pattern(|it| &mut it.config.affinity_exclusion),
    ),
    Key::new(
        &["sipHeaderAffinityFallbackKey"],
        &["sip/algorithm/sipHeaderAffinityFallbackKey"],
        "Call-ID",
        "Header that is used for excluded values.",
        "X-Session",
        Kind::Other {
            allowed: "a header name, From, To, from.user or to.user",
            set: |draft, text| {
                value::header_name(text).map(|it| draft.affinity_fallback = Some(it))
            },
            differs: |a, b| a.affinity_fallback != b.affinity_fallback,
        },
    ),
    Key::new(
        &["httpAffinityKey"],
        &["sip/algorithm/httpAffinityKey"],
        "appsession",
        "Query parameter that the choice of a node for HTTP follows.",
        "session",
        Kind::Other {
            allowed: "the name of a query parameter",
            set: |draft, text| value::text(text).map(|it| draft.config.http_affinity_key = it),
            differs: |a, b| a.http_affinity_key != b.http_affinity_key,
        },
    ),
    Key::new(
        &["subclusterMap"],
        &["sip/subclusterMap", "sip/algorithm/subclusterMap"],
        "",
        "Groups of nodes that take over one another's calls (ClusterSubdomainAffinityAlgorithm).",
        "(192.0.2.1,192.0.2.2)(192.0.2.3,192.0.2.4)",
        Kind::Other {
            allowed: "groups of addresses: (10.0.0.1,10.0.0.2)(10.0.0.3,10.0.0.4)",
            set: |draft, text| {
                let is_set = !text.is_empty();
                let mut groups = if is_set { value::subclusters(text)? } else { Vec::new() };
                for index in 1..groups.len() {
                    let (before, after) = groups.split_at_mut(index);
                    let Some(last) = after.first() else { continue };
                    for group in before {
                        group.retain(|ip| {
                            let again = last.contains(ip);
                            if again {
                                let text =
                                    format!("{ip} stands in two groups; the last one counts");
                                draft.warnings.push(text);
                            }
                            !again
                        });
                    }
                }
                draft.config.subclusters = groups;
                Ok(())
            },
            differs: |a, b| a.subclusters != b.subclusters,
        },
    ),
    Key::new(
        &["earlyDialogWorstCase"],
        &["sip/earlyDialogWorstCase", "sip/algorithm/earlyDialogWorstCase"],
        "false",
        "WorstCaseUdpTestAffinityAlgorithm sends responses to other nodes, too. For tests only.",
        "true",
        Kind::Flag(|it| &mut it.config.early_dialog_worst_case),
    ),
    Key::new(
        &["trafficRampupCyclePeriod"],
        &["sip/trafficRampupCyclePeriod"],
        "",
        "A new node gains one share of new calls per period; needs trafficPercentageIncrease.",
        "70000",
        Kind::Span { unit: Unit::Millis, min: 1, at: |it| &mut it.ramp_up_period },
    ),
    Key::new(
        &["trafficPercentageIncrease"],
        &["sip/trafficPercentageIncrease"],
        "",
        "Size of such a share, in percent of a warm node's; needs trafficRampupCyclePeriod.",
        "50",
        Kind::Limit { min: 1, max: 100, at: |it| &mut it.ramp_up_percent },
    ),
];

pub(super) const HEALTH: &[Key] = &[
    Key::new(
        &["responseStatusCodeNodeRemoval", "responsesStatusCodeNodeRemoval"],
        &["sip/responsesStatusCodeNodeRemoval", "sip/responseStatusCodeNodeRemoval"],
        "",
        "Response codes that count as a failure of the node. Empty: none.",
        "503,500",
        Kind::Other {
            allowed: "a comma list of codes from 300 to 699",
            set: |draft, text| {
                value::list(text, |it| value::status(it, 300))
                    .map(|it| draft.config.error_codes = it)
            },
            differs: |a, b| a.error_codes != b.error_codes,
        },
    )
    .xml_default("503")
    .empty_is_value(),
    Key::new(
        &["responseReasonNodeRemoval"],
        &["sip/responseReasonNodeRemoval"],
        "",
        "Such a response only counts with this reason phrase. Unset: with any.",
        "Media server down",
        Kind::Text(|it| &mut it.config.error_reason),
    ),
    Key::new(
        &["maxNumberResponsesWithError"],
        &["sip/maxNumberResponsesWithError"],
        "5",
        "Failures that a node may have; one more and it gets no new calls.",
        "10",
        Kind::Count { min: 0, max: 1_000_000, at: |it| &mut it.config.errors_max },
    ),
    Key::new(
        &["maxErrorTime"],
        &["sip/maxErrorTime"],
        "300000",
        "Failures further apart than this do not add up.",
        "60000",
        Kind::Time { unit: Unit::Millis, min: 1, at: |it| &mut it.config.error_time },
    ),
    Key::new(
        &["badNodeRetryMillis"],
        &["sip/badNodeRetryMillis"],
        "",
        "A bad node gets new calls again after this long, and is bad again with its next failure; unset: \
         when it has restarted.",
        "600000",
        Kind::Span { unit: Unit::Millis, min: 1_000, at: |it| &mut it.config.probation },
    ),
    Key::new(
        &["maxRequestNumberWithoutResponse"],
        &["sip/maxRequestNumberWithoutResponse"],
        "",
        "Unanswered requests that a node may have before it gets no new calls; needs maxResponseTime.",
        "20",
        Kind::Limit { min: 1, max: 1_000_000, at: |it| &mut it.silence_requests },
    ),
    Key::new(
        &["maxResponseTime"],
        &["sip/maxResponseTime"],
        "",
        "And the node has not answered anything for longer than this; needs maxRequestNumberWithoutResponse.",
        "10000",
        Kind::Span { unit: Unit::Millis, min: 1, at: |it| &mut it.silence_time },
    ),
    Key::new(
        &["suspectMillis"],
        &["common/suspectMillis"],
        "2000",
        "A node that refused a connection or a datagram gets no new calls for this long.",
        "5000",
        Kind::Time { unit: Unit::Millis, min: 0, at: |it| &mut it.config.suspect_time },
    ),
];
