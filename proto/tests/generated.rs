//! Compiles the .proto files and compares the result with what is in `generated`. No build has to compile them, nor the
//! compiler.
//!
//! `VOTESTREAM_GENERATE=1 cargo test -p votestream-proto --test generated` writes it anew.

use std::{ffi::OsString, fs, path::Path};

use prost::Message;

/// The folder of the .proto files, in that of the crate.
const FILES: &str = "votestream/v1";

/// Requests that carry votes are read in place, see `src/votes.rs`.
const VOTE_MESSAGES: [&str; 3] =
    [".votestream.v1.CastVoteRequest", ".votestream.v1.CastVotesRequest", ".votestream.v1.StreamVotesRequest"];

/// What is in a folder.
fn names(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn the_generated_code_is_that_of_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    // A protobuf compiler in Rust: no `protoc` has to be installed.
    let files = names(&root.join(FILES)).into_iter().map(|name| Path::new(FILES).join(name));
    let descriptors = protox::compile(files, [root]).unwrap();
    fs::write(out.path().join("descriptors.bin"), descriptors.encode_to_vec()).unwrap();
    let mut builder = tonic_prost_build::configure()
        .codec_path("crate::SmallBufferCodec")
        .out_dir(out.path())
        .emit_rerun_if_changed(false);
    for message in VOTE_MESSAGES {
        builder = builder.extern_path(message, "crate::VotesMessage");
    }
    builder.compile_fds(descriptors).unwrap();

    let committed = root.join("generated");
    if std::env::var_os("VOTESTREAM_GENERATE").is_some() {
        for name in names(out.path()) {
            fs::copy(out.path().join(&name), committed.join(&name)).unwrap();
        }
    }
    assert_eq!(names(&committed), names(out.path()));
    for name in names(out.path()) {
        let [is, should] = [&*committed, out.path()].map(|dir| fs::read(dir.join(&name)).unwrap());
        assert!(
            is == should,
            "{} is not what the .proto files say: run this test with VOTESTREAM_GENERATE=1",
            name.display()
        );
    }
}
