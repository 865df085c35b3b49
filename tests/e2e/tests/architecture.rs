//! The crate graph is the architecture: an arrow that ARCHITECTURE.md does not draw fails here.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

/// Which of our crates each crate may depend on. Tests may use more.
const ALLOWED: &[(&str, &[&str])] = &[
    ("votestream-proto", &[]),
    // Whoever uses it gets nothing of the services.
    ("votestream-client", &["votestream-proto"]),
    ("votestream-core", &[]),
    ("votestream-embedded", &["votestream-core"]),
    ("votestream-aws", &["votestream-core"]),
    ("votestream-server", &["votestream-core", "votestream-proto"]),
    ("votestream-process", &["votestream-core", "votestream-server"]),
    ("votestream-ingest", &["votestream-core", "votestream-process", "votestream-proto", "votestream-server"]),
    ("votestream-persist", &["votestream-core", "votestream-process", "votestream-server"]),
    ("votestream-tally", &["votestream-core", "votestream-process", "votestream-proto", "votestream-server"]),
];

/// Which of our crates only a binary of the crate may use, behind a feature that is off by default.
const FOR_BINARIES: &[(&str, &[&str])] = &[
    ("votestream-ingest", &["votestream-aws"]),
    ("votestream-persist", &["votestream-aws"]),
    ("votestream-tally", &["votestream-aws"]),
];

/// Crates of engines and transports that `core` must never reach, and engines that only their adapter may name.
const ENGINES: &[(&str, &[&str])] = &[
    ("fjall", &["votestream-embedded"]),
    (
        "tonic",
        &[
            "votestream-proto",
            "votestream-client",
            "votestream-server",
            "votestream-process",
            "votestream-ingest",
            "votestream-tally",
        ],
    ),
];

fn metadata(arguments: &[&str]) -> serde_json::Value {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(manifest)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Normal dependencies of each crate of the workspace: the optional ones, or those that are always there.
fn dependencies(optional: bool) -> BTreeMap<String, Vec<String>> {
    let metadata = metadata(&["--no-deps"]);
    let packages = metadata["packages"].as_array().unwrap();
    let of = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().unwrap();
        let normal = all
            .iter()
            .filter(|dependency| dependency["kind"].is_null() && dependency["optional"].as_bool() == Some(optional));
        normal.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect()
    };
    packages.iter().map(|package| (package["name"].as_str().unwrap().to_owned(), of(package))).collect()
}

#[test]
fn crates_depend_only_on_what_the_architecture_says() {
    let (dependencies, for_binaries) = (dependencies(false), dependencies(true));
    for (name, allowed) in ALLOWED {
        let ours = dependencies[*name].iter().filter(|dependency| dependency.starts_with("votestream"));
        for dependency in ours {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
        let allowed = FOR_BINARIES.iter().find(|(of, _)| of == name).map_or(&[][..], |(_, allowed)| allowed);
        let ours = for_binaries[*name].iter().filter(|dependency| dependency.starts_with("votestream"));
        for dependency in ours {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} must not depend on {dependency}, even for a binary"
            );
        }
    }
}

#[test]
fn engines_stay_behind_their_adapters() {
    let dependencies = dependencies(false);
    for (engine, may_name_it) in ENGINES {
        for (name, _) in ALLOWED.iter().filter(|(name, _)| !may_name_it.contains(name)) {
            assert!(
                !dependencies[*name].iter().any(|dependency| dependency == engine),
                "{name} must not name {engine}"
            );
        }
    }
}

#[test]
fn the_command_line_tool_does_not_compile_the_aws_sdk() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--prefix", "none", "-p", "votestream", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml"))
        .output()
        .unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && tree.contains("tonic"), "cargo tree printed no tree");
    assert!(!tree.lines().any(|line| line.starts_with("aws-")), "the AWS SDK is in the tree of `votestream`");
}

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What a page names between backticks.
fn named(page: &str) -> Vec<&str> {
    // A block of code is none of it.
    page.split('`').skip(1).step_by(2).filter(|name| !name.contains('\n')).collect()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// All Rust sources of these folders.
fn sources(folders: &[&str]) -> String {
    let mut folders: Vec<_> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut sources = String::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources += &std::fs::read_to_string(&path).unwrap();
            }
        }
    }
    sources
}

/// Every test, mutation, schedule and file that docs/exactness.md names exists: as a whole word in some source, or as a path.
#[test]
fn the_argument_names_only_what_exists() {
    let page = std::fs::read_to_string(root().join("docs/exactness.md")).unwrap();
    let sources = sources(&["core", "adapters", "tests", "persist-svc", "tally-svc", "ingest-svc", "client"]);
    let words: BTreeSet<&str> = sources.split(|c| !is_word(c)).filter(|word| !word.is_empty()).collect();
    let named = named(&page);
    assert!(named.len() > 50, "the page names {} things", named.len());
    for name in named {
        let exists = if name.contains('/') {
            root().join(name).exists()
        } else {
            name.split(|c| !is_word(c)).all(|word| words.contains(word))
        };
        assert!(exists, "docs/exactness.md names {name}, which does not exist");
    }
}

/// Every promise and every limit of the README is attacked by a test, and docs/promises.md says by which.
#[test]
fn every_promise_names_a_test_that_attacks_it() {
    let page = std::fs::read_to_string(root().join("docs/promises.md")).unwrap();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let section = |title: &str| readme.split(&format!("\n## {title}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
    let promises = section("What is promised").lines().filter_map(|line| {
        let (number, rest) = line.split_once(". **")?;
        Some(format!("{number}. {}", rest.split("**").next()?.trim_end_matches('.')))
    });
    let limits =
        section("Limits").lines().filter_map(|line| Some(line.strip_prefix("| ")?.split(" |").next()?.to_owned()));
    let rows: Vec<_> = promises.chain(limits.skip(1)).collect();
    assert!(rows.len() > 15, "the README has {} promises and limits", rows.len());

    let sources = sources(&["cli", "core", "tests"]);
    for row in rows {
        let attacks = page.lines().find_map(|line| line.strip_prefix(&format!("| {row} | ")));
        let attacks = attacks.unwrap_or_else(|| panic!("docs/promises.md has no row for {row:?}"));
        let tests: Vec<_> = named(attacks).into_iter().filter(|name| name.chars().all(is_word)).collect();
        assert!(!tests.is_empty(), "nothing attacks {row:?}");
        for test in tests {
            assert!(sources.contains(&format!("fn {test}(")), "{row:?} is attacked by {test}, which is no test");
        }
    }
    for path in named(&page).into_iter().filter(|name| name.contains('/')) {
        assert!(root().join(path).exists(), "docs/promises.md names {path}, which does not exist");
    }
}
