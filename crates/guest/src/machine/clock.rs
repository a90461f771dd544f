//! The wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use mvm_protocol::control::Clock;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::error::{Doing as _, Result};

/// In a second.
pub(super) const NANOS: u64 = 1_000_000_000;

/// Sets the clock at once.
///
/// # Errors
/// A time that the kernel does not take.
pub fn step(clock: Clock) -> Result<()> {
    let seconds = i64::try_from(clock.unix_nanos / NANOS).map_err(std::io::Error::other);
    let nanos = i64::try_from(clock.unix_nanos % NANOS).map_err(std::io::Error::other);
    let time = Timespec {
        tv_sec: seconds.doing("setting the clock")?,
        tv_nsec: nanos.doing("setting the clock")? as _,
    };
    clock_settime(ClockId::Realtime, time).doing("setting the clock")
}

/// Sets the clock forward by so many nanoseconds, slowly: 500 ppm of what passes.
///
/// # Errors
/// The kernel's.
pub(super) fn slew(nanos: i64) -> Result<()> {
    crate::sys::slew_clock(nanos / 1000).doing("adjusting the clock")
}

/// Whether a clock that is ahead by so many nanoseconds is set at once: so far behind, slewing would take hours.
///
/// One that is ahead never goes back at once. It may only seem to be: what the host says is older by as long as it was on its way.
pub(super) const fn is_far_behind(ahead: i64) -> bool {
    ahead < 0 && ahead.unsigned_abs() > NANOS
}

/// How far `own` is ahead of `host`, all in nanoseconds.
pub(super) fn nanos_ahead(own: u64, host: u64) -> i64 {
    let nanos = i128::from(own) - i128::from(host);
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

/// What the system's clock says, in nanoseconds since 1970.
pub(super) fn now_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_behind_by_more_than_a_second_is_set_at_once() {
        let second = 1_000_000_000;
        assert!([-second - 1, i64::MIN].iter().all(|&ahead| is_far_behind(ahead)));
        assert!([-second, 0, second, second + 1, i64::MAX].iter().all(|&ahead| !is_far_behind(ahead)));
    }

    #[test]
    fn offsets_have_a_sign_and_do_not_overflow() {
        assert_eq!(nanos_ahead(5_000, 2_000), 3_000);
        assert_eq!(nanos_ahead(2_000, 5_000), -3_000);
        assert_eq!((nanos_ahead(0, u64::MAX), nanos_ahead(u64::MAX, 0)), (i64::MIN, i64::MAX));
    }
}
