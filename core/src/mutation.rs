//! Deliberate breaks of the protocol, to prove that the simulation finds each of them.
//!
//! Without the feature `mutations` there are none: [`is_active`] is always false, and the compiler removes what depends
//! on it. Only the simulation turns the feature on.

/// A rule of the protocol that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutation {
    /// After a batch was refused, its lane's next batch is sent before it.
    RefusedBatchIsOvertaken = 1,
    /// Consumers keep no dedup table.
    NoDedup,
    /// The dedup table holds one number per producer and shard instead of one per range of hashes; a merge takes the
    /// larger one.
    DedupPerProducer,
    /// Child shards start without their parents' dedup tables.
    DedupNotInherited,
    /// The lane of a new shard does not wait for its parents' pending batches.
    ChildLanesDoNotWait,
    /// A window is applied before its end is stored.
    NoIntent,
    /// Progress is written whatever epoch and progress are stored. (To drop the condition on the epoch alone loses
    /// nothing here: the stored progress returns to an earlier value only if an operator gives up records, so a zombie
    /// that meets the other condition does what the owner would do.)
    NoFence,
    /// Progress is written whatever progress is stored.
    NoPositionInCondition,
    /// Tallies are added whatever their position.
    NoTallyCondition,
    /// A vote that was stored before counts as a new one.
    NoPreviousOption,
    /// Child shards start before their parents have ended.
    ChildrenBeforeParents,
    /// Votes count however late their record arrives.
    NoLateRule,
    /// A late answer still acknowledges votes.
    AcknowledgedAfterDeadline,
    /// The watermark of an idle shard is the clock of its consumer.
    WatermarkFromOwnClock,
    /// A result is final when all shards that are known and have not ended have come far enough.
    FinalWithoutCoverage,
    /// ClosePoll stores its time in one step, and may move it earlier or later.
    ClosedInOneStep,
    /// The clock is trusted whatever the engines' answers say.
    ClockIsBelieved,
    /// The age of a poll's definition is checked for a moment before the clock reading that stamps the votes.
    AgeBeforeClock,
    /// A window that waits for a poll to be closed goes on with the definition that it has read before.
    ClosingPollIsNotReadAgain,
    /// Windows judge votes of a poll that is between the two steps of its closing.
    ClosingPollIsNotWaitedFor,
    /// When a batch is given up of which another shard stored a part, the rest is reported as not stored.
    RestIsCertain,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::RefusedBatchIsOvertaken,
        Self::NoDedup,
        Self::DedupPerProducer,
        Self::DedupNotInherited,
        Self::ChildLanesDoNotWait,
        Self::NoIntent,
        Self::NoFence,
        Self::NoPositionInCondition,
        Self::NoTallyCondition,
        Self::NoPreviousOption,
        Self::ChildrenBeforeParents,
        Self::NoLateRule,
        Self::AcknowledgedAfterDeadline,
        Self::WatermarkFromOwnClock,
        Self::FinalWithoutCoverage,
        Self::ClosedInOneStep,
        Self::ClockIsBelieved,
        Self::AgeBeforeClock,
        Self::ClosingPollIsNotReadAgain,
        Self::ClosingPollIsNotWaitedFor,
        Self::RestIsCertain,
    ];
}

#[cfg(feature = "mutations")]
static ACTIVE: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Makes this mutation the active one of the process, or none.
#[cfg(feature = "mutations")]
pub fn activate(mutation: Option<Mutation>) {
    ACTIVE.store(mutation.map_or(0, |mutation| mutation as u8), std::sync::atomic::Ordering::Relaxed);
}

/// Whether the mutation is active.
#[cfg(feature = "mutations")]
pub fn is_active(mutation: Mutation) -> bool {
    ACTIVE.load(std::sync::atomic::Ordering::Relaxed) == mutation as u8
}

/// Whether the mutation is active: never, without the feature.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub const fn is_active(_: Mutation) -> bool {
    false
}
