//! Times and durations as people write them.
//!
//! Must never guess: refuses a time without an offset or a zone, or with an offset and a zone that disagree.

use std::time::Duration;

use jiff::{SpanRelativeTo, Timestamp, ZonedDateTime};

/// A duration such as 90s, 1h30m, 2d or 1w. A day always has 24 hours, even when the clocks change.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a duration such as 90s, 15m, 1h30m, 2d or 1w";
    let span: jiff::Span = text.parse().map_err(|_| EXPECTED)?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err("months and years differ in length: give days or weeks".into());
    }
    let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| EXPECTED)?;
    Duration::try_from(signed).map_err(|_| "a duration cannot be negative".into())
}

/// A moment in RFC 3339, which has an offset, or in RFC 9557, which has a time zone.
pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    if text.contains('[') {
        let zoned: ZonedDateTime = text.parse().map_err(|error: jiff::Error| error.to_string())?;
        return Ok(zoned.timestamp());
    }
    text.parse().map_err(|_| {
        "expected a time with an offset or a time zone, such as 2026-05-16T23:00:00+02:00, 2026-05-16T21:00:00Z or \
         2026-05-16T23:00[Europe/Berlin]"
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in
            [("90s", 90), ("1h30m", 5_400), ("2d", 172_800), ("1w", 604_800), ("1d12h", 129_600), ("1 day", 86_400)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in ["-5s", "-2d", "soon", "", "5", "1mo", "1y", "2x"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times() {
        let at = |text: &str| parse_time(text).map(|at| at.to_string());
        let expected = Ok("2026-05-16T21:00:00Z".to_owned());
        assert_eq!(at("2026-05-16T21:00:00Z"), expected);
        assert_eq!(at("2026-05-16 23:00:00+02:00"), expected);
        assert_eq!(at("2026-05-16T23:00:00+02:00[Europe/Berlin]"), expected);
        assert_eq!(at("2026-05-16T23:00[Europe/Berlin]"), expected);
        assert_eq!(at("2026-05-16T21:00:00Z[UTC]"), expected);
        // In May, Berlin is two hours ahead of UTC, not one.
        for wrong in [
            "2026-05-16T23:00:00+01:00[Europe/Berlin]",
            "2026-05-16T23:00:00+02:00[America/New_York]",
            "2026-05-16T23:00:00[Nowhere/Land]",
            "2026-05-16T23:00:00",
            "2026-05-16",
            "tomorrow",
        ] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }
}
