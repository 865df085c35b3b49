//! Hostile, slow and broken clients, on sockets of their own.
//!
//! Owns the bytes that they send ([`wire`]), a connection that can break every rule ([`http2`]), calls of any bytes
//! whose answer is kept whole ([`call`]), and the kinds of attacks ([`attack`]). Must never use the product's clients,
//! because they keep the rules. Must never attack without an end.

pub mod attack;
pub mod call;
pub mod floods;
mod http;
pub mod http2;
pub mod slow;
pub mod votes;
pub mod wire;

pub use attack::{Attack, Target};
pub use call::{Answer, Call, GRPC_TRANSPORTS, transports};
pub use http2::Http2;

/// The seed of this run: `VOTESTREAM_SEED`, or a new one each time. It is printed, so that a failure can be repeated.
///
/// # Panics
///
/// If the variable is set but is not a whole number.
pub fn seed(what: &str) -> u64 {
    let seed = match std::env::var("VOTESTREAM_SEED") {
        Ok(value) => {
            value.parse().unwrap_or_else(|_| panic!("VOTESTREAM_SEED is {value:?}, which is not a whole number"))
        }
        Err(_) => rand::random::<u32>().into(),
    };
    eprintln!("{what}: VOTESTREAM_SEED={seed}");
    seed
}
