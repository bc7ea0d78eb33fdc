//! A stand-in for the API server of Kubernetes: pods of one namespace, `list` in pages, `watch` with
//! bookmarks and a past that ends (410), tokens, and every way to be away.
//!
//! Written from the description of the API (kubernetes.io, "API concepts"), over HTTP/1.1 with or without
//! TLS.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tools::ports;

use crate::keys::keys;
use crate::peer::unique;
use crate::wait_for;

/// The API server. Dropping it ends it.
pub struct ApiServer {
    shared: Arc<Shared>,
    directory: PathBuf,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    address: SocketAddr,
    is_secure: bool,
    state: Mutex<State>,
    news: Condvar,
    is_open: AtomicBool,
    is_mute: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
    lists: AtomicUsize,
    watches: AtomicUsize,
    refused: AtomicUsize,
    gone: AtomicUsize,
}

struct State {
    token: String,
    version: u64,
    /// Versions up to this one cannot be watched from.
    forgotten: u64,
    pods: BTreeMap<String, Value>,
    history: Vec<(u64, Value)>,
}

/// A pod to be: runs, and its container `as` is ready.
#[derive(Clone)]
pub struct Pod(Value);

impl Pod {
    /// A pod with the label `udpPort`, for a node at this address.
    pub fn of(name: &str, node: SocketAddr) -> Pod {
        let (ip, port) = (node.ip().to_string(), node.port().to_string());
        Pod(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "uid": format!("uid-{}", unique()),
                "creationTimestamp": "2024-02-29T12:00:00Z",
                "labels": { "udpPort": port, "tcpPort": port, "app": "as" },
            },
            "spec": { "containers": [{ "name": "as", "image": "as:1" }] },
            "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
                "containerStatuses": [{
                    "name": "as", "ready": true, "restartCount": 0, "image": "as:1", "imageID": "",
                }],
            },
        }))
    }

    /// With one more label.
    pub fn label(mut self, name: &str, value: &str) -> Pod {
        self.0["metadata"]["labels"][name] = value.into();
        self
    }

    /// With another phase.
    pub fn phase(mut self, phase: &str) -> Pod {
        self.0["status"]["phase"] = phase.into();
        self
    }

    /// Its container does not answer its probes.
    pub fn unready(mut self) -> Pod {
        self.0["status"]["containerStatuses"][0]["ready"] = false.into();
        self
    }

    /// It was told to end.
    pub fn terminating(mut self) -> Pod {
        self.0["metadata"]["deletionTimestamp"] = "2024-02-29T13:00:00Z".into();
        self
    }

    fn name(&self) -> String {
        self.0["metadata"]["name"].as_str().unwrap().to_owned()
    }
}

impl ApiServer {
    /// Starts without pods; `is_secure`: with TLS, by the plays' authority.
    pub fn start(is_secure: bool) -> ApiServer {
        // A port that nobody else gets while it is away.
        let listener = TcpListener::bind(("127.0.0.1", ports::free())).unwrap();
        let shared = Arc::new(Shared {
            address: listener.local_addr().unwrap(),
            is_secure,
            state: Mutex::new(State {
                token: "first".into(),
                version: 100,
                forgotten: 0,
                pods: BTreeMap::new(),
                history: Vec::new(),
            }),
            news: Condvar::new(),
            is_open: AtomicBool::new(true),
            is_mute: AtomicBool::new(false),
            sockets: Mutex::default(),
            lists: AtomicUsize::new(0),
            watches: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            gone: AtomicUsize::new(0),
        });
        let directory = std::env::temp_dir().join(format!("trunkline-kube-{}", unique()));
        fs::create_dir_all(&directory).unwrap();
        let mut server = ApiServer { shared, directory, thread: None };
        server.serve(listener);
        server.issue("first");
        server
    }

    /// A kubeconfig for it; the token in it is read anew for every connection.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("config")
    }

    /// The files that a pod finds of its service account.
    pub fn service_account(&self) -> PathBuf {
        self.directory.join("serviceaccount")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Accepts this token alone from now on, and writes it where clients find theirs.
    pub fn issue(&self, token: &str) {
        self.state().token = token.to_owned();
        let address = self.shared.address;
        let (scheme, authority) = if self.shared.is_secure {
            let authority = keys().path("ca.pem").display().to_string();
            ("https", format!("certificate-authority: {authority}"))
        } else {
            ("http", "insecure-skip-tls-verify: false".to_owned())
        };
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters:\n- name: k\n  cluster:\n    server: {scheme}://{address}\n    {authority}\n\
             users:\n- name: u\n  user:\n    token: {token}\n\
             contexts:\n- name: c\n  context:\n    cluster: k\n    user: u\n    namespace: {NAMESPACE}\n"
        );
        let account = self.service_account();
        fs::create_dir_all(&account).unwrap();
        fs::write(account.join("namespace"), NAMESPACE).unwrap();
        fs::write(account.join("token"), token).unwrap();
        fs::copy(keys().path("ca.pem"), account.join("ca.crt")).unwrap();
        let draft = self.directory.join("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, self.kubeconfig()).unwrap();
    }

    /// Adds a pod, or changes the one of this name.
    pub fn put(&self, pod: &Pod) {
        let mut state = self.state();
        let kind = if state.pods.contains_key(&pod.name()) { "MODIFIED" } else { "ADDED" };
        let mut object = pod.0.clone();
        state.tell(kind, &mut object);
        state.pods.insert(pod.name(), object);
        self.shared.news.notify_all();
    }

    /// Removes a pod.
    pub fn delete(&self, name: &str) {
        let mut state = self.state();
        let mut object = state.pods.remove(name).expect("it is there");
        state.tell("DELETED", &mut object);
        self.shared.news.notify_all();
    }

    /// Tells watchers how far time is, as after changes that do not concern them.
    pub fn bookmark(&self) {
        let mut state = self.state();
        state.tell("BOOKMARK", &mut json!({ "apiVersion": "v1", "kind": "Pod", "metadata": {} }));
        self.shared.news.notify_all();
    }

    /// Forgets the past: from no version before now can be watched any more.
    pub fn forget(&self) {
        let mut state = self.state();
        state.version += 1;
        state.forgotten = state.version;
        state.history.clear();
    }

    /// Answers no watch, or does so again.
    pub fn mute(&self, is_mute: bool) {
        self.shared.is_mute.store(is_mute, Ordering::Relaxed);
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        for socket in self.shared.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Goes away: nobody listens, every connection is cut. Pods may change meanwhile.
    pub fn stop(&mut self) {
        self.shared.is_open.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self.cut();
    }

    /// Comes back at the same address.
    pub fn resume(&mut self) {
        let address = self.shared.address;
        let listener = wait_for("the same port again", || TcpListener::bind(address).ok());
        self.shared.is_open.store(true, Ordering::Relaxed);
        self.serve(listener);
    }

    /// Lists begun so far.
    pub fn lists(&self) -> usize {
        self.shared.lists.load(Ordering::Relaxed)
    }

    /// Watches begun so far.
    pub fn watches(&self) -> usize {
        self.shared.watches.load(Ordering::Relaxed)
    }

    /// Requests refused for their token so far.
    pub fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Watches refused because they began in a forgotten past.
    pub fn gone(&self) -> usize {
        self.shared.gone.load(Ordering::Relaxed)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    fn serve(&mut self, listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let shared = self.shared.clone();
        self.thread = Some(spawn(move || {
            while shared.is_open.load(Ordering::Relaxed) {
                let Ok((socket, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                socket.set_nonblocking(false).unwrap();
                shared.sockets.lock().unwrap().push(socket.try_clone().unwrap());
                let shared = shared.clone();
                spawn(move || {
                    let _ = shared.converse(socket);
                });
            }
        }));
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl State {
    fn tell(&mut self, kind: &str, object: &mut Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.history.push((self.version, json!({ "type": kind, "object": object })));
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Shared {
    fn converse(&self, socket: TcpStream) -> io::Result<()> {
        let mut stream: Box<dyn Stream> = if self.is_secure {
            static CONFIG: OnceLock<Arc<rustls::ServerConfig>> = OnceLock::new();
            let make = || Arc::new(keys().server(&keys().sign("kubernetes", |_| {}), false));
            let config = CONFIG.get_or_init(make).clone();
            let connection = ServerConnection::new(config).map_err(io::Error::other)?;
            Box::new(StreamOwned::new(connection, socket))
        } else {
            Box::new(socket)
        };
        while let Some(head) = read_head(&mut stream)? {
            self.answer(&head, &mut stream)?;
        }
        Ok(())
    }

    fn answer(&self, head: &str, stream: &mut dyn Stream) -> io::Result<()> {
        let mut lines = head.lines();
        let target = lines.next().and_then(|it| it.split(' ').nth(1)).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: HashMap<&str, &str> =
            query.split('&').filter_map(|it| it.split_once('=')).collect();
        let token = format!("bearer {}", self.state.lock().unwrap().token);
        let is_known = lines.any(|it| {
            let (name, value) = it.split_once(':').unwrap_or_default();
            name.eq_ignore_ascii_case("authorization") && value.trim().eq_ignore_ascii_case(&token)
        });
        if !is_known {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return refuse(stream, 401, "Unauthorized");
        }
        if path != format!("/api/v1/namespaces/{NAMESPACE}/pods") {
            return refuse(stream, 404, "NotFound");
        }
        if query.get("watch").is_some_and(|it| *it != "0" && *it != "false") {
            self.watch(&query, stream)
        } else {
            self.list(&query, stream)
        }
    }

    fn list(&self, query: &HashMap<&str, &str>, stream: &mut dyn Stream) -> io::Result<()> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        let body = {
            let state = self.state.lock().unwrap();
            let limit: usize =
                query.get("limit").and_then(|it| it.parse().ok()).unwrap_or(PAGE_MAX);
            // The server may give less than it is asked for.
            let limit = if state.pods.len() > PAGE_MAX { limit } else { limit.min(SMALL_PAGE) };
            let after = query.get("continue").copied().unwrap_or_default();
            let mut rest = state.pods.iter().filter(|(name, _)| name.as_str() > after);
            let page: Vec<(&String, &Value)> = rest.by_ref().take(limit).collect();
            let mut meta = json!({ "resourceVersion": state.version.to_string() });
            if let (Some(_), Some((last, _))) = (rest.next(), page.last()) {
                meta["continue"] = last.as_str().into();
            }
            let items: Vec<&Value> = page.iter().map(|it| it.1).collect();
            json!({ "apiVersion": "v1", "kind": "PodList", "metadata": meta, "items": items })
                .to_string()
        };
        respond(stream, 200, &body)
    }

    fn watch(&self, query: &HashMap<&str, &str>, stream: &mut dyn Stream) -> io::Result<()> {
        let from = query.get("resourceVersion").and_then(|it| it.parse().ok()).unwrap_or(0);
        let has_bookmarks = query.get("allowWatchBookmarks") == Some(&"true");
        self.watches.fetch_add(1, Ordering::Relaxed);
        if self.is_mute.load(Ordering::Relaxed) {
            while stream.read(&mut [0])? > 0 {}
            return Ok(());
        }
        if from < self.state.lock().unwrap().forgotten {
            // Servers say so in either way.
            if self.gone.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                return refuse(stream, 410, "Expired");
            }
            write!(stream, "{CHUNKED}")?;
            let event = json!({ "type": "ERROR", "object": status(410, "Expired") });
            chunk(stream, &event)?;
            stream.write_all(b"0\r\n\r\n")?;
            return stream.flush();
        }
        write!(stream, "{CHUNKED}")?;
        stream.flush()?;
        let mut seen = from;
        while self.is_open.load(Ordering::Relaxed) {
            let news: Vec<(u64, Value)> = {
                let state = self.state.lock().unwrap();
                let is_old = |state: &mut State| state.version <= seen;
                let (state, _) = self
                    .news
                    .wait_timeout_while(state, Duration::from_millis(100), is_old)
                    .unwrap();
                state.history.iter().filter(|it| it.0 > seen).cloned().collect()
            };
            for (version, event) in news {
                seen = version;
                if event["type"] != "BOOKMARK" || has_bookmarks {
                    chunk(stream, &event)?;
                }
            }
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }
}

fn read_head(stream: &mut dyn Stream) -> io::Result<Option<String>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

fn status(code: u16, reason: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": format!("this is {reason}"), "reason": reason, "code": code,
    })
}

fn refuse(stream: &mut dyn Stream, code: u16, reason: &str) -> io::Result<()> {
    respond(stream, code, &status(code, reason).to_string())
}

fn respond(stream: &mut dyn Stream, code: u16, body: &str) -> io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    stream.flush()
}

fn chunk(stream: &mut dyn Stream, event: &Value) -> io::Result<()> {
    let line = format!("{event}\n");
    // In two pieces: an event may come apart anywhere.
    let (one, other) = line.split_at(line.len() / 2);
    for part in [one, other] {
        write!(stream, "{:x}\r\n{part}\r\n", part.len())?;
        stream.flush()?;
    }
    Ok(())
}

const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
const NAMESPACE: &str = "voice";
/// As long as there are few pods, so that there is more than one page.
const SMALL_PAGE: usize = 2;
/// More pods than plays have; then pages are as long as they are asked for.
const PAGE_MAX: usize = 100;
