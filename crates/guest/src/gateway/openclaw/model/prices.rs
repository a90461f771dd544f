//! What tokens cost. An estimate: prices as they were published in November 2026, without discounts, tools and tiers.

use super::spending::Tokens;

/// In nanodollars a token, which is thousandths of dollars a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Price {
    input: u64,
    output: u64,
}

/// By the start of a model's name; the first that fits.
const PRICES: [(&str, Price); 11] = [
    ("claude-opus-4-0", Price { input: 15_000, output: 75_000 }),
    ("claude-opus-4-1", Price { input: 15_000, output: 75_000 }),
    ("claude-opus-4-2", Price { input: 15_000, output: 75_000 }),
    ("claude-opus", Price { input: 5_000, output: 25_000 }),
    ("claude-sonnet", Price { input: 3_000, output: 15_000 }),
    ("claude-haiku", Price { input: 1_000, output: 5_000 }),
    ("claude-3-opus", Price { input: 15_000, output: 75_000 }),
    ("claude-3-7-sonnet", Price { input: 3_000, output: 15_000 }),
    ("claude-3-5-sonnet", Price { input: 3_000, output: 15_000 }),
    ("claude-3-5-haiku", Price { input: 800, output: 4_000 }),
    ("claude-3-haiku", Price { input: 250, output: 1_250 }),
];
/// Of a model that is not in the table: rather too much, as limits are for.
const UNKNOWN: Price = Price { input: 15_000, output: 75_000 };

/// What these tokens of this model cost, in nanodollars.
pub(super) fn cost(model: &str, tokens: &Tokens) -> u64 {
    let known = PRICES.iter().find(|(prefix, _)| model.starts_with(prefix));
    let price = known.map_or(UNKNOWN, |(_, price)| *price);
    // Written to the cache for five minutes: a quarter more, for an hour: twice as much; read from it: a tenth.
    let input = tokens.input.saturating_mul(price.input);
    let hour = tokens.cache_written_for_an_hour;
    let minutes = tokens.cache_written.saturating_sub(hour);
    let written = (minutes.saturating_mul(price.input).saturating_mul(5) / 4)
        .saturating_add(hour.saturating_mul(price.input).saturating_mul(2));
    let read = tokens.cache_read.saturating_mul(price.input) / 10;
    let output = tokens.output.saturating_mul(price.output);
    input.saturating_add(written).saturating_add(read).saturating_add(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_of_each_costs_what_the_table_says() {
        let million = 1_000_000;
        let tokens = Tokens {
            input: million,
            output: million,
            cache_written: million,
            cache_written_for_an_hour: 0,
            cache_read: million,
        };
        let dollars = |model| cost(model, &tokens) as f64 / 1e9;
        assert_eq!(dollars("claude-sonnet-4-5-20250929"), 3.0 + 15.0 + 3.75 + 0.3);
        assert_eq!(dollars("claude-opus-4-1-20250805"), dollars("something-else"));
        assert!(dollars("claude-opus-4-5") < dollars("claude-opus-4-20250514"));
        let hour = Tokens { cache_written: million, cache_written_for_an_hour: million, ..Tokens::default() };
        assert_eq!(cost("claude-sonnet-5", &hour), 6_000_000_000);
        assert!(dollars("claude-haiku-4-5") < dollars("claude-sonnet-5"));
    }
}
