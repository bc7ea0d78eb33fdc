//! The rules that hold the source together, checked on its text: what the compiler and clippy do not see.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use engine::balance::ALGORITHMS;
use engine::config::ALGORITHM_NAMES;
use engine::relay::DropReason;

/// A text file of the tree.
struct File {
    /// From the root, with `/`.
    path: String,
    text: String,
}

impl File {
    /// What is in front of the tests of the file.
    fn body(&self) -> &str {
        let end = self.text.find("#[cfg(test)]\nmod tests {");
        end.map_or(&self.text, |end| &self.text[..end])
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether all of it is tests.
    fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap();
        let is_named = name.starts_with("tests") || matches!(name, "testing.rs" | "contract.rs");
        self.path.contains("/tests/") || is_named
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every text file that is not built, not git's and not recorded bytes.
fn tree() -> Vec<File> {
    fn walk(root: &Path, directory: &Path, files: &mut Vec<File>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if ["target", ".git", "node_modules", "data", "corpus", "artifacts", "coverage"]
                .contains(&name.as_str())
            {
                continue;
            }
            if path.is_dir() {
                walk(root, &path, files);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let path = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                files.push(File { path, text });
            }
        }
    }
    let mut files = Vec::new();
    walk(&root(), &root(), &mut files);
    assert!(files.len() > 100, "{} files: where is the tree?", files.len());
    files
}

/// One message for all that is wrong, not one per run.
fn expect_none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn files_are_short_enough_to_read() {
    let long = |it: &&File| it.is_rust() && it.body().lines().count() > LINES_MAX;
    let excused = |it: &&File| it.is_test() || it.path.starts_with("tests/");
    let files = tree();
    let broken = files.iter().filter(|it| !excused(it)).filter(long);
    let broken: Vec<String> =
        broken.map(|it| format!("{} has {}", it.path, it.body().lines().count())).collect();
    expect_none("lines before tests, at most 600", &broken);
}

/// Above the 500 that we aim at, so that a merge does not turn red by a few lines.
const LINES_MAX: usize = 600;

#[test]
fn every_module_says_what_it_is() {
    let said =
        |it: &File| it.text.starts_with("//!") || it.is_test() || it.path.contains("/targets/");
    let files = tree();
    let broken = files.iter().filter(|it| it.is_rust() && !said(it));
    expect_none("a module doc comes first", &broken.map(|it| it.path.clone()).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_lying_about() {
    // In two halves, or this file would break its own rule.
    let words = [
        (concat!("<<<<", "<<< "), "half a merge"),
        (concat!(">>>>", ">>> "), "half a merge"),
        (concat!("TO", "DO"), "nobody is hurt by it, or it is an issue"),
        (concat!("FIX", "ME"), "fix it"),
        (concat!("XX", "X:"), "say what is wrong"),
        (concat!("/wo", "rk/"), "a path of somebody's machine"),
        (concat!("/ho", "me/"), "a path of somebody's machine"),
        (concat!("/ro", "ot/"), "a path of somebody's machine"),
        (concat!("to", "do!("), "write it"),
        (concat!("unimple", "mented!("), "write it"),
    ];
    let mut broken = Vec::new();
    for file in tree() {
        for (number, line) in file.text.lines().enumerate() {
            let line = line.replace(GUIDES_HOME, "");
            let at = format!("{}:{}", file.path, number + 1);
            let found = words.iter().filter(|(word, _)| line.contains(word));
            broken.extend(found.map(|(word, why)| format!("{at}: {word:?}: {why}")));
            if line.ends_with([' ', '\t']) && !file.path.ends_with(".lock") {
                broken.push(format!("{at}: blanks at the end"));
            }
        }
        if !file.text.is_empty() && !file.text.ends_with('\n') {
            broken.push(format!("{}: no newline at the end", file.path));
        }
    }
    expect_none("not in the tree", &broken);
}

/// The guide's sample file names it, and tests quote that file.
const GUIDES_HOME: &str = concat!("/ho", "me/konstantinnosach");

#[test]
fn arrows_between_layers_point_one_way() {
    let mut broken = Vec::new();
    for (layer, refused) in [
        (
            "protocols",
            &["engine", "shards", "tools", "glommio", "socket2", "nix", "libc", "log"][..],
        ),
        ("engine", &["shards", "tools", "glommio", "socket2", "nix", "libc", "getrandom"]),
        ("tools", &["shards", "glommio", "libc", "rustls"]),
        ("perf", &["shards", "glommio", "libc"]),
        ("tests", &["shards", "glommio", "libc"]),
    ] {
        let names = dependencies(layer);
        let found = refused.iter().chain(&NOWHERE).filter(|it| names.contains(**it));
        broken.extend(found.map(|it| format!("{layer}/Cargo.toml names {it}")));
        let library = fs::read_to_string(root().join(layer).join("src/lib.rs"));
        let Ok(library) = library else { continue };
        let attributes: &[&str] = match layer {
            "protocols" => &["#![no_std]", "#![forbid(unsafe_code)]"],
            "engine" => &["#![forbid(unsafe_code)]"],
            _ => &[],
        };
        let missing = attributes.iter().filter(|it| !library.contains(**it));
        broken.extend(missing.map(|it| format!("{layer}/src/lib.rs lacks {it}")));
    }
    let found = dependencies("shards");
    let found = NOWHERE.iter().filter(|it| **it != "tokio" && found.contains(**it));
    broken.extend(found.map(|it| format!("shards: {it}")));
    expect_none("protocols <- engine <- shards", &broken);
}

/// Frameworks that bring a runtime of their own, and randomness that a simulation cannot replay.
const NOWHERE: [&str; 5] = ["tokio", "async-std", "mio", "smol", "rand"];

#[test]
fn the_runtime_of_the_kubernetes_client_stays_on_its_thread() {
    let uses = |it: &&File| it.is_rust() && it.text.contains(concat!("tok", "io::"));
    let files = tree();
    let broken = files.iter().filter(uses).filter(|it| it.path != "shards/src/kubernetes.rs");
    expect_none("no second runtime", &broken.map(|it| it.path.clone()).collect::<Vec<_>>());
}

/// Names in the tables of dependencies, those of tests included.
fn dependencies(crate_directory: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(crate_directory).join("Cargo.toml")).unwrap();
    let mut names = BTreeSet::new();
    let mut is_inside = false;
    for line in text.lines() {
        if line.starts_with('[') {
            is_inside = line.ends_with("dependencies]");
        } else if is_inside && let Some((name, _)) = line.split_once(['.', ' ', '=']) {
            names.insert(name.trim().to_owned());
        }
    }
    assert!(!names.is_empty(), "{crate_directory} depends on nothing?");
    names
}

#[test]
fn words_and_decisions_never_touch_the_kernel() {
    let kernel = [
        "UdpSocket",
        "TcpStream",
        "TcpListener",
        "Instant",
        "SystemTime",
        "std::thread",
        "std::fs",
        "std::env",
        "std::process",
        "std::io",
        "std::sync::Mutex",
        "std::sync::mpsc",
    ];
    let mut broken = Vec::new();
    for file in tree() {
        let is_pure = file.path.starts_with("protocols/src") || file.path.starts_with("engine/src");
        if !is_pure || file.is_test() {
            continue;
        }
        for line in file.body().lines().filter(|it| !it.trim_start().starts_with("//")) {
            let found = kernel.iter().filter(|it| line.contains(**it));
            broken.extend(found.map(|it| format!("{}: {it}: {}", file.path, line.trim())));
        }
    }
    expect_none("time, bytes and randomness are arguments", &broken);
}

#[test]
fn manifests_have_one_lint_table_and_no_features() {
    let mut broken = Vec::new();
    for file in tree().iter().filter(|it| it.path.ends_with("Cargo.toml")) {
        if file.text.contains("\n[features]") {
            broken.push(format!("{}: what is not built by default is not tested", file.path));
        }
        let has_lints = file.text.contains("[lints") || file.text.contains("[workspace");
        if !has_lints {
            broken.push(format!("{}: no lints", file.path));
        }
    }
    expect_none("manifests", &broken);
}

#[test]
fn every_test_and_target_is_run() {
    let manifest = fs::read_to_string(root().join("tests/Cargo.toml")).unwrap();
    let fuzz = fs::read_to_string(root().join("tests/fuzz/Cargo.toml")).unwrap();
    let mut broken = Vec::new();
    for file in tree() {
        let Some(path) = file.path.strip_prefix("tests/") else { continue };
        let (list, name) = match path.strip_prefix("fuzz/") {
            Some(target) if target.starts_with("targets/") => (&fuzz, target),
            None if !path.contains('/') && path.ends_with(".rs") => (&manifest, path),
            _ => continue,
        };
        if !list.contains(&format!("path = \"{name}\"")) {
            broken.push(format!("{} is in no manifest", file.path));
        }
    }
    expect_none("a test that nobody runs", &broken);
}

#[test]
fn a_ci_run_gives_broken_messages_their_minute() {
    let run = fs::read_to_string(root().join(".ci/run")).unwrap();
    let test = fs::read_to_string(root().join("tests/hostile.rs")).unwrap();
    assert!(run.contains("\nexport HOSTILE_SECONDS=60 ") && test.contains("\"HOSTILE_SECONDS\""));
}

#[test]
fn the_readme_names_every_crate() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = workspace.lines().find_map(|it| it.strip_prefix("members = [")).unwrap();
    let members = members.split('"').filter(|it| it.chars().all(char::is_alphanumeric));
    let missing = members.filter(|it| !it.is_empty() && !readme.contains(&format!("{it}/")));
    expect_none("not in README.md", &missing.map(str::to_owned).collect::<Vec<_>>());
}

#[test]
fn every_reason_to_drop_is_counted() {
    let source = fs::read_to_string(root().join("engine/src/relay/mod.rs")).unwrap();
    let (_, rest) = source.split_once("pub enum DropReason {\n").unwrap();
    let (variants, _) = rest.split_once("\n}").unwrap();
    let variants = variants.lines().map(str::trim).filter(|it| !it.starts_with("//"));
    let variants: Vec<&str> = variants.map(|it| it.trim_end_matches(',')).collect();
    let all: Vec<String> = DropReason::ALL.iter().map(|it| format!("{it:?}")).collect();
    assert_eq!(all, variants, "DropReason::ALL has every variant, in order");
    let names: BTreeSet<&str> = DropReason::ALL.iter().map(|it| it.as_str()).collect();
    assert_eq!(names.len(), DropReason::ALL.len(), "two reasons with one name: {names:?}");
}

#[test]
fn algorithms_are_the_same_in_table_configuration_and_directory() {
    let table: BTreeSet<&str> = ALGORITHMS.iter().map(|it| it.name).collect();
    assert_eq!(table, BTreeSet::from(ALGORITHM_NAMES));
    let entry = |it: &&File| {
        it.path.starts_with("engine/src/balance/")
            && it.text.contains("pub(crate) const ENTRY: Entry")
    };
    let files = tree();
    let rows = files.iter().filter(|it| it.is_rust()).filter(entry).count();
    assert_eq!(rows, ALGORITHMS.len(), "a file with a row that the table lacks");
}
