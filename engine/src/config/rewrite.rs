//! Rules that rewrite request targets: `http/urlrewrite`, a subset of the UrlRewriteFilter 4.0 schema.
//!
//! Source: `http-smpp-registry.md` 1.10. Reads `rule` with `from`, `to`, `condition`, `name` and `note`.
//! Whatever else the schema knows needs a servlet container: a rule with it is left out, with a warning.

use regex::bytes::{Regex, RegexBuilder};
use roxmltree::{Document, Node};

/// The rules, in order; each gets what the one before made of the target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rewrite {
    /// `decode-using="null"` is false: rules see the target as it came.
    pub decodes: bool,
    /// The rules that are enabled.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// All must hold, but for those joined by `next="or"`.
    pub conditions: Vec<Condition>,
    /// Every match is replaced.
    pub from: Expression,
    /// Replacement; `$1` to `$9` are groups. `None`: the target stays (`-` or `null`).
    pub to: Option<String>,
    /// No rule follows if this one matched.
    pub is_last: bool,
}

/// A test on the request.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// What is tested.
    pub subject: Subject,
    /// Found anywhere in it.
    pub pattern: Expression,
    /// It must not be found.
    pub is_negated: bool,
    /// This one or the next suffices.
    pub or_next: bool,
}

/// What a condition looks at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Subject {
    /// The method.
    Method,
    /// A header.
    Header(String),
    /// A query parameter.
    Parameter(String),
    /// The listening port.
    Port,
    /// The client's address.
    RemoteAddress,
}

/// A regular expression found anywhere. Compared by its text.
#[derive(Clone, Debug)]
pub struct Expression(pub Regex);

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// Reads the element `urlrewrite`, or only its rules. Empty: no rules. What is left out is told in
/// `warnings`.
///
/// # Errors
///
/// What is wrong.
pub(super) fn parse(text: &str, warnings: &mut Vec<String>) -> Result<Rewrite, String> {
    if text.is_empty() {
        return Ok(Rewrite::default());
    }
    let whole = match text.starts_with("<urlrewrite") {
        true => text.to_owned(),
        false => format!("<urlrewrite>{text}</urlrewrite>"),
    };
    let document = Document::parse(&whole)
        .map_err(|it| format!("this is not well-formed XML: {it}; {ALLOWED}"))?;
    let root = document.root_element();
    let text_between = |it: Node<'_, '_>| {
        it.children()
            .filter(Node::is_text)
            .any(|it| it.text().is_some_and(|it| !it.trim().is_empty()))
    };
    if text_between(root) {
        return Err(format!("text stands between elements; {ALLOWED}"));
    }
    if root.attribute("default-match-type").is_some_and(|it| it != "regex") {
        return Err(format!("default-match-type must be regex; {ALLOWED}"));
    }
    let mut it =
        Rewrite { decodes: root.attribute("decode-using") != Some("null"), rules: Vec::new() };
    for element in root.children().filter(Node::is_element) {
        let is_rule = element.tag_name().name() == "rule";
        match foreign(element) {
            _ if element.attribute("enabled") == Some("false") => {}
            None if is_rule => it.rules.push(rule(element)?),
            what => {
                let what = what.unwrap_or_else(|| format!("<{}>", element.tag_name().name()));
                warnings.push(format!("{what} does not work here: left out; {ALLOWED}"));
            }
        }
    }
    Ok(it)
}

/// The first thing in a rule that cannot work here.
fn foreign(rule: Node<'_, '_>) -> Option<String> {
    if let Some(kind) = rule.attribute("match-type").filter(|it| *it != "regex") {
        return Some(format!("match-type {kind}"));
    }
    rule.children().filter(Node::is_element).find_map(|it| {
        let name = it.tag_name().name();
        let kind = it.attribute("type").unwrap_or("header");
        let operator = it.attribute("operator").unwrap_or("equal");
        match name {
            "name" | "note" | "from" => None,
            "to" => {
                let said = |name: &str| it.attribute(name).filter(|it| *it != "false");
                let kind = it.attribute("type").filter(|it| *it != "forward");
                kind.map(|it| format!("<to> of type {it}")).or_else(|| {
                    let name =
                        ["qsappend", "encode", "context"].into_iter().find(|it| said(it).is_some());
                    name.map(|it| format!("<to> with {it}"))
                })
            }
            "condition" if !CONDITIONS.contains(&kind) => Some(format!("condition type {kind}")),
            "condition" if !["equal", "notequal"].contains(&operator) => {
                Some(format!("condition operator {operator}"))
            }
            "condition" => None,
            _ => Some(format!("a rule with <{name}>")),
        }
    })
}

fn rule(element: Node<'_, '_>) -> Result<Rule, String> {
    let (mut from, mut to, mut conditions, mut is_last) = (None, None, Vec::new(), false);
    for child in element.children().filter(Node::is_element) {
        match child.tag_name().name() {
            "condition" => conditions.push(condition(child)?),
            "from" => from = Some(expression(child)?),
            "to" => {
                is_last = child.attribute("last") == Some("true");
                to = Some(text_of(child)).filter(|it| !matches!(it.as_str(), "-" | "null"));
            }
            _ => {}
        }
    }
    let from = from.ok_or_else(|| format!("a rule without <from>; {ALLOWED}"))?;
    Ok(Rule { conditions, from, to, is_last })
}

fn condition(element: Node<'_, '_>) -> Result<Condition, String> {
    let name = || {
        let name = element.attribute("name").unwrap_or_default();
        if name.is_empty() {
            Err(format!("a condition without name; {ALLOWED}"))
        } else {
            Ok(name.to_owned())
        }
    };
    let subject = match element.attribute("type") {
        Some("method") => Subject::Method,
        Some("parameter") => Subject::Parameter(name()?),
        Some("port") => Subject::Port,
        Some("remote-addr") => Subject::RemoteAddress,
        _ => Subject::Header(name()?),
    };
    Ok(Condition {
        subject,
        pattern: expression(element)?,
        is_negated: element.attribute("operator") == Some("notequal"),
        or_next: element.attribute("next") == Some("or"),
    })
}

/// Case does not matter unless `casesensitive="true"`.
fn expression(element: Node<'_, '_>) -> Result<Expression, String> {
    let text = text_of(element);
    RegexBuilder::new(&text)
        .case_insensitive(element.attribute("casesensitive") != Some("true"))
        .build()
        .map(Expression)
        .map_err(|_| format!("\"{text}\" is not a regular expression that works here; {ALLOWED}"))
}

fn text_of(element: Node<'_, '_>) -> String {
    let text: String = element.children().filter_map(|it| it.text()).collect();
    text.trim().to_owned()
}

/// What conditions may look at.
const CONDITIONS: [&str; 5] = ["header", "method", "parameter", "port", "remote-addr"];

const ALLOWED: &str = "allowed is <rule> with <from>, <to> and <condition> of the types method, header, \
    parameter, port and remote-addr";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_with_or_without_their_root() {
        let text = "<rule><name>n</name><note/><condition type=\"header\" name=\"X\" operator=\"notequal\" next=\"or\">a</condition>\
            <condition type=\"method\">GET</condition><from casesensitive=\"true\"> someCompany </from>\
            <to last=\"true\">restcomm/$1</to></rule><rule enabled=\"false\"><from>x</from></rule><rule><from>b</from><to>-</to></rule>";
        let bare = parse(text, &mut Vec::new()).unwrap();
        assert_eq!(bare.rules.len(), 2);
        let first = &bare.rules[0];
        assert_eq!((first.to.as_deref(), first.is_last), (Some("restcomm/$1"), true));
        assert_eq!(first.from.0.as_str(), "someCompany");
        assert!(first.conditions[0].is_negated && first.conditions[0].or_next);
        assert_eq!(first.conditions[1].subject, Subject::Method);
        assert_eq!(bare.rules[1].to, None);
        let rooted = parse(
            &format!("<urlrewrite decode-using=\"null\">{text}</urlrewrite>"),
            &mut Vec::new(),
        )
        .unwrap();
        assert_eq!((rooted.decodes, bare.decodes), (false, true));
        assert_eq!(rooted.rules, bare.rules);
        assert_eq!(parse("", &mut Vec::new()), Ok(Rewrite::default()));
    }

    #[test]
    fn what_does_not_work_here_is_left_out_with_a_warning() {
        for (text, what) in [
            ("<outbound-rule><from>a</from></outbound-rule>", "<outbound-rule>"),
            ("<rule><from>a</from><run class=\"x\"/></rule>", "a rule with <run>"),
            ("<rule match-type=\"wildcard\"><from>/a/*</from></rule>", "match-type wildcard"),
            ("<rule><from>a</from><to type=\"redirect\">b</to></rule>", "<to> of type redirect"),
            ("<rule><from>a</from><to qsappend=\"true\">b</to></rule>", "<to> with qsappend"),
            (
                "<rule><condition type=\"session-attribute\" name=\"a\"/><from>a</from></rule>",
                "condition type session-attribute",
            ),
            (
                "<rule><condition type=\"port\" operator=\"greater\">1</condition><from>a</from></rule>",
                "condition operator greater",
            ),
        ] {
            let mut warnings = Vec::new();
            let text = format!("{text}<rule><from>b</from><to>c</to></rule>");
            assert_eq!(parse(&text, &mut warnings).unwrap().rules.len(), 1, "{text}");
            assert_eq!(warnings.len(), 1, "{text}");
            assert!(warnings[0].starts_with(what), "{warnings:?}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for text in [
            "x",
            "<rule>",
            "<rule/>",
            "<rule><from>(</from></rule>",
            "<rule><condition type=\"header\"/><from>a</from></rule>",
            "<urlrewrite default-match-type=\"wildcard\"/>",
        ] {
            let why = parse(text, &mut Vec::new()).unwrap_err();
            assert!(why.contains("allowed is"), "{text}: {why}");
        }
    }
}
