//! Phones in a browser: SIP.js in headless Chromium, which nobody here wrote.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::{PATIENCE, is_installed};

/// The program `tests/browser/phones.mjs`, which lists what it can be told. Ended when dropped.
pub struct Phones {
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Phones {
    /// Starts the browser; `None` where it, Node.js or the packages of `tests/browser` are missing.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start() -> Option<Phones> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser");
        if !is_installed("node") || !is_installed("chromium") {
            return None;
        }
        if !directory.join("node_modules/sip.js").is_dir() {
            assert!(
                std::env::var_os("CI").is_none(),
                "npm ci --prefix tests/browser, and CI needs it"
            );
            eprintln!("SKIPPED: packages are not installed: npm ci --prefix tests/browser");
            return None;
        }
        let chromium = crate::find_program("chromium").unwrap();
        let mut child = Command::new("node")
            .arg(directory.join("phones.mjs"))
            .arg(chromium)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.into_iter().try_for_each(|line| sender.send(line))
        });
        let phones = Phones { child, input, answers };
        assert_eq!(phones.answer("the start of the browser"), "ready");
        Some(phones)
    }

    /// Has it obey one line.
    ///
    /// # Panics
    ///
    /// If it fails or takes too long.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
        assert_eq!(self.answer(line), "ok", "{line}");
    }

    fn answer(&self, what: &str) -> String {
        self.answers.recv_timeout(3 * PATIENCE).unwrap_or_else(|it| panic!("{what}: {it}"))
    }
}

impl Drop for Phones {
    fn drop(&mut self) {
        // It closes the browser, which killing it would leave behind, and ends.
        drop(self.input.take());
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
