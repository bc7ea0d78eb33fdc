//! XML files of the newest generation: root `load-balancer-properties`, one element per key.
//!
//! Elements become paths (`sip/external/udpPort`), stack properties become their keys, routing rules
//! become the text that a properties file would have. Which paths mean something is not known here.

use roxmltree::{Document, Node, ParsingOptions};

use super::load::{Entry, Finding, Name};

/// Reads all entries in document order. A document that is not XML yields one finding and no entry.
pub(super) fn read(text: &str, findings: &mut Vec<Finding>) -> Vec<Entry> {
    let options = ParsingOptions { allow_dtd: true, nodes_limit: NODES_MAX, ..Default::default() };
    let document = match Document::parse_with_options(text, options) {
        Ok(it) => it,
        Err(why) => {
            let line = Some(why.pos().row);
            findings.push(Finding::error(
                None,
                line,
                format!("this is not well-formed XML: {why}"),
            ));
            return Vec::new();
        }
    };
    let root = document.root_element();
    let mut reader = Reader { text, offset: 0, line: 1, findings, entries: Vec::new() };
    if root.tag_name().name() != ROOT {
        let text = format!("the root element is <{}>; allowed is <{ROOT}>", root.tag_name().name());
        let line = reader.line_of(root);
        reader.findings.push(Finding::error(None, Some(line), text));
        return Vec::new();
    }
    reader.walk(root);
    reader.entries
}

struct Reader<'r> {
    text: &'r str,
    /// Byte up to which lines are counted.
    offset: usize,
    line: u32,
    findings: &'r mut Vec<Finding>,
    entries: Vec<Entry>,
}

impl Reader<'_> {
    /// Visits elements in document order without recursion: depth is the author's, the stack is ours.
    fn walk(&mut self, root: Node<'_, '_>) {
        let mut path: Vec<&str> = Vec::new();
        let mut next = root.first_element_child();
        let mut parents: Vec<Node<'_, '_>> = Vec::new();
        loop {
            let Some(node) = next else {
                let Some(parent) = parents.pop() else { return };
                path.pop();
                next = parent.next_sibling_element();
                continue;
            };
            path.push(node.tag_name().name());
            if path.len() <= DEPTH_MAX && self.element(&path.join("/"), node) {
                parents.push(node);
                next = node.first_element_child();
            } else {
                path.pop();
                next = node.next_sibling_element();
            }
        }
    }

    /// Takes one element in; true if its children are to be visited.
    fn element(&mut self, path: &str, node: Node<'_, '_>) -> bool {
        let line = self.line_of(node);
        match path {
            "sipStack/property" => {
                if let Some(key) = child(node, "key") {
                    let text = child(node, "value").unwrap_or_default();
                    self.push(Name::Property(key), text, line);
                } else {
                    let text = "a property without <key>; allowed is <key> and <value>".to_owned();
                    self.findings.push(Finding::error(Some(path), Some(line), text));
                }
                return false;
            }
            "sip/routingRulesIpv4" | "sip/routingRulesIpv6" => {
                let rules = node.children().filter(|it| it.tag_name().name() == "rule").map(|it| {
                    let pattern = child(it, "ipPattern").unwrap_or_default();
                    let patch = child(it, "patch").filter(|it| !it.is_empty());
                    format!("{pattern}={}", patch.as_deref().unwrap_or("true"))
                });
                let text = rules.collect::<Vec<_>>().join(" ");
                self.push(Name::Element(path.to_owned()), text, line);
                return false;
            }
            // Rules keep their shape; who reads the value reads XML again.
            "http/urlrewrite" => {
                let text = self.text.get(node.range()).unwrap_or_default();
                let is_empty = node.first_element_child().is_none() && own_text(node).is_empty();
                let text = if is_empty { String::new() } else { text.to_owned() };
                self.push(Name::Element(path.to_owned()), text, line);
                return false;
            }
            "heartbeat" => {
                if let Some(class) = node.attribute("configclass") {
                    let name = Name::Element("heartbeat@configclass".to_owned());
                    self.push(name, class.trim().to_owned(), line);
                }
            }
            _ => {}
        }
        let is_group = node.first_element_child().is_some();
        let text = own_text(node);
        if is_group && !text.is_empty() {
            let text = format!("the text \"{text}\" stands between elements and means nothing");
            self.findings.push(Finding::warning(Some(path), Some(line), text));
        } else if !is_group {
            self.push(Name::Element(path.to_owned()), text, line);
        }
        is_group
    }

    fn push(&mut self, name: Name, text: String, line: u32) {
        self.entries.push(Entry { name, text, line, after_comment: false });
    }

    /// Line of an element. Counts on from the last one: elements come in document order.
    fn line_of(&mut self, node: Node<'_, '_>) -> u32 {
        let start = node.range().start;
        let between = self.text.get(self.offset..start).unwrap_or_default();
        let lines = between.bytes().filter(|it| *it == b'\n').count();
        self.line = self.line.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
        self.offset = self.offset.max(start);
        self.line
    }
}

fn child(node: Node<'_, '_>, name: &str) -> Option<String> {
    node.children().find(|it| it.tag_name().name() == name).map(own_text)
}

/// The element's own text without its children's, blanks around it removed.
fn own_text(node: Node<'_, '_>) -> String {
    let text: String = node.children().filter(Node::is_text).filter_map(|it| it.text()).collect();
    text.trim().to_owned()
}

/// Name of the root element.
const ROOT: &str = "load-balancer-properties";
/// A sample file has about 300 nodes.
const NODES_MAX: u32 = 100_000;
/// No key lies deeper; what does is not read.
const DEPTH_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_become_entries_with_lines() {
        let text = "<?xml version=\"1.0\"?>\n<!DOCTYPE load-balancer-properties [<!ENTITY n \"8400\">]>\n\
            <load-balancer-properties xmlns=\"urn:x\">\n<!-- <host>no</host> -->\n<common>\n  <host>\n  127.0.0.1 </host>\
            <a>&n;</a>\n<b><![CDATA[<&>]]>&lt;</b></common><sip><routingRulesIpv6>\n<rule><ipPattern> fd.* </ipPattern>\
            <patch/></rule></routingRulesIpv6></sip>\n<heartbeat configclass=' X '/><sipStack><property>\
            <key> k </key><value/></property>\n<property><value>1</value></property></sipStack>\n\
            </load-balancer-properties>";
        let mut findings = Vec::new();
        let entries = read(text, &mut findings);
        let got: Vec<_> = entries
            .iter()
            .map(|it| match &it.name {
                Name::Element(name) => (it.line, "element", name.as_str(), it.text.as_str()),
                Name::Property(name) => (it.line, "property", name.as_str(), it.text.as_str()),
            })
            .collect();
        let want = [
            (6, "element", "common/host", "127.0.0.1"),
            (7, "element", "common/a", "8400"),
            (8, "element", "common/b", "<&><"),
            (8, "element", "sip/routingRulesIpv6", "fd.*=true"),
            (10, "element", "heartbeat@configclass", "X"),
            (10, "element", "heartbeat", ""),
            (10, "property", "k", ""),
        ];
        assert_eq!(got, want);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].line, Some(11));
        assert!(findings[0].text.starts_with("a property without <key>"), "{findings:?}");
    }

    #[test]
    fn text_between_elements_is_no_value() {
        let mut findings = Vec::new();
        let entries = read(
            "<load-balancer-properties>\n<sip>on<a>1</a></sip></load-balancer-properties>",
            &mut findings,
        );
        assert_eq!(entries.len(), 1);
        assert_eq!(findings[0].line, Some(2));
        assert!(findings[0].text.contains("\"on\" stands between elements"), "{findings:?}");
    }
}
