//! A rate of calls, as people write it.
//!
//! Owns its text form. Must never count anything.

use std::{fmt, num::NonZeroU32, str::FromStr};

use governor::Quota;

/// Most calls of a rate, in its unit of time, and most calls at once.
const CALLS_MAX: u32 = 1_000_000;

/// So many calls in a unit of time, and so many at once: `20/s`, `600/m` or `1000/h`; `600/m:20` for 20 at once. Without
/// the second number, all calls of the unit may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    calls: NonZeroU32,
    per: Per,
    burst: NonZeroU32,
}

/// A unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Per {
    Second,
    Minute,
    Hour,
}

impl Per {
    const ALL: [Self; 3] = [Self::Second, Self::Minute, Self::Hour];

    fn letter(self) -> &'static str {
        match self {
            Self::Second => "s",
            Self::Minute => "m",
            Self::Hour => "h",
        }
    }
}

impl Rate {
    pub(super) fn quota(self) -> Quota {
        let quota = match self.per {
            Per::Second => Quota::per_second(self.calls),
            Per::Minute => Quota::per_minute(self.calls),
            Per::Hour => Quota::per_hour(self.calls),
        };
        quota.allow_burst(self.burst)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected such as 20/s, 600/m or 1000/h, with numbers from 1 to {CALLS_MAX}");
        let number = |text: &str| {
            let digits = text.bytes().all(|digit| digit.is_ascii_digit());
            text.parse().ok().filter(|number: &NonZeroU32| digits && number.get() <= CALLS_MAX)
        };
        let (calls, rest) = text.split_once('/').ok_or_else(wrong)?;
        let (unit, burst) = rest.split_once(':').map_or((rest, None), |(unit, burst)| (unit, Some(burst)));
        let per = Per::ALL.into_iter().find(|per| per.letter() == unit).ok_or_else(wrong)?;
        let calls = number(calls).ok_or_else(wrong)?;
        let burst = burst.map_or(Some(calls), number).ok_or_else(wrong)?;
        Ok(Self { calls, per, burst })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.calls, self.per.letter())?;
        if self.burst == self.calls { Ok(()) } else { write!(f, ":{}", self.burst) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rates_are_read_and_written() {
        for text in ["20/s", "600/m", "1000/h:20", "1/s:1000000"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        assert_eq!("20/s:20".parse::<Rate>().unwrap().to_string(), "20/s");
        let minute: Rate = "600/m:20".parse().unwrap();
        assert_eq!((minute.quota().replenish_interval(), minute.burst.get()), (Duration::from_millis(100), 20));
        for wrong in
            ["", "20", "20/", "0/s", "20/d", "20/s:", "20/s:0", "-1/s", "+1/s", "1000001/s", "20 /s", "1/s:1:1"]
        {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong:?}");
        }
    }
}
