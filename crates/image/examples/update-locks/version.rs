//! The order of Debian's version numbers (Debian Policy, 5.6.12).

use std::cmp::Ordering;

/// Compares two version numbers.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let ((epoch_a, a), (epoch_b, b)) = (epoch(a), epoch(b));
    let ((upstream_a, revision_a), (upstream_b, revision_b)) = (revision(a), revision(b));
    epoch_a
        .cmp(&epoch_b)
        .then_with(|| compare_part(upstream_a, upstream_b))
        .then_with(|| compare_part(revision_a, revision_b))
}

fn epoch(version: &str) -> (u64, &str) {
    let split = version.split_once(':').and_then(|(epoch, rest)| Some((epoch.parse().ok()?, rest)));
    split.unwrap_or((0, version))
}

fn revision(version: &str) -> (&str, &str) {
    version.rsplit_once('-').unwrap_or((version, "0"))
}

/// Texts by their own order and numbers by theirs, in turn.
fn compare_part(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (text_a, text_b);
        (text_a, a) = a.split_at(a.find(|c: char| c.is_ascii_digit()).unwrap_or(a.len()));
        (text_b, b) = b.split_at(b.find(|c: char| c.is_ascii_digit()).unwrap_or(b.len()));
        let (number_a, number_b);
        (number_a, a) = a.split_at(a.find(|c: char| !c.is_ascii_digit()).unwrap_or(a.len()));
        (number_b, b) = b.split_at(b.find(|c: char| !c.is_ascii_digit()).unwrap_or(b.len()));
        let number = |digits: &str| digits.parse::<u128>().unwrap_or(0);
        let order = compare_text(text_a, text_b).then_with(|| number(number_a).cmp(&number(number_b)));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// `~` sorts before the end, the end before letters, letters before the rest.
fn compare_text(a: &str, b: &str) -> Ordering {
    let rank = |byte: Option<u8>| match byte {
        Some(b'~') => (0, 0),
        None => (1, 0),
        Some(letter) if letter.is_ascii_alphabetic() => (2, letter),
        Some(other) => (3, other),
    };
    let longest = a.len().max(b.len());
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let ranks = |text: &[u8]| (0..longest).map(|at| rank(text.get(at).copied())).collect::<Vec<_>>();
    ranks(a).cmp(&ranks(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_policy_order() {
        let ascending = [
            "1.0~~",
            "1.0~~a",
            "1.0~",
            "1.0~rc1",
            "1.0",
            "1.0-0+b1",
            "1.0-1",
            "1.0-1+deb12u1",
            "1.0a",
            "1.0+",
            "1.9",
            "1.10",
            "1:0.1",
        ];
        for (at, a) in ascending.iter().enumerate() {
            for (other, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), at.cmp(&other), "{a} and {b}");
            }
        }
    }
}
