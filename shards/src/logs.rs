//! Log lines in the shape of the original's manual (1.1.5), with a level that changes while running.
//!
//! Lines go to standard output, as the original's console appender wrote them, or where a log4j file says
//! ([`engine::config::log4j`]).

mod rolling;

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::config::log4j::{Appender, Layout, Piece};
use engine::relay::DropReason;
use log::{LevelFilter, Log, Metadata, Record};
use protocols::time::Time;

use self::rolling::RollingFile;
use crate::census::Full;

/// Starts logging at `level`; `RUST_LOG` is honoured where the level was not given by anyone.
///
/// Once per process; later calls only change the level.
pub fn start(level: Option<LevelFilter>) {
    let mut plain = env_logger::Builder::new();
    for library in TALKATIVE {
        plain.filter_module(library, LevelFilter::Off);
    }
    let plain = plain
        .target(env_logger::Target::Stdout)
        .filter_level(LevelFilter::Trace)
        .format(|out, record| {
            static MANUALS: LazyLock<Layout> = LazyLock::new(Layout::default);
            out.write_all(line(SystemTime::now(), record, &MANUALS).as_bytes())
        })
        .build();
    let by_module = std::env::var("RUST_LOG")
        .ok()
        .map(|it| env_logger::Builder::new().parse_filters(&it).build());
    let widest = by_module.as_ref().map(env_logger::Logger::filter);
    let by_environment = level.is_none() && by_module.is_some();
    let logger = Logger { plain, by_module };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        BY_ENVIRONMENT.store(by_environment, Ordering::Relaxed);
        log::set_max_level(level.or(widest).unwrap_or(LevelFilter::Info));
    } else if let Some(level) = level {
        set_level(level);
    }
}

/// Libraries that say by themselves what we say in our own words. `RUST_LOG` can ask for them. What
/// rustls has to say is a peer's doing, a line for each handshake if the peer wants it so.
const TALKATIVE: [&str; 6] =
    ["hyper", "hyper_util", "kube_client", "rustls", "rustls_platform_verifier", "tower"];

/// Changes the level of everything from now on; `RUST_LOG` no longer counts.
pub fn set_level(level: LevelFilter) {
    BY_ENVIRONMENT.store(false, Ordering::Relaxed);
    log::set_max_level(level);
}

/// Reads a level by its log4j or Rust name, case does not matter.
pub fn level(name: &str) -> Option<LevelFilter> {
    match name.to_ascii_uppercase().as_str() {
        "ALL" => Some(LevelFilter::Trace),
        "FATAL" => Some(LevelFilter::Error),
        name => name.parse().ok(),
    }
}

/// What [`level`] understands, for messages.
pub const LEVELS: &str = "OFF, FATAL, ERROR, WARN, INFO, DEBUG, TRACE, ALL";

/// Writes everything to these from now on, once per process. One that cannot be opened is left out; if
/// none is left, everything goes to standard output as before. Returns what the operator must hear of it.
pub fn write_to(appenders: &[Appender]) -> Vec<String> {
    let mut warnings = Vec::new();
    let outputs = appenders.iter().filter_map(|it| {
        let file = match &it.file {
            None => None,
            Some(file) => match RollingFile::open(file) {
                Ok(it) => Some(Mutex::new(it)),
                Err(error) => {
                    warnings.push(format!("{} is not written: {error}", file.path.display()));
                    return None;
                }
            },
        };
        Some(Output { file, layout: it.layout.clone() })
    });
    let outputs: Vec<_> = outputs.collect();
    if !outputs.is_empty() {
        let _ = OUTPUTS.set(outputs); // of one process there is one log4j file
    }
    warnings
}

/// Where a log4j file has lines go; unset: to standard output, as the manual shows them.
static OUTPUTS: OnceLock<Vec<Output>> = OnceLock::new();

struct Output {
    /// `None`: standard output.
    file: Option<Mutex<RollingFile>>,
    layout: Layout,
}

impl Output {
    fn write(&self, record: &Record<'_>) {
        let line = line(SystemTime::now(), record, &self.layout);
        match &self.file {
            Some(file) => file.lock().unwrap_or_else(PoisonError::into_inner).write(&line),
            // Nobody reads it: then nobody misses it.
            None => drop(std::io::stdout().write_all(line.as_bytes())),
        }
    }
}

/// Keeps drops from flooding the log: a few lines per reason and period, then a count of the rest.
///
/// Each shard has its own; a suppressed line costs one comparison and no allocation.
#[derive(Debug, Default)]
pub struct DropLog {
    reasons: [Window; DropReason::ALL.len()],
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    started: Time,
    lines: u32,
    suppressed: u64,
}

impl DropLog {
    /// Logs one dropped message, or counts it.
    pub fn note(&mut self, now: Time, reason: DropReason, whose: Whose) {
        if let Some(suppressed) = self.admit(now, reason) {
            let level = match reason {
                // Keep-alives are the normal case, not an event.
                DropReason::KeepAlive => log::Level::Trace,
                // The operator wants it so.
                DropReason::Blocked => log::Level::Debug,
                _ => log::Level::Warn,
            };
            let reason = reason.as_str();
            if suppressed == 0 {
                log::log!(level, "drop reason={reason} {whose}");
            } else {
                log::log!(level, "drop reason={reason} {whose} suppressed={suppressed}");
            }
        }
    }

    /// Whether a line may be written now, and how many were not since the last one.
    fn admit(&mut self, now: Time, reason: DropReason) -> Option<u64> {
        let window = self.reasons.get_mut(reason as usize)?;
        if now.since(window.started) >= DROP_LOG_PERIOD {
            (window.started, window.lines) = (now, 0);
        }
        if window.lines >= DROP_LINES_MAX {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

/// Whose message was dropped, as far as it is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Whose {
    /// It came from there.
    Source(SocketAddr),
    /// It was to go there.
    Receiver(SocketAddr),
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whose::Source(address) => write!(f, "source={address}"),
            Whose::Receiver(address) => write!(f, "to={address}"),
        }
    }
}

/// Says that nobody can be taken in or called for want of descriptors, memory or ports: once a second at
/// most, all shards together. `what` is what goes on without.
pub fn shortage(now: Time, what: &str, error: &std::io::Error) {
    static PACE: Pace = Pace(AtomicU64::new(0));
    if PACE.is_due(now) {
        log::warn!("{what} for now: {error}. The limit of open files may be too low (LimitNOFILE)");
    }
}

/// Says that a connection is not taken in: once a second at most for each reason, all shards together. `at` is
/// the protocol.
pub fn refused(now: Time, at: impl fmt::Display, why: Full, source: IpAddr) {
    static PACES: [Pace; 2] = [const { Pace(AtomicU64::new(0)) }; 2];
    if PACES.get(why as usize).is_some_and(|it| it.is_due(now)) {
        log::warn!("refused reason={why} at={at} source={}", source.to_canonical());
    }
}

/// When the next line of its kind may be written; milliseconds.
struct Pace(AtomicU64);

impl Pace {
    fn is_due(&self, now: Time) -> bool {
        let (millis, next) = (now.as_millis(), self.0.load(Ordering::Relaxed));
        let then = millis + LINE_PERIOD_MS;
        millis >= next
            && self.0.compare_exchange(next, then, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

const LINE_PERIOD_MS: u64 = 1_000;

/// Enough to see who it is; at this rate a flood cannot fill a disk.
const DROP_LINES_MAX: u32 = 3;
/// Period of [`DROP_LINES_MAX`].
const DROP_LOG_PERIOD: Duration = Duration::from_secs(5);
#[allow(clippy::indexing_slicing)] // at compile time, where it would be seen
const _: () = {
    let mut index = 0;
    while index < DropReason::ALL.len() {
        // The reason is the index of its own window.
        assert!(DropReason::ALL[index] as usize == index);
        index += 1;
    }
};

/// `RUST_LOG` decides, until someone names a level.
static BY_ENVIRONMENT: AtomicBool = AtomicBool::new(false);

struct Logger {
    plain: env_logger::Logger,
    by_module: Option<env_logger::Logger>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        match &self.by_module {
            Some(it) if BY_ENVIRONMENT.load(Ordering::Relaxed) => it.enabled(metadata),
            _ => metadata.level() <= log::max_level(),
        }
    }

    fn log(&self, record: &Record<'_>) {
        match &self.by_module {
            Some(it) if BY_ENVIRONMENT.load(Ordering::Relaxed) && !it.matches(record) => {}
            _ => match OUTPUTS.get() {
                None => self.plain.log(record),
                Some(outputs) if self.plain.matches(record) => {
                    outputs.iter().for_each(|it| it.write(record));
                }
                Some(_) => {}
            },
        }
    }

    fn flush(&self) {
        self.plain.flush();
    }
}

/// One line, `2016-02-08 15:54:28,036 INFO main - text` as the manual has it, local time. Line breaks in the
/// text become `\n`: a peer's bytes must not forge lines.
fn line(at: SystemTime, record: &Record<'_>, layout: &Layout) -> String {
    let mut text = String::with_capacity(128);
    for piece in &layout.0 {
        match piece {
            Piece::Text(it) => text.push_str(it),
            Piece::Date => {
                let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
                stamp(&mut text, since, local_offset(since.as_secs()));
            }
            Piece::Level(width) => fill(&mut text, record.level().as_str(), *width),
            Piece::Thread(width) => {
                fill(&mut text, std::thread::current().name().unwrap_or("-"), *width);
            }
            Piece::Message => say(&mut text, record),
        }
    }
    text
}

fn fill(text: &mut String, word: &str, width: i8) {
    let most = usize::from(width.unsigned_abs());
    let _ = match width {
        ..0 => write!(text, "{word:<most$}"),
        0.. => write!(text, "{word:>most$}"),
    };
}

fn say(text: &mut String, record: &Record<'_>) {
    let start = text.len();
    let _ = write!(text, "{}", record.args());
    if text.get(start..).is_some_and(|it| it.contains(char::is_control)) {
        let message: String = text.split_off(start);
        for it in message.chars() {
            if it.is_control() {
                text.extend(it.escape_default());
            } else {
                text.push(it);
            }
        }
    }
}

/// Civil time from seconds since 1970 (Howard Hinnant's `civil_from_days`, proleptic Gregorian).
fn stamp(text: &mut String, since: Duration, offset_seconds: i64) {
    let seconds = i64::try_from(since.as_secs()).unwrap_or(0) + offset_seconds;
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let _ = write!(
        text,
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02},{:03}",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    );
}

/// Seconds east of Greenwich at that moment.
fn local_offset(seconds: u64) -> i64 {
    let Ok(seconds) = libc::time_t::try_from(seconds) else { return 0 };
    // SAFETY: an all-zero `tm` is valid (integers and a null pointer); `localtime_r` writes only to it
    // and is thread-safe; we never call `setenv`. `tm_zone` is not read.
    #[allow(unsafe_code)]
    let broken_down = unsafe {
        let mut it: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const seconds, &raw mut it);
        it
    };
    broken_down.tm_gmtoff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_is_the_manuals() {
        let cases = [
            (0, 0, "1970-01-01 00:00:00,000"),
            (1_454_946_868_036, 0, "2016-02-08 15:54:28,036"),
            (1_454_946_868_036, 3_600, "2016-02-08 16:54:28,036"),
            (1_454_946_868_036, -16 * 3_600, "2016-02-07 23:54:28,036"),
            (951_782_400_999, 0, "2000-02-29 00:00:00,999"),
            (4_107_542_399_000, 0, "2100-02-28 23:59:59,000"),
            (4_107_542_400_000, 0, "2100-03-01 00:00:00,000"),
        ];
        for (millis, offset, want) in cases {
            let mut text = String::new();
            stamp(&mut text, Duration::from_millis(millis), offset);
            assert_eq!(text, want);
        }
    }

    #[test]
    fn a_line_has_level_thread_and_text_and_stays_one_line() {
        let at = UNIX_EPOCH + Duration::from_millis(1_454_946_868_036);
        let text = std::thread::Builder::new()
            .name("main".into())
            .spawn(move || {
                let arguments = format_args!("source=\r\n2016 INFO main - forged");
                let record = Record::builder().level(log::Level::Warn).args(arguments).build();
                let wide =
                    Layout(vec![Piece::Level(-6), Piece::Thread(6), Piece::Text(";".into())]);
                [line(at, &record, &Layout::default()), line(at, &record, &wide)]
            })
            .unwrap()
            .join()
            .unwrap();
        let mut want = String::new();
        stamp(&mut want, Duration::from_millis(1_454_946_868_036), local_offset(1_454_946_868));
        want.push_str(" WARN main - source=\\r\\n2016 INFO main - forged\n");
        assert_eq!(text, [want, "WARN    main;".to_owned()]);
    }

    #[test]
    fn a_flood_of_one_kind_is_a_line_a_second() {
        let pace = Pace(AtomicU64::new(0));
        let due = (1_000..4_000).filter(|it| pace.is_due(Time::from_millis(*it)));
        assert_eq!(due.collect::<Vec<_>>(), [1_000, 2_000, 3_000]);
    }

    #[test]
    fn a_flood_of_drops_is_a_few_lines_and_a_count() {
        let mut log = DropLog::default();
        let at = |millis: u64| Time::from_millis(1_000_000 + millis);
        let written = (0..100_000)
            .filter(|it| log.admit(at(it / 100), DropReason::Blocked).is_some())
            .count();
        assert_eq!(written, 3);
        assert_eq!(log.admit(at(100), DropReason::NoNode), Some(0), "reasons are apart");
        assert_eq!(log.admit(at(6_000), DropReason::Blocked), Some(99_997));
        assert_eq!(log.admit(at(6_000), DropReason::Blocked), Some(0));
    }
}
