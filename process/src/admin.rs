//! The admin address of a process: `GET /metrics`, `GET /healthz`, `GET /readyz`.
//!
//! Owns what it is called and what is said of it. `server` answers there. Must never be where clients call: it asks for no
//! credential.

use std::{io, net::SocketAddr};

use votestream_server::Admin;

use crate::telemetry::prometheus::{Format, exposition};

/// What an operator must know of an admin address that others than this machine can reach.
pub const EXPOSED: &str = "it asks for no credential, so only those who may read metrics must be able to reach it";

/// Answers at this address from now on: the process starts. From now on, histograms are collected. Must be called within a
/// runtime.
///
/// # Errors
///
/// If the address cannot be used.
pub fn open(addr: SocketAddr) -> io::Result<Admin> {
    let admin = Admin::open(votestream_server::listen(addr)?, metrics)?;
    // The first exposition is thrown away. It makes the histograms collect.
    drop(exposition(Format::Text));
    Ok(admin)
}

fn metrics(accept: &str) -> (&'static str, String) {
    let format = Format::accepted(accept);
    (format.content_type(), exposition(format))
}
