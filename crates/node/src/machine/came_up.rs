//! What the audit log says of a start or wake that succeeded, and what is read out of it again.

use std::fmt;

use super::Asker;

/// How a machine came to run: `wake in 93 ms, for a message`.
#[derive(Debug, Clone, PartialEq)]
pub struct CameUp {
    /// `cold boot`, `clone`, `wake`.
    pub how: String,
    /// From the request to ready, in milliseconds.
    pub ms: f64,
    /// Who wanted it.
    pub asker: Asker,
}

impl CameUp {
    /// Reads what its `Display` wrote.
    pub fn parse(detail: &str) -> Option<Self> {
        let (how, rest) = detail.split_once(" in ")?;
        let (ms, asker) = rest.split_once(" ms, for ")?;
        let asker = Asker::ALL.into_iter().find(|one| one.as_str() == asker)?;
        Some(Self { how: how.to_owned(), ms: ms.parse().ok()?, asker })
    }
}

impl fmt::Display for CameUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {:.0} ms, for {}", self.how, self.ms, self.asker.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_log_reads_as_people_do() {
        let woken = CameUp { how: "wake".to_owned(), ms: 92.6, asker: Asker::Message };
        assert_eq!(woken.to_string(), "wake in 93 ms, for a message");
        assert_eq!(CameUp::parse("for a message"), None);
        assert_eq!(CameUp::parse("wake in no ms, for a message"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(how in "(wake|clone|cold boot)", ms in 0u32..10_000_000, who in 0usize..4) {
            let came_up = CameUp { how, ms: f64::from(ms), asker: Asker::ALL[who] };
            prop_assert_eq!(CameUp::parse(&came_up.to_string()), Some(came_up));
        }
    }
}
