//! Strangers: hostile, slow, broken and foreign clients of a real `votestream up`, judged from outside.
//!
//! Each test starts its own process, and honest voters vote during the attack. The process must live, hold no more
//! memory than its settings say, cost nothing once the attacker has left, and count every honest vote.
//! `VOTESTREAM_BINARY` names another binary, `VOTESTREAM_SEED` repeats the sizes, cuts and orders of a run.

mod strangers;
