//! A log file that is renamed when it is large, as log4j's `RollingFileAppender` does it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;

use engine::config::log4j::LogFile;

/// An open log file.
pub(super) struct RollingFile {
    rules: LogFile,
    file: File,
    bytes: u64,
}

impl RollingFile {
    /// Opens or makes the file, and the directory that it is to be in.
    ///
    /// # Errors
    ///
    /// The kernel's: the operator has to name another place.
    pub(super) fn open(rules: &LogFile) -> io::Result<RollingFile> {
        if let Some(directory) = rules.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut options = File::options();
        let file = match rules.appends {
            true => options.append(true),
            false => options.write(true).truncate(true),
        };
        let file = file.create(true).open(&rules.path)?;
        let bytes = file.metadata()?.len();
        Ok(RollingFile { rules: rules.clone(), file, bytes })
    }

    /// Writes a line, and renames the file if that was enough. A full disk costs the line and no more.
    pub(super) fn write(&mut self, line: &str) {
        let _ = self.file.write_all(line.as_bytes());
        self.bytes = self.bytes.saturating_add(line.len() as u64);
        if self.rules.bytes_max.is_some_and(|most| self.bytes >= most) {
            self.roll();
        }
    }

    /// `file` becomes `file.1`, that `file.2`; the oldest is gone.
    fn roll(&mut self) {
        for number in (1..self.rules.backups).rev() {
            let _ = fs::rename(self.backup(number), self.backup(number + 1)); // there may be none yet
        }
        if self.rules.backups > 0 {
            let _ = fs::rename(&self.rules.path, self.backup(1));
        }
        self.bytes = 0;
        if let Ok(file) = File::create(&self.rules.path) {
            self.file = file;
        }
    }

    fn backup(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.rules.path);
        name.push(format!(".{number}"));
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_becomes_a_backup_and_the_oldest_goes() {
        let directory = std::env::temp_dir().join(format!("trunkline-logs-{}", std::process::id()));
        let path = directory.join("new/lb.log");
        let rules =
            |appends| LogFile { path: path.clone(), appends, bytes_max: Some(10), backups: 2 };
        let read = |name: &str| fs::read_to_string(directory.join("new").join(name)).ok();
        let all = || ["lb.log", "lb.log.1", "lb.log.2", "lb.log.3"].map(read);
        let text = |it: &str| Some(it.to_owned());

        let mut log = RollingFile::open(&rules(true)).unwrap();
        for line in ["first\n", "second\n", "third, long\n", "4\n"] {
            log.write(line);
        }
        let want = [text("4\n"), text("third, long\n"), text("first\nsecond\n"), None];
        assert_eq!(all(), want);
        // Another start goes on where this one ends, and counts what is there.
        let mut log = RollingFile::open(&rules(true)).unwrap();
        log.write("fifth...\n");
        assert_eq!(all(), [text(""), text("4\nfifth...\n"), text("third, long\n"), None]);
        log.write("lost\n");
        let mut log = RollingFile::open(&LogFile { backups: 0, ..rules(false) }).unwrap();
        assert_eq!(read("lb.log"), text(""));
        log.write("no backups\n");
        log.write("6\n");
        assert_eq!(all(), [text("6\n"), text("4\nfifth...\n"), text("third, long\n"), None]);
        fs::remove_dir_all(&directory).unwrap();
        fs::write(&directory, "a file").unwrap();
        assert!(RollingFile::open(&rules(true)).is_err());
        fs::remove_file(&directory).unwrap();
    }
}
