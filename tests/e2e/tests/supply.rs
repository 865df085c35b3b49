//! Checks the dependencies: only licences, sources and duplicates that `deny.toml` allows, and no unused dependency.
//!
//! `cargo deny check` reads the same file, where it is installed, and also knows advisories.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::Value;
use votestream_e2e::tree::{metadata, read, sources};

/// Dependencies that only generated code names.
const OF_GENERATED_CODE: &[(&str, &str)] =
    &[("votestream-proto", "prost-types"), ("votestream-bench", "prost"), ("votestream-bench", "tonic-prost")];

/// What is built on Linux, with every feature.
fn built() -> Value {
    metadata("Cargo.toml", &["--all-features", "--filter-platform", "x86_64-unknown-linux-gnu"])
}

/// The packages that are built on Linux.
fn packages(metadata: &Value) -> Vec<&Value> {
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let built: BTreeSet<&str> = nodes.iter().map(|node| node["id"].as_str().unwrap()).collect();
    let all = metadata["packages"].as_array().unwrap().iter();
    all.filter(|package| built.contains(package["id"].as_str().unwrap())).collect()
}

/// The strings of an array of `deny.toml`.
fn listed(name: &str) -> BTreeSet<String> {
    let page = read("deny.toml");
    let array = page.split(&format!("\n{name} = [")).nth(1).unwrap_or_else(|| panic!("deny.toml has no {name}"));
    let strings = array.split("\n\n").next().unwrap().split('"').skip(1).step_by(2);
    strings.map(str::to_owned).collect()
}

/// Whether an SPDX expression (version 2.3, annex D) can be satisfied with these licences. Exceptions only permit more.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    fn any<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>, allowed: &BTreeSet<String>) -> bool {
        let mut met = all(words, allowed);
        while words.next_if_eq(&"OR").is_some() {
            met |= all(words, allowed);
        }
        met
    }
    fn all<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>, allowed: &BTreeSet<String>) -> bool {
        let mut met = one(words, allowed);
        while words.next_if_eq(&"AND").is_some() {
            met &= one(words, allowed);
        }
        met
    }
    fn one<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>, allowed: &BTreeSet<String>) -> bool {
        if words.next_if_eq(&"(").is_some() {
            let met = any(words, allowed);
            assert_eq!(words.next(), Some(")"), "a parenthesis is not closed");
            return met;
        }
        let met = words.next().is_some_and(|licence| allowed.contains(licence));
        if words.next_if_eq(&"WITH").is_some() {
            words.next();
        }
        met
    }
    any(&mut words, allowed) && words.next().is_none()
}

#[test]
fn expressions_of_licences_are_read_as_spdx_says() {
    let allowed = BTreeSet::from(["MIT".to_owned(), "ISC".to_owned()]);
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("MIT AND ISC", true),
        ("MIT AND GPL-3.0 OR ISC", true),
        ("MIT AND (GPL-3.0 OR ISC)", true),
        ("(GPL-3.0 OR LGPL-3.0) AND MIT", false),
        ("MIT WITH LLVM-exception", true),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}

#[test]
fn licences_and_sources_are_those_that_are_allowed() {
    let (metadata, allowed) = (built(), listed("allow"));
    let mut foreign = 0;
    for package in packages(&metadata).iter().filter(|package| !package["source"].is_null()) {
        let (name, licence) = (&package["name"], package["license"].as_str());
        assert!(licence.is_some_and(|licence| is_met(licence, &allowed)), "{name} has the licence {licence:?}");
        let source = package["source"].as_str().unwrap();
        assert_eq!(source, "registry+https://github.com/rust-lang/crates.io-index", "{name}");
        foreign += 1;
    }
    assert!(foreign > 100, "{foreign} crates were looked at");
}

#[test]
fn crates_come_in_one_version_each_but_for_those_that_are_known() {
    let metadata = built();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages(&metadata) {
        let (name, version) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        versions.entry(name).or_default().insert(version);
    }
    let doubled = versions.iter().filter(|(_, versions)| versions.len() > 1);
    let doubled: BTreeSet<String> = doubled.map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(doubled, listed("skip"), "crates in several versions, and those that deny.toml knows of");
}

#[test]
fn every_dependency_is_used() {
    let metadata = built();
    let all = metadata["packages"].as_array().unwrap();
    let library = |name: &str| {
        let package = all.iter().find(|package| package["name"] == name)?;
        let mut targets = package["targets"].as_array()?.iter();
        let library = targets.find(|target| {
            target["kind"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|kind| kind != "bin" && kind != "custom-build"))
        })?;
        Some(library["name"].as_str()?.replace('-', "_"))
    };
    let mut looked_at = 0;
    for package in all.iter().filter(|package| package["source"].is_null()) {
        let name = package["name"].as_str().unwrap();
        let mut folders = BTreeSet::from([Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap()]);
        // Binaries from the sources of other crates.
        let targets = package["targets"].as_array().unwrap().iter();
        folders.extend(targets.map(|target| Path::new(target["src_path"].as_str().unwrap()).parent().unwrap()));
        let text = sources(&folders);
        let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        for dependency in package["dependencies"].as_array().unwrap() {
            let dependency = dependency["name"].as_str().unwrap();
            if OF_GENERATED_CODE.contains(&(name, dependency)) {
                continue;
            }
            // Dependencies that are not built on this system are not checked.
            let Some(library) = library(dependency) else { continue };
            assert!(words.contains(&*library), "{name} does not use {dependency}");
            looked_at += 1;
        }
    }
    assert!(looked_at > 100, "{looked_at} dependencies were looked at");
}
