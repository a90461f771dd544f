//! Times as people read them.

use std::time::{SystemTime, UNIX_EPOCH};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Seconds since 1970, now.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How long ago a time was, roughly: `45s`, `12m`, `3h`, `9d`.
pub fn age(now: u64, then: u64) -> String {
    match now.saturating_sub(then) {
        seconds @ ..MINUTE => format!("{seconds}s"),
        seconds @ ..HOUR => format!("{}m", seconds / MINUTE),
        seconds @ ..DAY => format!("{}h", seconds / HOUR),
        seconds => format!("{}d", seconds / DAY),
    }
}

/// Seconds since 1970 as `2026-11-23T21:16:03Z`.
pub fn utc(seconds: u64) -> String {
    let (year, month, day) = civil(seconds / DAY);
    let (hour, minute, second) = (seconds % DAY / HOUR, seconds % HOUR / MINUTE, seconds % MINUTE);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Milliseconds since 1970 as `2026-11-23T21:16:03.042Z`.
pub fn utc_ms(milliseconds: u64) -> String {
    let seconds = utc(milliseconds / 1000);
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), milliseconds % 1000)
}

/// Year, month and day of a day since 1970.
fn civil(mut day: u64) -> (u64, usize, u64) {
    let mut year = 1970;
    while day >= days_of(year) {
        day -= days_of(year);
        year += 1;
    }
    let february = days_of(year) - 337;
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

fn days_of(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leap { 366 } else { 365 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (978_307_199, "2000-12-31T23:59:59Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_795_468_563, "2026-11-23T21:16:03Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), text);
        }
        assert_eq!(utc_ms(1_795_468_563_042), "2026-11-23T21:16:03.042Z");
    }

    proptest! {
        #[test]
        fn later_times_read_later(a in 0u64..10_000_000_000, b in 0u64..10_000_000_000) {
            prop_assert_eq!(a.cmp(&b), utc(a).cmp(&utc(b)));
        }
    }

    #[test]
    fn ages_are_rough_and_never_negative() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86_400, "1d")]
        {
            assert_eq!(age(1_000_000 + seconds, 1_000_000), text);
        }
        assert_eq!(age(5, 10), "0s");
    }
}
