//! The process itself: shards, limits, logging, administration.

use std::time::Duration;

use super::{Key, Kind, Unit};
use crate::config::value;

pub(super) const PROCESS: &[Key] = &[
    Key::new(
        &["shards"],
        &["common/shards"],
        "0",
        "Shards, one CPU each. 0: as many as there are CPUs for us.",
        "2",
        Kind::Size { min: 0, max: 255, at: |it| &mut it.config.shards },
    )
    .restart(),
    Key::new(
        &["reuseportSteering"],
        &["common/reuseportSteering"],
        "hash",
        "How the kernel spreads messages over shards: by their addresses (hash), by the CPU that took them \
         in (cpu), or so that one trunk's messages reach all shards (random).",
        "random",
        Kind::Other {
            allowed: "hash, cpu or random",
            set: |draft, text| value::steering(text).map(|it| draft.config.steering = it),
            differs: |a, b| a.steering != b.steering,
        },
    )
    .restart(),
    Key::new(
        &["coalesceMicros"],
        &["common/coalesceMicros"],
        "100",
        "Longest wait for more messages to handle together, in microseconds, where that saves CPU. 0: never \
         wait.",
        "0",
        Kind::Other {
            allowed: "a whole number of microseconds from 0 to 10000",
            set: |draft, text| {
                value::number::<u32>(text, 0, 10_000)
                    .map(|it| draft.config.coalesce = Duration::from_micros(u64::from(it)))
            },
            differs: |a, b| a.coalesce != b.coalesce,
        },
    ),
    Key::new(
        &["udpSegmentation"],
        &["common/udpSegmentation"],
        "true",
        "Hand datagrams of one destination to the kernel in one piece, which it cuts up again: saves CPU. A \
         capture on this host shows the piece.",
        "false",
        Kind::Flag(|it| &mut it.config.couples_datagrams),
    ),
    Key::new(
        &["connectionsMax"],
        &["common/connectionsMax"],
        "262144",
        "Most connections of SIP over streams, with clients and nodes, on all shards together. HTTP's clients may \
         have as many again, and SMPP's.",
        "10000",
        Kind::Size { min: 1, max: 10_000_000, at: |it| &mut it.config.connections_max },
    )
    .restart(),
    Key::new(
        &["sourceConnectionsMax"],
        &["common/sourceConnectionsMax"],
        "0",
        "Most connections of SIP that one source address, or one /64 of IPv6, may have open on all shards \
         together. 0: any number.",
        "1000",
        Kind::Size { min: 0, max: 10_000_000, at: |it| &mut it.config.source_connections_max },
    ),
    Key::new(
        &["shutdownTimeout"],
        &["common/shutdownTimeout"],
        "10000",
        "How long a graceful stop keeps serving.",
        "2000",
        Kind::Time { unit: Unit::Millis, min: 0, at: |it| &mut it.config.shutdown_timeout },
    ),
    Key::new(
        &["stopKeepsStatistics"],
        &["common/stopKeepsStatistics"],
        "false",
        "Keep the statistics port open during a graceful stop: /health answers 503, and /lbinfo shows what is \
         left. Otherwise the port closes first, which is what a TCP check of keepalived waits for.",
        "true",
        Kind::Flag(|it| &mut it.config.stop_keeps_statistics),
    ),
    Key::new(
        &["logLevel"],
        &["common/logLevel"],
        "INFO",
        "Least severe log lines that are written.",
        "DEBUG",
        Kind::Other {
            allowed: "OFF, ERROR, WARN, INFO, DEBUG or TRACE",
            set: |draft, text| value::log_level(text).map(|it| draft.config.log_level = it),
            differs: |a, b| a.log_level != b.log_level,
        },
    ),
    Key::ignored(
        &["logConfigFile"],
        &[],
        "it is an argument: -DlogConfigFile=FILE, of which the root logger's level, its console, its files with \
         their sizes and backups, and the layout of lines count",
    ),
];

pub(super) const ADMINISTRATION: &[Key] = &[
    Key::new(
        &["statisticPort", "apiPort"],
        &["common/apiPort", "common/statisticPort"],
        "",
        "Port of /lbstat, /lbinfo, /metrics, /health and the administrator's commands. Unset: closed.",
        "2006",
        Kind::Port(|it| &mut it.config.statistic_port),
    )
    .xml_default("2006")
    .outranked_by("apiPort")
    .restart(),
    Key::new(
        &["securityRequired"],
        &["common/securityRequired"],
        "false",
        "Commands that change something need login and password.",
        "true",
        Kind::Flag(|it| &mut it.config.security_required),
    ),
    Key::new(
        &["login"],
        &["common/login"],
        "",
        "The administrator.",
        "admin",
        Kind::Text(|it| &mut it.config.login),
    ),
    Key::new(
        &["password"],
        &["common/password"],
        "",
        "The administrator's password.",
        "secret",
        Kind::Text(|it| &mut it.config.password),
    )
    .secret(),
];
