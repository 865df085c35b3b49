//! The crate graph is the architecture: a dependency that ARCHITECTURE.md does not draw fails here.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use votestream_e2e::tree::{files, metadata, read, root, sources};

/// The crates of ours on which each crate depends: these and no others. Their tests may use more.
const ARROWS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("client", &["proto"]),
    ("core", &[]),
    ("embedded", &["core"]),
    ("aws", &["core"]),
    ("server", &["core", "proto"]),
    ("process", &["core", "server"]),
    ("ingest", &["core", "process", "proto", "server"]),
    ("persist", &["core", "process", "server"]),
    ("web", &["server"]),
    ("tally", &["core", "process", "proto", "server", "web"]),
    ("stack", &["core", "ingest", "persist", "server", "tally"]),
    ("preflight", &["core"]),
    ("", &["client", "core", "embedded", "process", "server", "stack"]),
    ("testkit", &["core"]),
    ("sim", &["core", "ingest", "persist", "proto", "tally"]),
    (
        "e2e",
        &[
            "aws", "client", "core", "embedded", "ingest", "persist", "process", "proto", "server", "stack", "tally",
            "testkit",
        ],
    ),
    (
        "bench",
        &["aws", "client", "core", "embedded", "ingest", "persist", "proto", "server", "stack", "tally", "testkit"],
    ),
];

/// Dependencies behind a feature that is off by default: of the services' binaries, of `votestream preflight`, and of the
/// stand-ins of `votestream dev-aws`.
const ARROWS_OF_FEATURES: &[(&str, &[&str])] =
    &[("ingest", &["aws"]), ("persist", &["aws"]), ("tally", &["aws"]), ("", &["preflight", "testkit"])];

/// The top-level modules ("rooms") of `core`, and the others that each names. A room may only name rooms that are
/// listed before it.
const ROOMS: &[(&str, &[&str])] = &[
    ("mutation", &[]),
    ("model", &[]),
    ("record", &["model"]),
    ("port", &["model"]),
    ("observe", &["model", "port"]),
    ("clock", &["model", "mutation", "observe"]),
    ("polls", &["model", "port"]),
    ("produce", &["model", "mutation", "observe", "port", "record"]),
    ("consume", &["model", "mutation", "observe", "polls", "port", "record"]),
];

/// Crates of engines and transports that `core` must never reach, and engines that only their adapter may name.
const ENGINES: &[(&str, &[&str])] = &[
    ("fjall", &["embedded"]),
    ("aws-sdk-kinesis", &["aws", "preflight"]),
    ("aws-sdk-dynamodb", &["aws", "bench", "preflight"]),
    ("tonic", &["proto", "client", "server", "process", "ingest", "tally", "web", "", "e2e", "bench"]),
];

/// Normal dependencies of each crate of the workspace: either the optional ones, or the others.
fn dependencies(optional: bool) -> BTreeMap<String, Vec<String>> {
    let metadata = metadata("Cargo.toml", &["--no-deps"]);
    let packages = metadata["packages"].as_array().unwrap();
    let of = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().unwrap();
        let normal = all
            .iter()
            .filter(|dependency| dependency["kind"].is_null() && dependency["optional"].as_bool() == Some(optional));
        normal.map(|dependency| short(dependency["name"].as_str().unwrap())).collect()
    };
    packages.iter().map(|package| (short(package["name"].as_str().unwrap()), of(package))).collect()
}

/// Name of a crate without the name of the project. Empty for the command.
fn short(name: &str) -> String {
    let ours = name.strip_prefix("votestream").map(|rest| rest.trim_start_matches('-'));
    ours.unwrap_or(name).to_owned()
}

#[test]
fn crates_depend_on_what_the_architecture_says_and_on_nothing_else() {
    for (optional, drawn) in [(false, ARROWS), (true, ARROWS_OF_FEATURES)] {
        let dependencies = dependencies(optional);
        for (name, found) in &dependencies {
            let found: BTreeSet<&str> =
                found.iter().map(String::as_str).filter(|name| dependencies.contains_key(*name)).collect();
            let expected = drawn.iter().find(|(of, _)| of == name).map(|(_, to)| to.iter().copied().collect());
            assert!(optional || expected.is_some(), "{name:?} has no place in the architecture");
            assert_eq!(found, expected.unwrap_or_default(), "arrows of {name:?}");
        }
    }
}

/// Names after `crate::` in a source, without its comments and unit tests.
fn named_in_crate(source: &str) -> BTreeSet<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    let source: String = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut names = BTreeSet::new();
    for rest in source.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(rest.split(|c| !is_word(c)).next().unwrap().to_owned());
            continue;
        };
        // The first word of each branch of the group.
        let (mut depth, mut branch) = (0, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                _ => {}
            }
            if c == ',' && depth == 0 {
                names.insert(std::mem::take(&mut branch));
            } else if depth == 0 && !c.is_whitespace() {
                branch.push(c);
            }
        }
        names.insert(branch);
    }
    let first_word = |name: String| name.split(|c| !is_word(c)).next().unwrap().to_owned();
    names.into_iter().map(first_word).filter(|name| !name.is_empty()).collect()
}

#[test]
fn the_rooms_of_core_name_those_below_them_only() {
    let lib = read("core/src/lib.rs");
    let rooms: BTreeSet<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    let declared: BTreeSet<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(declared, rooms, "rooms of core/src/lib.rs");
    for (at, (room, expected)) in ROOMS.iter().enumerate() {
        let below: BTreeSet<&str> = ROOMS[..at].iter().map(|(below, _)| *below).collect();
        assert!(expected.iter().all(|named| below.contains(named)), "{room} names a room that is not below it");
        let files = files([format!("core/src/{room}"), format!("core/src/{room}.rs")], &[".rs"]);
        let named = files.iter().flat_map(|file| named_in_crate(file));
        // What the crate exports at its root belongs to the model.
        let named = named.map(|name| if rooms.contains(&*name) { name } else { "model".to_owned() });
        let named: BTreeSet<String> = named.filter(|name| name != room).collect();
        let expected: BTreeSet<String> = expected.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(named, expected, "what {room} names");
    }
}

#[test]
fn engines_stay_behind_their_adapters() {
    let dependencies = dependencies(false);
    for (engine, may_name_it) in ENGINES {
        for (name, _) in ARROWS.iter().filter(|(name, _)| !may_name_it.contains(name)) {
            assert!(
                !dependencies[*name].iter().any(|dependency| dependency == engine),
                "{name} must not name {engine}"
            );
        }
    }
}

#[test]
fn the_command_line_tool_without_features_does_not_compile_the_aws_sdk() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--prefix", "none", "-p", "votestream", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && tree.contains("tonic"), "cargo tree printed no tree");
    assert!(!tree.lines().any(|line| line.starts_with("aws-")), "the AWS SDK is in the tree of `votestream`");
}

/// The texts between backticks on a page.
fn named(page: &str) -> Vec<&str> {
    // Blocks of code do not count.
    page.split('`').skip(1).step_by(2).filter(|name| !name.contains('\n')).collect()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Everything that docs/exactness.md names must exist: tests, mutations and schedules as a whole word in some source,
/// files as a path.
#[test]
fn the_argument_names_only_what_exists() {
    let page = read("docs/exactness.md");
    let sources = sources(["core", "adapters", "tests", "persist-svc", "tally-svc", "ingest-svc", "client", "cli"]);
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

/// A test attacks every promise and every limit of the README, and docs/promises.md says which test.
#[test]
fn every_promise_names_a_test_that_attacks_it() {
    let page = read("docs/promises.md");
    let readme = read("README.md");
    let section = |title: &str| readme.split(&format!("\n## {title}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
    let promises = section("What is promised").lines().filter_map(|line| {
        let (number, rest) = line.split_once(". **")?;
        Some(format!("{number}. {}", rest.split("**").next()?.trim_end_matches('.')))
    });
    let limits =
        section("Limits").lines().filter_map(|line| Some(line.strip_prefix("| ")?.split(" |").next()?.to_owned()));
    let rows: Vec<_> = promises.chain(limits.skip(1)).collect();
    assert!(rows.len() > 15, "the README has {} promises and limits", rows.len());

    let sources = sources(["cli", "core", "tests"]);
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

/// The walk in ARCHITECTURE.md names every file once, by its whole path, and every path of the page exists.
#[test]
fn the_way_of_a_vote_leads_through_files_that_exist() {
    let page = read("ARCHITECTURE.md");
    let title = "\n## A vote from the socket to the stored item\n";
    let walk = page.split(title).nth(1).expect("the walk is there").split("\n## ").next().unwrap();
    let files: Vec<_> = named(walk).into_iter().filter(|name| name.ends_with(".rs")).collect();
    assert!(files.len() > 50, "the walk names {} files", files.len());
    let mut seen = BTreeSet::new();
    for file in files {
        assert!(root().join(file).is_file(), "the walk leads to {file}, which does not exist");
        assert!(seen.insert(file), "the walk comes to {file} twice");
    }
    for path in named(&page).into_iter().filter(|name| name.contains('/') && !name.contains(' ')) {
        assert!(root().join(path).exists(), "ARCHITECTURE.md names {path}, which does not exist");
    }
}

/// The tables of ARCHITECTURE.md have every crate, and every room of `core` with what it names.
#[test]
fn every_crate_and_every_room_has_its_row() {
    let page = read("ARCHITECTURE.md");
    let cells = |name: &str| {
        let row = page.lines().find_map(|line| line.strip_prefix(&format!("| `{name}`")));
        let row = row.unwrap_or_else(|| panic!("ARCHITECTURE.md has no row for {name}"));
        row.trim_end_matches(" |").split(" | ").skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let metadata = metadata("Cargo.toml", &["--no-deps"]);
    let workspace = metadata["workspace_root"].as_str().unwrap();
    for package in metadata["packages"].as_array().unwrap() {
        let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
        cells(folder.strip_prefix(workspace).unwrap().to_str().unwrap());
    }
    for (room, named) in ROOMS.iter().filter(|(room, _)| *room != "mutation") {
        let named: Vec<_> = named.iter().copied().filter(|name| *name != "mutation").collect();
        let expected = if named.is_empty() { "no other".to_owned() } else { named.join(", ") };
        assert_eq!(cells(room).last(), Some(&expected), "what {room} names");
    }
}
