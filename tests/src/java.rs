//! Nodes that are Java programs: they announce themselves through `java.rmi`, which nobody here wrote.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::peer::unique;
use crate::{PATIENCE, is_installed};

/// Which fields the node's own class has.
#[derive(Clone, Copy, Debug)]
pub enum Layout {
    /// Four.
    Old,
    /// Eight, under the same serial version.
    New,
}

/// The program `tests/java/common/.../Node.java`, which lists what it can be told. Killed when dropped.
pub struct JavaNode {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
    directory: PathBuf,
}

impl JavaNode {
    /// Compiles and starts a node that finds its balancer's registry on `port` of 127.0.0.1; `None`
    /// where no JDK is installed. `options` go to the virtual machine.
    ///
    /// # Panics
    ///
    /// If it cannot be compiled.
    pub fn start(layout: Layout, port: u16, options: &[&str]) -> Option<JavaNode> {
        if !is_installed("javac") || !is_installed("java") {
            return None;
        }
        let name = format!("trunkline-java-{}", unique());
        let directory = std::env::temp_dir().join(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("java");
        let package = Path::new("org/mobicents/tools/sip/balancer");
        let common = source.join("common").join(package);
        let own = source.join(format!("{layout:?}").to_lowercase()).join(package);
        let status = Command::new("javac")
            .arg("-d")
            .arg(&directory)
            .args(["Node", "NodeRegisterRMIStub"].map(|it| common.join(it).with_extension("java")))
            .arg(own.join("SIPNode.java"))
            .status()
            .unwrap();
        assert!(status.success(), "javac: {status}");
        let mut child = Command::new("java")
            .args(["-XX:TieredStopAtLevel=1", "-Xmx64m", "-Dfile.encoding=UTF-8"])
            .args(options)
            .arg("-cp")
            .arg(&directory)
            .args(["org.mobicents.tools.sip.balancer.Node", "127.0.0.1", &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, answers) = channel();
        thread::spawn(move || {
            BufReader::new(output)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Some(JavaNode { child, input, answers, directory })
    }

    /// Has it obey one line; its answer.
    ///
    /// # Panics
    ///
    /// If it does not answer in time.
    pub fn tell(&mut self, line: &str) -> String {
        self.say(line);
        self.answer()
    }

    /// Has it begin to obey one line; [`JavaNode::answer`] waits for the end.
    ///
    /// # Panics
    ///
    /// If it has ended.
    pub fn say(&self, line: &str) {
        writeln!(&self.input, "{line}").unwrap();
    }

    /// The answer to the oldest line that has none.
    ///
    /// # Panics
    ///
    /// If it does not answer in time.
    pub fn answer(&mut self) -> String {
        self.answers.recv_timeout(2 * PATIENCE).unwrap_or_else(|it| panic!("no answer: {it}"))
    }
}

impl Drop for JavaNode {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
