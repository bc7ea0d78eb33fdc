//! HTTP with peers that nobody here wrote: curl, wrk, nginx, Tomcat, a browser, a WebSocket library.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tests::web::{WebServer, get, ok};
use tests::{Balancer, Node, PATIENCE, Setup, is_installed, keys, wait_for};

/// A process and its directory; both are gone when this is dropped.
struct Program {
    child: Child,
    directory: PathBuf,
}

impl Program {
    fn start(command: &mut Command, directory: PathBuf) -> Program {
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|it| panic!("{command:?}: {it}"));
        Program { child, directory }
    }

    /// The port that it says it listens on.
    fn port(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Kills it, as a machine that loses its power.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A directory of one's own.
fn directory(name: &str) -> PathBuf {
    let port = tests::Peer::bind("x").address().port();
    let directory =
        std::env::temp_dir().join(format!("trunkline-{name}-{}-{port}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// What a program prints; it must succeed.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {} {text} {errors}", output.status);
    text
}

/// nginx in one process, as a node: `/name` answers with its name, `/file` with 1 MiB, `/upload` with 201.
fn nginx(name: &str) -> (Program, SocketAddr) {
    let directory = directory("nginx");
    let port = tests::Peer::bind("x").address().port();
    fs::write(directory.join("file"), file()).unwrap();
    let here = directory.display();
    let text = format!(
        "daemon off; master_process off; error_log stderr; pid {here}/pid;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_max_body_size 0; client_body_temp_path {here}/body; \
         proxy_temp_path {here}/p; fastcgi_temp_path {here}/f; uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;\n\
         server {{ listen 127.0.0.1:{port}; root {here}; if_modified_since before;\n\
         location = /name {{ return 200 '{name}'; }}\n\
         location /upload/ {{ dav_methods PUT; create_full_put_path on; }} }} }}\n"
    );
    fs::write(directory.join("nginx.conf"), text).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&directory).args(["-e", "stderr", "-c", "nginx.conf"]);
    let program = Program::start(&mut command, directory);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    wait_for("nginx", || std::net::TcpStream::connect(address).ok());
    (program, address)
}

fn file() -> Vec<u8> {
    (0..1 << 20).map(|it: u32| (it / 5 % 251) as u8).collect()
}

fn node_at(lb: &Balancer, name: &str, address: SocketAddr) -> Node {
    let port = address.port().to_string();
    let node = Node::bind(name).property("httpPort", &port).property("jvmRoute", name);
    let node = lb.announced(node);
    lb.wait_node(name, |it| it.host_name == name);
    node
}

#[test]
fn curl_and_nginx_understand_each_other_through_the_balancer() {
    if !is_installed("curl") || !is_installed("nginx") {
        return;
    }
    let lb =
        Setup::two_entry().certified().set("httpPort", "HTTP").set("httpsPort", "HTTPS").start();
    let (_one, first) = nginx("one");
    let (_two, second) = nginx("two");
    let _nodes = [node_at(&lb, "one", first), node_at(&lb, "two", second)];
    let scratch = directory("curl");
    let (out, up) = (scratch.join("out"), scratch.join("up"));
    fs::write(&up, file().repeat(8)).unwrap();
    let (out_path, up_path) = (out.display().to_string(), up.display().to_string());
    let ca = keys().path("ca.pem").display().to_string();
    let plain = format!("http://{}", lb.http());
    let secure = format!("https://{}", lb.https());
    for base in [&plain, &secure] {
        let curl = |arguments: &[&str]| {
            said("curl", &[["-sS", "--cacert", &ca, "-m", "20"].as_slice(), arguments].concat())
        };
        let url = |path: &str| format!("{base}{path}");
        for version in ["--http1.0", "--http1.1", "--http2"] {
            let name = curl(&[version, &url("/name")]);
            assert!(name == "one" || name == "two", "{version} {name}");
        }
        // One connection, many requests: transfers say that it was used again.
        let many: Vec<String> = (0..10).map(|_| url("/name")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let counts = curl(&[["-w", " %{num_connects}\n"].as_slice(), many.as_slice()].concat());
        let connects = counts.lines().filter(|it| it.ends_with(" 1")).count();
        assert_eq!(connects, 1, "{counts}");
        curl(&["-o", &out_path, &url("/file")]);
        assert!(fs::read(&out).unwrap() == file());
        let code = ["-o", &out_path, "-w", "%{http_code}"];
        let curl_code = |arguments: &[&str]| curl(&[code.as_slice(), arguments].concat());
        assert_eq!(curl_code(&["-r", "1000-1999", &url("/file")]), "206");
        assert!(fs::read(&out).unwrap() == file()[1000..2000]);
        assert_eq!(curl_code(&["-I", &url("/file")]), "200");
        assert_eq!(curl_code(&[&url("/missing")]), "404");
        let since = "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT";
        assert_eq!(curl_code(&["-H", since, &url("/file")]), "304");
        // 8 MiB up: curl waits for 100 Continue; in chunks; and as a PUT that makes a file.
        for (at, how) in [vec![], vec!["-H", "Transfer-Encoding: chunked"], vec!["-H", "Expect:"]]
            .into_iter()
            .enumerate()
        {
            let target = url(&format!("/upload/{at}?jsessionid=1.one"));
            let put = curl_code(&[how.as_slice(), &["-T", &up_path, &target]].concat());
            assert!(put == "201" || put == "204", "{how:?}: {put}");
            curl(&["-o", &out_path, &target]);
            assert!(fs::read(&out).unwrap() == file().repeat(8), "{how:?}");
        }
    }
    let _ = fs::remove_dir_all(scratch);
}

#[test]
fn wrk_loses_no_request_when_a_node_is_killed_under_load() {
    if !is_installed("wrk") || !is_installed("nginx") {
        return;
    }
    let scratch = directory("wrk");
    let script = scratch.join("pipeline.lua");
    // Eight requests in one go, and the next eight when those are answered.
    let text = "function init() local r = {} for i = 1, 8 do r[i] = wrk.format(nil, '/name') end \
        all = table.concat(r) end function request() return all end";
    fs::write(&script, text).unwrap();
    let pipelines = ["-s".to_owned(), script.display().to_string()];
    let session = "JSESSIONID=0123.one";
    for (cookie, how) in [("x=y", &[][..]), (session, &[]), (session, &pipelines)] {
        let lb = Setup::two_entry()
            .set("httpPort", "HTTP")
            .set("httpPipelining", "true")
            .set("shards", "2")
            .start();
        let (mut one, first) = nginx("one");
        let (_two, second) = nginx("two");
        let _nodes = [node_at(&lb, "one", first), node_at(&lb, "two", second)];
        let url = format!("http://{}/name", lb.http());
        let header = format!("Cookie: {cookie}");
        // It counts what takes longer than its time-out, and that is the machine's affair.
        let wrk = Command::new("wrk")
            .args(how)
            .args(["-t1", "-c32", "-d100s", "--timeout=100s", "-H", &header, &url])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = || lb.stat("NumberOfHttpRequests");
        let wait_requests = |count| wait_for("wrk at work", || (requests() > count).then_some(()));
        wait_requests(2_000);
        one.kill();
        let retries = || lb.metric("trunkline_http_retries_total");
        wait_for("the death to be felt", || (retries() > 0.0).then_some(()));
        wait_requests(requests() + 2_000);
        let pid = nix::unistd::Pid::from_raw(i32::try_from(wrk.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap(); // its report, please
        let output = wrk.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let case = format!("{cookie} {how:?}");
        assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{case}: {text}");
        assert!(text.contains("Requests/sec") && !text.contains(" 0 requests"), "{case}: {text}");
    }
    let _ = fs::remove_dir_all(scratch);
}

/// Tomcat with a servlet that counts the requests of a session; `None` where it or a JDK is missing.
fn tomcat(route: &str) -> Option<(Program, String)> {
    const JARS: [&str; 3] =
        ["tomcat10-embed-core.jar", "tomcat10-embed-el.jar", "jakarta-annotation-api.jar"];
    let jars = JARS.map(|it| Path::new("/usr/share/java").join(it));
    if !is_installed("javac") || !is_installed("java") {
        return None;
    }
    if !jars[0].is_file() {
        assert!(std::env::var_os("CI").is_none(), "libtomcat10-embed-java, and CI needs it");
        eprintln!("SKIPPED: libtomcat10-embed-java is not installed");
        return None;
    }
    let directory = directory("tomcat");
    let path =
        jars.iter().chain([&directory]).map(|it| it.display().to_string()).collect::<Vec<_>>();
    let path = path.join(":");
    let source = format!("{}/java/servlet/Servlet.java", env!("CARGO_MANIFEST_DIR"));
    said("javac", &["-cp", &path, "-d", &directory.display().to_string(), &source]);
    let mut command = Command::new("java");
    command.args(["-XX:TieredStopAtLevel=1", "-Xmx128m", "-cp", &path, "Servlet", route]);
    command.arg(&directory);
    let mut program = Program::start(&mut command, directory);
    let port = program.port();
    Some((program, port))
}

#[test]
fn sessions_of_tomcat_stay_where_they_began_by_cookie_and_by_address() {
    let (Some((_one, first)), Some((_two, second))) = (tomcat("one"), tomcat("two")) else {
        return;
    };
    let lb = Setup::two_entry().set("httpPort", "HTTP").start();
    let at = |port: &str| SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
    let _nodes = [node_at(&lb, "one", at(&first)), node_at(&lb, "two", at(&second))];
    let mut seen = Vec::new();
    for _ in 0..4 {
        let answer = lb.ask(get("/count"));
        let text = answer.text();
        let [route, count, link]: [&str; 3] =
            text.split(' ').collect::<Vec<_>>().try_into().unwrap_or_else(|_| panic!("{answer:?}"));
        assert_eq!(count, "1");
        seen.push(route.to_owned());
        let cookie = answer.field("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        assert!(cookie.ends_with(&format!(".{route}")), "{cookie}");
        assert!(link.starts_with("/count;jsessionid="), "{link}");
        for at in (2..12).step_by(2) {
            let by_cookie =
                lb.ask(format!("GET /count HTTP/1.1\r\nHost: lb\r\nCookie: {cookie}\r\n\r\n"));
            assert!(by_cookie.text().starts_with(&format!("{route} {at} ")), "{by_cookie:?}");
            let by_address = lb.ask(get(link));
            assert!(
                by_address.text().starts_with(&format!("{route} {} ", at + 1)),
                "{by_address:?}"
            );
        }
    }
    seen.sort();
    assert_eq!(seen, ["one", "one", "two", "two"], "and new ones take turns");
}

/// A Python that has the library; `None` if there is none.
fn python() -> Option<&'static str> {
    let has_it = |program: &&str| {
        let mut import = Command::new(program);
        import.args(["-c", "import websockets"]).stderr(Stdio::null());
        import.status().is_ok_and(|it| it.success())
    };
    let found = ["python3", "/usr/bin/python3"].into_iter().find(has_it);
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "python3-websockets, and CI needs it");
        eprintln!("SKIPPED: python3-websockets is not installed");
    }
    found
}

#[test]
fn a_websocket_server_does_the_same_behind_the_balancer_as_without_it() {
    let Some(python) = python() else { return };
    let script = |name: &str| format!("{}/python/{name}.py", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(python);
    let mut server = Program::start(command.arg(script("websocket_echo")), directory("echo"));
    let port = server.port();
    let lb =
        Setup::two_entry().certified().set("httpPort", "HTTP").set("httpsPort", "HTTPS").start();
    let _node = node_at(&lb, "echo", SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap())));
    let cases = script("websocket_cases");
    let direct = said(python, &[&cases, &port]);
    let plain = said(python, &[&cases, &lb.http().port().to_string()]);
    assert!(direct.lines().count() > 130, "{direct}");
    for (alone, behind) in direct.lines().zip(plain.lines()) {
        assert_eq!(alone, behind);
    }
    assert_eq!(direct.lines().count(), plain.lines().count());
    let ca = keys().path("ca.pem").display().to_string();
    let secure = said(python, &[&cases, &lb.https().port().to_string(), &ca]);
    assert!(secure.lines().count() > 110, "{secure}");
    for line in secure.lines() {
        assert!(direct.lines().any(|it| it == line), "{line}");
    }
}

/// A page that asks its server for more, with the session that it was given, and says what it saw.
const PAGE: &str = "<!doctype html><meta charset=utf-8><script>
(async () => {
  const seen = [];
  for (let at = 0; at < 10; at++) seen.push(await (await fetch('/who?' + at)).text());
  const all = await Promise.all([...Array(12).keys()].map(it => fetch('/who?p' + it).then(it => it.text())));
  const big = await (await fetch('/echo', {method: 'POST', body: 'x'.repeat(1000000)})).text();
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  const socket = new WebSocket(scheme + '://' + location.host + '/chat');
  const said = await new Promise((done, failed) => {
    socket.onopen = () => socket.send('hello');
    socket.onmessage = event => done(event.data);
    socket.onerror = () => failed('no socket');
  });
  await fetch('/report', {method: 'POST', body: [new Set(seen.concat(all)).size, seen[0], big.length, said].join(' ')});
})().catch(error => fetch('/report', {method: 'POST', body: 'failed: ' + error}));
</script>";

/// Serves the page, and WebSocket with tungstenite.
fn site(name: &'static str) -> WebServer {
    WebServer::start_mixed(move |asked| match asked.line() {
        (_, "/") => {
            let cookie = format!("JSESSIONID=0123ABCD.{name}; Path=/; HttpOnly");
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nSet-Cookie: {cookie}\r\nContent-Length: {}\r\n\r\n{PAGE}",
                PAGE.len()
            )
            .into_bytes()
        }
        (_, "/echo") => ok(&String::from_utf8_lossy(&asked.body)),
        _ => ok(name),
    })
}

#[test]
fn a_browser_keeps_its_session_and_opens_a_websocket() {
    let Some(chromium) = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|it| tests::find_program(it).is_some())
    else {
        is_installed("chromium");
        return;
    };
    let lb =
        Setup::two_entry().certified().set("httpPort", "HTTP").set("httpsPort", "HTTPS").start();
    let servers = [site("one"), site("two")];
    let _nodes =
        [node_at(&lb, "one", servers[0].address()), node_at(&lb, "two", servers[1].address())];
    for url in [format!("http://{}/", lb.http()), format!("https://{}/", lb.https())] {
        let directory = directory("browser");
        let mut command = Command::new(chromium);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--ignore-certificate-errors",
        ]);
        command.args([
            "--disable-background-networking",
            "--no-first-run",
            "--disable-dev-shm-usage",
        ]);
        command.arg(format!("--user-data-dir={}", directory.display())).arg(&url);
        let before = servers.iter().map(|it| it.asked().len()).collect::<Vec<_>>();
        let _browser = Program::start(&mut command, directory);
        let deadline = std::time::Instant::now() + 4 * PATIENCE; // a browser takes its time to start
        let report = loop {
            let new =
                servers.iter().zip(&before).flat_map(|(it, from)| it.asked().split_off(*from));
            if let Some(asked) = new.into_iter().find(|it| it.line().1 == "/report") {
                break String::from_utf8_lossy(&asked.body).into_owned();
            }
            assert!(std::time::Instant::now() < deadline, "{url}: no report");
            std::thread::sleep(Duration::from_millis(20));
        };
        let words: Vec<&str> = report.split(' ').collect();
        assert_eq!([words[0], words[2], words[3]], ["1", "1000000", "hello"], "{url}: {report}");
    }
}
