//! Keys that have nothing left to do.

use super::Key;

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

const SEEN: &str = "the file itself shows whether it is JKS, PKCS12 or PEM";
const NOT_OURS: &str = "it only changed how headers look; we leave them as they are";
const NO_CACHE: &str = "there is no shared cache to configure";
const ELSEWHERE: &str = "it was never read from here; it belongs in heartbeat/heartbeatConfig";
const STACK: &str = "it tuned the Java SIP stack, which is gone";
const THREADS: &str = "it tuned Java threads; see shards";
