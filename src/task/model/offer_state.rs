//! The state of an offer in its row.

/// State of an offer (`docs/spec/negotiation.md` §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::task) enum OfferState {
    /// It can be awarded.
    Open,
    /// It won; the agent has not answered yet.
    Awarded,
    /// It won, and the agent accepted or confirmed.
    Confirmed,
    /// The agent was asked and makes no offer.
    Declined,
    /// The agent took it back.
    Withdrawn,
    /// It came after the end of its round.
    Late,
    /// It won, and the agent did not take the award.
    Refused,
    /// Another offer won, or the task ended.
    Lost,
    /// Its validity ended before an award.
    Expired,
}

impl OfferState {
    /// All states.
    const ALL: [Self; 9] = [
        Self::Open,
        Self::Awarded,
        Self::Confirmed,
        Self::Declined,
        Self::Withdrawn,
        Self::Late,
        Self::Refused,
        Self::Lost,
        Self::Expired,
    ];

    /// The word in the database.
    pub(in crate::task) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Awarded => "awarded",
            Self::Confirmed => "confirmed",
            Self::Declined => "declined",
            Self::Withdrawn => "withdrawn",
            Self::Late => "late",
            Self::Refused => "refused",
            Self::Lost => "lost",
            Self::Expired => "expired",
        }
    }

    /// The state with this word.
    pub(in crate::task) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}
