//! What CONTRIBUTING.md, the justfile and the lists beside the code say: commands that exist, bans that hold everywhere, metrics
//! and settings that are known.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use votestream_e2e::tree::{files, metadata, read, root};

/// What stands between each of these and the next of those.
fn between<'a>(text: &'a str, from: &'a str, to: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(from).skip(1).filter_map(move |rest| Some(rest.split_once(to)?.0))
}

/// The packages of a workspace.
fn packages(manifest: &str) -> BTreeMap<String, Value> {
    let metadata = metadata(manifest, &["--no-deps"]);
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.map(|package| (package["name"].as_str().unwrap().to_owned(), package.clone())).collect()
}

/// Everything that is run, and the code of everything.
fn code() -> String {
    files(["."], &[".rs", ".sh", ".ts", "run"]).concat()
}

/// Whether one of the packages has a target of this kind and name.
fn has_target(packages: &[&Value], kind: &str, name: &str) -> bool {
    let mut targets = packages.iter().flat_map(|package| package["targets"].as_array().unwrap());
    targets.any(|target| target["name"] == name && target["kind"].as_array().unwrap().iter().any(|known| known == kind))
}

/// The commands of a page: its indented lines, without the words that only a shell or `just` reads.
fn commands(page: &str) -> Vec<String> {
    let indented = page.lines().filter(|line| line.starts_with("    ") && !line.trim().is_empty());
    indented.map(|line| line.trim().trim_start_matches('@').to_owned()).collect()
}

/// What is wrong with a command of cargo.
fn wrong(command: &str) -> Vec<String> {
    let words: Vec<&str> = command.split(" -- ").next().unwrap().split_whitespace().collect();
    let after = |flags: &[&str]| -> Vec<&str> {
        let pairs = words.windows(2).filter(|pair| flags.contains(&pair[0]));
        pairs.map(|pair| pair[1]).filter(|value| !value.contains('{') && !value.starts_with('$')).collect()
    };
    let manifest = after(&["--manifest-path"]).first().copied().unwrap_or("Cargo.toml");
    if !root().join(manifest).exists() {
        return vec![format!("there is no {manifest}")];
    }
    let all = packages(manifest);
    let (mut wrong, mut named) = (Vec::new(), Vec::new());
    for name in after(&["-p", "--package"]) {
        match all.get(name) {
            Some(package) => named.push(package),
            None => wrong.push(format!("there is no crate {name}")),
        }
    }
    if named.is_empty() {
        // `cargo run` means the command, everything else what the workspace has.
        let of_default = words.contains(&"run") && manifest == "Cargo.toml";
        named =
            all.iter().filter(|(name, _)| !of_default || *name == "votestream").map(|(_, package)| package).collect();
    }
    for (flag, kind) in [("--test", "test"), ("--bin", "bin"), ("--example", "example"), ("--bench", "bench")] {
        let missing = after(&[flag]).into_iter().filter(|name| !has_target(&named, kind, name));
        wrong.extend(missing.map(|name| format!("there is no {flag} {name}")));
    }
    for feature in after(&["--features"]).into_iter().flat_map(|features| features.split(',')) {
        if !named.iter().any(|package| package["features"].get(feature).is_some()) {
            wrong.push(format!("there is no feature {feature}"));
        }
    }
    wrong
}

/// The paths and variables of a command that do not exist.
fn missing(command: &str, sources: &str) -> Vec<String> {
    let (mut variables, mut words) = (Vec::new(), Vec::new());
    for word in command.split_whitespace() {
        match word.split_once('=') {
            Some((name, _)) if name.ends_with(|c: char| c.is_ascii_uppercase()) => variables.push(name),
            Some(_) => {}
            None => words.push(word),
        }
    }
    let is_path =
        |word: &&str| word.contains('/') && !word.contains('{') && !word.starts_with(['$', '/', '~', '-', '@']);
    let paths = words.into_iter().filter(is_path).filter(|path| !root().join(path).exists());
    let mut missing: Vec<_> = paths.map(|path| format!("there is no {path}")).collect();
    let unread = variables.into_iter().filter(|name| !sources.contains(&format!("\"{name}\"")));
    missing.extend(unread.map(|name| format!("nothing reads {name}")));
    missing
}

/// Every crate, target, feature, script and variable that the commands of these two pages name exists, and so does every path.
#[test]
fn what_people_are_told_to_run_exists() {
    let sources = code();
    let (mut looked_at, mut mistakes) = (0, Vec::new());
    for page in ["CONTRIBUTING.md", "justfile"] {
        let content = read(page);
        for command in commands(&content) {
            let mut found = missing(&command, &sources);
            if command.split_whitespace().any(|word| word == "cargo") {
                found.extend(wrong(&command));
            }
            mistakes.extend(found.into_iter().map(|mistake| format!("{page}: {command}: {mistake}")));
            looked_at += 1;
        }
        let is_path = |name: &&str| name.contains('/') && !name.contains([' ', '\n']) && !name.starts_with(['/', '~']);
        let paths: Vec<&str> = content.split('`').skip(1).step_by(2).filter(is_path).collect();
        assert!(page != "CONTRIBUTING.md" || paths.len() > 30, "{page} names {paths:?}");
        let gone = paths.into_iter().filter(|name| !root().join(name).exists());
        mistakes.extend(gone.map(|name| format!("{page} names {name}, which does not exist")));
    }
    assert!(looked_at > 30, "{looked_at} commands were looked at");
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

/// Tests that CONTRIBUTING.md names are tests, of Rust or of the deployment.
#[test]
fn tests_that_contributors_are_told_of_exist() {
    let (page, sources) = (read("CONTRIBUTING.md"), code());
    let is_test =
        |name: &&str| name.matches('_').count() > 2 && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let named: BTreeSet<&str> = page.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(named.len() > 5, "the page names {named:?}");
    for name in named {
        assert!(sources.contains(&format!("fn {name}(")), "CONTRIBUTING.md names {name}, which is no test");
    }
}

/// CONTRIBUTING.md names every recipe of the justfile, and no other.
#[test]
fn recipes_and_their_plain_commands_stand_side_by_side() {
    let (page, recipes) = (read("CONTRIBUTING.md"), read("justfile"));
    let recipe = |line: &str| {
        let name = line.split([' ', ':']).next()?;
        let is_recipe =
            line.contains(':') && !line.contains(":=") && line.starts_with(|c: char| c.is_ascii_lowercase());
        is_recipe.then(|| name.to_owned())
    };
    let recipes: BTreeSet<String> = recipes.lines().filter_map(recipe).collect();
    let named = between(&page, "`just ", "`").map(|name| name.split(' ').next().unwrap().to_owned());
    assert!(recipes.len() > 10, "{recipes:?}");
    assert_eq!(named.collect::<BTreeSet<String>>(), recipes);
}

/// Clippy reads the nearest clippy.toml only: what the root bans is banned in the crates that have one of their own.
#[test]
fn bans_of_the_root_hold_in_every_crate() {
    let is_ban = |line: &&str| line.trim_start().starts_with("{ path = ");
    let bans = |page: &str| page.lines().filter(is_ban).map(str::to_owned).collect::<BTreeSet<_>>();
    let (root, core) = (bans(&read("clippy.toml")), read("core/clippy.toml"));
    assert!(root.len() > 10, "{root:?}");
    assert_eq!(root.difference(&bans(&core)).collect::<Vec<_>>(), Vec::<&String>::new(), "core does not repeat");
    for member in ["ingest-svc", "persist-svc", "tally-svc"] {
        assert_eq!(read(&format!("{member}/clippy.toml")), core, "{member} has other bans than core");
    }
}

/// Each metric is in the lists that are exported, and has its line in the table for operators.
#[test]
fn every_metric_is_exported_and_explained() {
    let (source, table) = (read("core/src/observe/metrics.rs"), read("process/src/telemetry.rs"));
    let source = source.split("#[cfg(test)]").next().unwrap();
    let mut metrics = 0;
    for kind in ["Counter", "Gauge", "Histogram"] {
        let title = format!("pub static {}S:", kind.to_uppercase());
        let list = between(source, &title, "];").next().unwrap();
        let exported: BTreeSet<&str> = list.split(|c: char| !c.is_ascii_uppercase() && c != '_').collect();
        for line in source.lines().filter(|line| line.contains(&format!(": {kind}"))) {
            let Some(name) = between(line, "pub static ", ":").next() else { continue };
            assert!(exported.contains(name), "{name} is not exported");
            metrics += 1;
        }
    }
    assert!(metrics > 20, "{metrics} metrics");
    let named: BTreeSet<&str> = between(source, "\"votestream.", "\"").collect();
    let explained: BTreeSet<&str> = between(&table, "| `votestream.", "`").collect();
    assert_eq!(named, explained, "metrics of core, and the table of process/src/telemetry.rs");
}

/// One environment may serve all services: each knows the settings of the others.
#[test]
fn settings_of_one_service_are_no_mistakes_in_another() {
    let shared = read("process/src/config/engine.rs");
    let names = between(&shared, "pub const NAMES: &[&str] = &[", "];").next().unwrap();
    let names: BTreeSet<&str> = names.split('"').skip(1).step_by(2).collect();
    let mut settings = 0;
    for file in [
        "ingest-svc/src/settings.rs",
        "persist-svc/src/settings.rs",
        "tally-svc/src/settings.rs",
        "process/src/config/listener.rs",
    ] {
        let source = read(file);
        for made in source.split("#[cfg(test)]").next().unwrap().split("Setting::").skip(1) {
            // `new("name", …`, in one line or in several.
            let Some((_, from_name)) = made.split_once('"').filter(|(kind, _)| kind.contains('(')) else { continue };
            let name = from_name.split('"').next().unwrap();
            assert!(names.contains(name), "{file} has the setting {name}, which engine::NAMES does not know");
            settings += 1;
        }
    }
    assert!(settings > 15, "{settings} settings");
}
