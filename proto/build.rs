//! Compiles the .proto files without an installed `protoc`: `protox` is a protobuf compiler in Rust.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const FILES: [&str; 3] = ["votestream/v1/ingest.proto", "votestream/v1/polls.proto", "votestream/v1/results.proto"];

/// Requests that carry votes are read in place, see `src/votes.rs`.
const VOTE_MESSAGES: [&str; 3] =
    [".votestream.v1.CastVoteRequest", ".votestream.v1.CastVotesRequest", ".votestream.v1.StreamVotesRequest"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=votestream");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    let mut builder = tonic_prost_build::configure().codec_path("crate::SmallBufferCodec");
    for message in VOTE_MESSAGES {
        builder = builder.extern_path(message, "crate::VotesMessage");
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
