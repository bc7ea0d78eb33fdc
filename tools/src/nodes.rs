//! The nodes of a running balancer for people: a table of them, and the wait for the end of a drain.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use crate::ask;

/// A table of all nodes.
///
/// # Errors
///
/// Who did not answer, as one line.
pub fn list(at: &str) -> Result<String, String> {
    Ok(table(&info(at)?))
}

/// Waits until nothing is left on a node, or until it is gone. `tell` is called with what is left
/// whenever that has changed.
///
/// # Errors
///
/// It was taken out with work left on it; or nobody answers.
pub fn wait(at: &str, name: &str, mut tell: impl FnMut(&str)) -> Result<String, String> {
    let mut last = String::new();
    loop {
        let info = info(at)?;
        let Some(node) = all(&info).find(|it| goes_by(it, name)) else {
            let is_out = |it: &Value| of(of(it, "order"), "state") == "out" && goes_by(it, name);
            let is_out = of(&info, "absent").as_array().is_some_and(|it| it.iter().any(is_out));
            return match is_out && !last.is_empty() {
                true => Err(format!("{name} is out: its deadline has passed with {last}")),
                false => Ok(format!("{name} is gone")),
            };
        };
        if of(of(node, "left"), "isNothing") == true {
            return Ok(format!("nothing is left on {name}"));
        }
        let left = left(node);
        if left != last {
            tell(&format!("{name}: {left}"));
            last = left;
        }
        std::thread::sleep(PERIOD);
    }
}

fn info(at: &str) -> Result<Value, String> {
    let body = ask(at, "GET", "/lbinfo", b"")?;
    serde_json::from_str(&body).map_err(|error| format!("/lbinfo: {error}: {body}"))
}

/// Live nodes, the latest version first.
fn all(info: &Value) -> impl Iterator<Item = &Value> {
    let lists = of(info, "Nodes info");
    [of(lists, "nodesIPv4"), of(lists, "nodesIPv6"), of(info, "olderVersions")]
        .into_iter()
        .filter_map(Value::as_array)
        .flatten()
}

/// A member of an object; null if there is none.
fn of<'v>(value: &'v Value, name: &str) -> &'v Value {
    value.get(name).unwrap_or(&Value::Null)
}

/// As the balancer finds nodes by their names.
fn goes_by(node: &Value, name: &str) -> bool {
    let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
    let ip = text(of(node, "ip"));
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
    let is_port = |key: &str| key.ends_with("Port") && key != "heartbeatPort";
    let has_address = |it: &serde_json::Map<String, Value>| {
        let mut ports = it.iter().filter(|(key, _)| is_port(key));
        ports.any(|(_, port)| format!("{host}:{}", text(port)) == name)
    };
    [of(node, "hostName"), of(node, "key"), of(of(node, "properties"), "jvmRoute")].iter().any(|it| *it == name)
        || ip == name
        || of(node, "properties").as_object().is_some_and(has_address)
        // An absent node is described in one line.
        || text(of(node, "node")).split(['[', ']']).any(|it| it == name || format!("{host}:{it}") == name)
}

fn left(node: &Value) -> String {
    let left = of(node, "left");
    let of_calls = |name: &str| of(left, name).as_u64();
    let calls = match (of_calls("calls"), of_calls("rememberedCalls")) {
        (Some(up), _) => up.to_string(),
        (None, Some(remembered)) => format!("up to {remembered}"),
        (None, None) => "-".to_owned(),
    };
    let count = |name: &str| of(left, name).as_u64().unwrap_or(0);
    format!(
        "{calls} calls, {} HTTP, {} SMPP, {} SIP connections ({} in use)",
        count("httpConnections"),
        count("smppConnections"),
        count("sipConnections"),
        count("sipBusy")
    )
}

fn table(info: &Value) -> String {
    let mut rows: Vec<[String; 6]> = Vec::new();
    let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
    let down = of(info, "down").as_array();
    for node in all(info).chain(down.into_iter().flatten()) {
        let properties = of(node, "properties").as_object();
        let ports = properties.into_iter().flatten().filter_map(|(key, port)| {
            Some(format!("{}:{}", key.strip_suffix("Port")?, port.as_str()?))
        });
        rows.push([
            text(of(node, "hostName")),
            text(of(node, "ip")),
            ports.collect::<Vec<_>>().join(" "),
            of(node, "version").to_string(),
            text(of(node, "state")),
            left(node),
        ]);
    }
    for node in of(info, "absent").as_array().into_iter().flatten() {
        let state = text(of(of(node, "order"), "state"));
        rows.push([
            text(of(node, "hostName")),
            text(of(node, "ip")),
            String::new(),
            String::new(),
            format!("{state}, absent"),
            String::new(),
        ]);
    }
    let heads = ["NAME", "IP", "PORTS", "VERSION", "STATE", "LEFT"].map(str::to_owned);
    rows.insert(0, heads);
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut table = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  "); // a String takes everything
        }
        table += line.trim_end();
        table.push('\n');
    }
    table
}

/// Calls end one by one; a second is nothing to an upgrade.
const PERIOD: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node() -> Value {
        json!({
            "hostName": "n1", "ip": "10.0.0.1", "key": "00ff", "version": 0, "state": "draining",
            "properties": { "udpPort": "5060", "heartbeatPort": "2222", "jvmRoute": "a" },
            "left": { "calls": 3, "sipConnections": 1, "httpConnections": 2, "smppConnections": 0 },
        })
    }

    #[test]
    fn nodes_are_found_by_every_name_that_the_balancer_knows() {
        for (name, want) in [
            ("n1", true),
            ("a", true),
            ("00ff", true),
            ("10.0.0.1", true),
            ("10.0.0.1:5060", true),
            ("10.0.0.1:2222", false),
            ("10.0.0.1:5061", false),
            ("n", false),
        ] {
            assert_eq!(goes_by(&node(), name), want, "{name}");
        }
        let absent = json!({
            "hostName": "n1", "ip": "::1",
            "node": "Node hostname[n1] ip[::1] jvmRoute[b] udpPort[5060]",
        });
        for (name, want) in
            [("n1", true), ("b", true), ("[::1]:5060", true), ("::1", true), ("[::1]:1", false)]
        {
            assert_eq!(goes_by(&absent, name), want, "{name}");
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_node_there_or_not() {
        let absent = json!({ "hostName": "n2", "ip": "10.0.0.2", "order": { "state": "out" } });
        let info = json!({
            "Nodes info": { "nodesIPv4": [node()], "nodesIPv6": [] }, "absent": [absent],
            "down": [json!({ "hostName": "n3", "ip": "10.0.0.3", "version": 0, "state": "down" })],
        });
        let table = table(&info);
        let words = |row: usize| -> Vec<&str> {
            table.lines().nth(row).unwrap_or_default().split_whitespace().collect()
        };
        assert_eq!(words(0), ["NAME", "IP", "PORTS", "VERSION", "STATE", "LEFT"]);
        let row = ["n1", "10.0.0.1", "heartbeat:2222", "udp:5060", "0", "draining", "3", "calls,"];
        assert_eq!(words(1)[..8], row);
        assert_eq!(words(2)[..4], ["n3", "10.0.0.3", "0", "down"]);
        assert_eq!(words(3), ["n2", "10.0.0.2", "out,", "absent"]);
    }
}
