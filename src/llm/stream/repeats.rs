//! A model that says the same again and again. Pure.

/// How often a block must stand at the end.
const TIMES: usize = 8;
/// Bytes of a block. A shorter one that repeats is also a longer one; many are usual in texts, like a line of dashes.
const BLOCK_BYTES_MIN: usize = 64;
const BLOCK_BYTES_MAX: usize = 2_048;
/// Bytes that come between two looks: each costs up to a comparison for every length of a block.
const LOOK_EVERY: usize = 512;

/// Looks at a text that grows.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    looked_at: usize,
}

impl Repeats {
    /// Whether the text ends with a block of 64 to 2,048 bytes that stands there 8 times. Looked at once every 512 bytes.
    pub(super) fn at_end_of(&mut self, text: &str) -> bool {
        let places = |bytes: usize| bytes / LOOK_EVERY;
        if places(text.len()) == places(self.looked_at) {
            return false;
        }
        self.looked_at = text.len();
        let bytes = text.as_bytes();
        (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).any(|block| {
            // A text has the period `block` if it is the same without its first and without its last block.
            let end = bytes.len().checked_sub(block * TIMES).and_then(|from| bytes.get(from..));
            end.is_some_and(|end| end.get(block..) == end.get(..end.len() - block))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeats(text: &str) -> bool {
        Repeats::default().at_end_of(text)
    }

    #[test]
    fn block_of_any_length_is_found_at_its_eighth_time() {
        let varied = |bytes: usize| {
            let mut state = 1_u32;
            let mut letter = || {
                state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                char::from(b'a' + (state >> 16).to_le_bytes()[0] % 23)
            };
            (0..bytes).map(|_| letter()).collect::<String>()
        };
        for bytes in [64, 100, 777, 2_048] {
            let block = format!("{} ", varied(bytes - 1));
            assert!(repeats(&format!("It began well. {}", block.repeat(8))), "{bytes}");
            assert!(!repeats(&format!("It began well. {}", block.repeat(7))), "{bytes}");
        }
        assert!(!repeats(&varied(2_049).repeat(8)), "a longer block");
        assert!(repeats(&"no ".repeat(400)), "a short one is part of a longer one");
    }

    #[test]
    fn usual_texts_are_no_repetition() {
        let table: String = (0..200).map(|n| format!("| row {n} | {} | yes |\n", n * 7)).collect();
        for text in [table.as_str(), &"-".repeat(500), &"0, ".repeat(150), "", "short"] {
            assert!(!repeats(text), "{text}");
        }
        assert!(repeats(&"-".repeat(512)));
    }

    #[test]
    fn growing_text_is_looked_at_every_so_many_bytes() {
        let (mut looks, mut text, mut found) = (Repeats::default(), String::new(), None);
        for n in 0..1_000 {
            text.push_str("again, ");
            if looks.at_end_of(&text) {
                found = found.or(Some(n));
            }
        }
        let bytes = (found.unwrap() + 1) * 7;
        assert!((512..=1_031).contains(&bytes), "{bytes}");
    }
}
