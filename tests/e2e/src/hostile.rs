//! Hostile, slow and broken clients, on sockets of their own.
//!
//! Owns the bytes that they send ([`wire`]), a connection that is free to break every rule ([`http2`]), calls of any bytes whose
//! answer is kept whole ([`call`]), what each kind of attacker does ([`attack`]), and a `votestream up` of which memory and processor time are looked at from outside ([`server`]). Must never
//! use the product's clients: they are too polite. Must never attack without an end.

pub mod attack;
pub mod call;
pub mod floods;
mod http;
pub mod http2;
pub mod server;
pub mod slow;
pub mod votes;
pub mod wire;

pub use attack::{Attack, Target};
pub use call::{Answer, Call};
pub use http2::Http2;
pub use server::{Options, Server};

/// The seed of this run: `VOTESTREAM_SEED`, or another one each time. It is printed, so that a failure can be repeated.
///
/// # Panics
///
/// If the variable is set and is no whole number.
pub fn seed(what: &str) -> u64 {
    let seed = match std::env::var("VOTESTREAM_SEED") {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("VOTESTREAM_SEED is {value:?}, which is no whole number")),
        Err(_) => rand::random::<u32>().into(),
    };
    eprintln!("{what}: VOTESTREAM_SEED={seed}");
    seed
}
