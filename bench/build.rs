//! Compiles the ingest API once more as any tonic user would get it: every field a string of its own. The baseline. And keeps
//! for the report what compiler made it.

use std::{env, process::Command};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../proto/votestream");
    let descriptors = protox::compile(["votestream/v1/ingest.proto"], ["../proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;

    let version = Command::new(env::var("RUSTC")?).arg("--version").output()?.stdout;
    println!("cargo:rustc-env=BENCH_RUSTC={}", String::from_utf8(version)?.trim());
    println!("cargo:rustc-env=BENCH_PROFILE={}", env::var("PROFILE")?);
    Ok(())
}
