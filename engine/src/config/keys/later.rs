//! Keys that this build checks but does not serve, and keys that have nothing left to do.

use super::{Key, Kind};
use crate::config::value;

pub(super) const KUBERNETES: &[Key] = &[
    number(
        &["heartbeat.pullPeriod"],
        &["heartbeat/heartbeatConfig/pullPeriod"],
        "5000",
        "From one look at Kubernetes to the next, milliseconds.",
        "1000",
    )
    .later("Kubernetes"),
    text(
        &["heartbeat.nodeName"],
        &["heartbeat/heartbeatConfig/nodeName"],
        "Beginning of the names of pods that are nodes.",
        "restcomm",
    )
    .later("Kubernetes"),
];

pub(super) const IGNORED: &[Key] = &[
    Key::ignored(
        &["internalTransport"],
        &[],
        "the port keys say which transports are open; it never had an effect (sip.internalTransport is \
         another key)",
    ),
    Key::ignored(
        &["externalTransport"],
        &[],
        "the port keys say which transports are open; it never had an effect",
    ),
    Key::ignored(&["usePrettyEncoding"], &["sip/usePrettyEncoding"], NOT_OURS),
    Key::ignored(
        &["persistentConsistentHashCacheConfiguration"],
        &["sip/algorithm/persistentConsistentHashCacheConfiguration"],
        "balancers agree by arithmetic; there is no shared cache to configure",
    ),
    Key::ignored(&["cacheConfiguration"], &["common/cacheConfiguration"], NO_CACHE),
    Key::ignored(&["cacheConfigFile"], &["common/cacheConfigFile"], NO_CACHE),
    Key::ignored(
        &["jmxHtmlAdapterPort"],
        &["common/jmxHtmlAdapterPort"],
        "there is no Java machine to look into; statisticPort shows the same figures",
    ),
    Key::ignored(&[], &["common/rmiRegistryPort"], ELSEWHERE),
    Key::ignored(&[], &["common/rmiRemoteObjectPort"], ELSEWHERE),
    Key::ignored(
        &["gov.nist.javax.sip.SIP_MESSAGE_VALVE"],
        &[],
        "valves are Java classes; see blocked-values, sourceRateMax and totalRateMax",
    ),
    Key::ignored(
        &["org.mobicents.ext.javax.sip.congestion.*"],
        &[],
        "valves are Java classes; see sourceRateMax and totalRateMax",
    ),
    Key::ignored(&["javax.sip.STACK_NAME"], &[], STACK),
    Key::ignored(&["javax.sip.AUTOMATIC_DIALOG_SUPPORT"], &[], STACK),
    Key::ignored(&["javax.sip.IP_ADDRESS"], &[], STACK),
    Key::ignored(&["javax.sip.ROUTER_PATH"], &[], STACK),
    Key::ignored(&["javax.sip.FORKABLE_EVENTS"], &[], STACK),
    Key::ignored(&["gov.nist.javax.sip.TRACE_LEVEL"], &[], "logLevel says what is logged"),
    Key::ignored(&["gov.nist.javax.sip.LOG_MESSAGE_CONTENT"], &[], "messages are never logged"),
    Key::ignored(&["gov.nist.javax.sip.DEBUG_LOG"], &[], "logLevel says what is logged"),
    Key::ignored(&["gov.nist.javax.sip.SERVER_LOG"], &[], "messages are never logged"),
    Key::ignored(&["gov.nist.javax.sip.LOG_FACTORY"], &[], "logLevel says what is logged"),
    Key::ignored(&["gov.nist.javax.sip.STACK_LOGGER"], &[], "logLevel says what is logged"),
    Key::ignored(&["gov.nist.javax.sip.SERVER_LOGGER"], &[], "logLevel says what is logged"),
    Key::ignored(&["gov.nist.javax.sip.THREAD_POOL_SIZE"], &[], THREADS),
    Key::ignored(&["gov.nist.javax.sip.TCP_POST_PARSING_THREAD_POOL_SIZE"], &[], THREADS),
    Key::ignored(&["gov.nist.javax.sip.REENTRANT_LISTENER"], &[], THREADS),
    Key::ignored(&["gov.nist.javax.sip.THREAD_PRIORITY"], &[], THREADS),
    Key::ignored(&["gov.nist.javax.sip.THREAD_AUDIT_INTERVAL_IN_MILLISECS"], &[], THREADS),
    Key::ignored(&["gov.nist.javax.sip.TIMER_CLASS_NAME"], &[], THREADS),
    Key::ignored(&["gov.nist.javax.sip.AGGRESSIVE_CLEANUP"], &[], STACK),
    Key::ignored(&["gov.nist.javax.sip.MESSAGE_PROCESSOR_FACTORY"], &[], STACK),
    Key::ignored(&["gov.nist.javax.sip.MAX_FORK_TIME_SECONDS"], &[], STACK),
    Key::ignored(&["gov.nist.javax.sip.CACHE_CLIENT_CONNECTIONS"], &[], STACK),
    Key::ignored(&["gov.nist.javax.sip.CACHE_SERVER_CONNECTIONS"], &[], STACK),
    Key::ignored(&["gov.nist.javax.sip.PASS_INVITE_NON_2XX_ACK_TO_LISTENER"], &[], STACK),
    Key::ignored(&["gov.nist.javax.sip.DELIVER_UNSOLICITED_NOTIFY"], &[], STACK),
    Key::ignored(&["gov.nist.javax.sip.AUTOMATIC_DIALOG_ERROR_HANDLING"], &[], STACK),
    Key::ignored(&["gov.nist.javax.sip.IS_BACK_TO_BACK_USER_AGENT"], &[], STACK),
    Key::ignored(&["pathName"], &[], STACK),
    Key::ignored(&["javax.net.debug"], &[], "logLevel=DEBUG tells why handshakes fail"),
    Key::ignored(&["javax.net.ssl.keyStoreType"], &[], SEEN),
    Key::ignored(&["javax.net.ssl.trustStoreType"], &[], SEEN),
];

const fn text(
    names: &'static [&'static str],
    xml: &'static [&'static str],
    help: &'static str,
    example: &'static str,
) -> Key {
    checked(names, xml, "", help, example, "text", |it| value::text(it).map(drop))
}

const fn number(
    names: &'static [&'static str],
    xml: &'static [&'static str],
    default: &'static str,
    help: &'static str,
    example: &'static str,
) -> Key {
    checked(names, xml, default, help, example, "a whole number", |it| {
        value::number::<i64>(it, -1, i64::from(i32::MAX)).map(drop)
    })
}

const fn checked(
    names: &'static [&'static str],
    xml: &'static [&'static str],
    default: &'static str,
    help: &'static str,
    example: &'static str,
    allowed: &'static str,
    check: fn(&str) -> Result<(), String>,
) -> Key {
    Key::new(names, xml, default, help, example, Kind::Unkept { allowed, check })
}

const SEEN: &str = "the file itself shows whether it is JKS, PKCS12 or PEM";
const NOT_OURS: &str = "it only changed how headers look; we leave them as they are";
const NO_CACHE: &str = "there is no shared cache to configure";
const ELSEWHERE: &str = "it was never read from here; it belongs in heartbeat/heartbeatConfig";
const STACK: &str = "it tuned the Java SIP stack, which is gone";
const THREADS: &str = "it tuned Java threads; see shards";
