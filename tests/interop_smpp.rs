//! SMPP with programs that nobody here wrote: the npm package `smpp` as SMSC and as ESME, the PyPI package
//! `smpplib` and Kannel's bearerbox as ESMEs. No message may fail, and every receipt reaches its sender.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tests::smpp::Smsc;
use tests::{Balancer, Setup, free_port, is_installed, wait_for};

/// A program and what it says, killed when dropped.
struct Program {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Program {
    fn start(command: &mut Command) -> Program {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let pipes: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for pipe in pipes {
            let said = said.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let mut said = said.lock().unwrap();
                    said.push_str(&line);
                    said.push('\n');
                }
            });
        }
        Program { child, said }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    fn count(&self, line: &str) -> usize {
        self.said().lines().filter(|it| it.starts_with(line)).count()
    }

    fn wait(&self, line: &str, count: usize) {
        wait_for(&format!("{count} of {line:?} in\n{}", self.said()), || {
            (self.count(line) >= count).then_some(())
        });
    }

    /// # Panics
    ///
    /// When it has ended, showing what it said.
    fn must_run(&mut self) {
        let status = self.child.try_wait().unwrap();
        assert!(status.is_none(), "ended with {status:?}:\n{}", self.said());
    }

    /// Waits for its end; 0 says that all went well.
    fn finish(mut self, what: &str) {
        let status = wait_for(what, || {
            let status = self.child.try_wait().unwrap();
            assert!(!self.said().contains("failed"), "{what}:\n{}", self.said());
            status
        });
        assert!(status.success(), "{what}: {status}\n{}", self.said());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where `.ci/run` puts packages of npm and PyPI.
fn packages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers")
}

/// Whether the package is there; see [`is_installed`].
fn has_package(path: &str) -> bool {
    if packages().join(path).is_dir() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{path} is not installed, and CI needs it");
    eprintln!("SKIPPED: {path} is not installed in target/peers");
    false
}

fn has_npm() -> bool {
    is_installed("node") && has_package("node_modules/smpp")
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

fn node(script_name: &str, arguments: &[&str]) -> Program {
    let mut command = Command::new("node");
    let command = command.arg(script(script_name)).args(arguments);
    Program::start(command.env("NODE_PATH", packages().join("node_modules")))
}

/// Two SMSCs of npm's and a balancer in front of them.
fn scene(is_mux: bool) -> ([Program; 2], Balancer) {
    let servers = [(); 2].map(|()| {
        let port = free_port();
        let server = node("smpp_server.js", &[&port.to_string()]);
        server.wait("ready", 1);
        (port, server)
    });
    let list = servers.each_ref().map(|it| format!("127.0.0.1:{}", it.0)).join(",");
    let setup = Setup::smpp(&[] as &[Smsc]).set("remoteServers", &list).certified();
    let setup = setup.set("smppSslPort", "SMPPS").set("muxMode", &is_mux.to_string());
    (servers.map(|it| it.1), setup.start())
}

#[test]
fn npms_client_and_server_lose_no_message_and_no_receipt() {
    if !has_npm() {
        return;
    }
    for is_mux in [false, true] {
        let (servers, lb) = scene(is_mux);
        let plain = format!("smpp://{}", lb.smpp());
        let secure = format!("ssmpp://{}", lb.smpps());
        // In mux mode the first two share their connections to servers: receipts must not go astray.
        let clients = [("one", &plain), ("one", &plain), ("two", &plain), ("three", &secure)];
        let clients = clients.map(|(name, url)| node("smpp_client.js", &[url, name, "300", "20"]));
        for client in clients {
            client.finish(&format!("npm's client, mux {is_mux}"));
        }
        // Servers may hear the last of it later than clients, and say it later still.
        let count = |line: &str| servers.iter().map(|it| it.count(line)).sum::<usize>();
        for line in ["submit_sm ", "deliver_sm_resp "] {
            wait_for(line, || (count(line) >= 1_200).then_some(()));
        }
        assert_eq!((count("submit_sm "), count("deliver_sm_resp 0")), (1_200, 1_200));
        if !is_mux {
            assert_eq!(servers.each_ref().map(|it| it.count("bind_transceiver")), [2, 2]);
        }
        lb.wait_no_smpp();
    }
}

#[test]
fn smpplib_loses_no_message_and_no_receipt() {
    if !has_npm() || !is_installed("python3") || !has_package("python/smpplib") {
        return;
    }
    for is_mux in [false, true] {
        let (_servers, lb) = scene(is_mux);
        let port = lb.smpp().port().to_string();
        let clients = ["one", "one", "two"].map(|name| {
            let mut command = Command::new("python3");
            let command = command.arg(script("smpp_client.py")).args([&port, name, "200"]);
            Program::start(command.env("PYTHONPATH", packages().join("python")))
        });
        for client in clients {
            client.finish(&format!("smpplib, mux {is_mux}"));
        }
        lb.wait_no_smpp();
    }
}

#[test]
fn kannel_sends_messages_and_hears_of_their_delivery() {
    if !has_npm() || !is_installed("bearerbox") {
        return;
    }
    for is_mux in [false, true] {
        let (servers, lb) = scene(is_mux);
        let [admin, boxes, http] = [(); 3].map(|()| free_port());
        let receipts = TcpListener::bind("127.0.0.1:0").unwrap();
        let directory = std::env::temp_dir().join(format!("trunkline-kannel-{http}"));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("kannel.conf");
        let text = format!(
            "group = core\nadmin-port = {admin}\nadmin-password = admin\nsmsbox-port = {boxes}\n\
             box-allow-ip = 127.0.0.1\nbox-deny-ip = *.*.*.*\n\n\
             group = smsc\nsmsc = smpp\nhost = 127.0.0.1\nport = {}\ntransceiver-mode = true\n\
             smsc-username = kannel\nsmsc-password = secret\nsystem-type = \"\"\n\
             enquire-link-interval = 1\n\n\
             group = smsbox\nbearerbox-host = 127.0.0.1\nsendsms-port = {http}\n\n\
             group = sendsms-user\nusername = user\npassword = word\nmax-messages = 1\n\n\
             group = sms-service\nkeyword = default\ntext = \"\"\nmax-messages = 0\n",
            lb.smpp().port()
        );
        std::fs::write(&file, text).unwrap();
        let start =
            |name: &str| Program::start(Command::new(name).arg(&file).current_dir(&directory));
        let mut bearerbox = start("bearerbox");
        servers[0].wait("bind_transceiver kannel", 1);
        // Its threads bind to servers and listen to boxes in any order, and a box that is early ends.
        // Asked of the kernel: a connection would count as a box, and be waited for. LISTEN is 0A.
        let listener = format!("00000000:{boxes:04X} 00000000:0000 0A ");
        wait_for("bearerbox listens to boxes", || {
            std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&listener).then_some(())
        });
        let mut smsbox = start("smsbox");
        // It takes messages a moment before it has anywhere to send them, and ends over that.
        wait_for("the box is with its bearer", || {
            smsbox.must_run();
            smsbox.said().contains("heartbeat_thread").then_some(())
        });
        let (count, own) = (20, receipts.local_addr().unwrap());
        for number in 0..count {
            let path = format!(
                "/cgi-bin/sendsms?username=user&password=word&from=123&to=4455{number:02}&text=hello\
                 &dlr-mask=1&dlr-url=http%3A%2F%2F{own}%2F{number}"
            );
            wait_for("Kannel takes a message", || {
                bearerbox.must_run();
                smsbox.must_run();
                let mut stream = TcpStream::connect(("127.0.0.1", http)).ok()?;
                write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).ok()?;
                // Queued: bearerbox has not read yet that it is bound.
                let is_taken = ["0: Accepted", "3: Queued"].iter().any(|it| answer.contains(it));
                is_taken.then_some(())
            });
        }
        let mut heard = std::collections::BTreeSet::new();
        receipts.set_nonblocking(true).unwrap();
        let confirmed = || servers.iter().map(|it| it.count("deliver_sm_resp 0")).sum::<usize>();
        wait_for("Kannel has all receipts", || (confirmed() >= count).then_some(()));
        wait_for("it says so", || {
            while let Ok((stream, _)) = receipts.accept() {
                stream.set_nonblocking(false).unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                // It would use the connection again, and not see that it is closed.
                let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
                let _ = (&stream).write_all(answer);
                heard.insert(line.split(' ').nth(1).unwrap_or_default().to_owned());
            }
            (heard.len() == count).then_some(())
        });
        let submitted = || servers.iter().map(|it| it.count("submit_sm ")).sum::<usize>();
        wait_for("all messages in what servers say", || (submitted() >= count).then_some(()));
        assert_eq!(submitted(), count, "mux {is_mux}");
        let _ = std::fs::remove_dir_all(&directory);
    }
}
