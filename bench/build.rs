//! Compiles the ingest API once more as any tonic user would get it: every field a string of its own. The baseline.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../proto/votestream");
    let descriptors = protox::compile(["votestream/v1/ingest.proto"], ["../proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
