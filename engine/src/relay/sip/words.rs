//! Blocked words: whether a header value has any of them in it (`sip.md` 2.12).
//!
//! Horspool's search for a set of words: a window as long as the shortest word moves over the value, and the
//! byte at its end tells how far it may move without missing one.

/// Words to look for; ASCII case does not matter.
#[derive(Clone, Debug)]
pub(super) struct Words {
    words: Vec<String>,
    /// Length of the shortest word.
    window: usize,
    /// By the last byte of the window: 0 where a word may begin with the window.
    moves: [u8; 256],
}

impl Words {
    /// `None`: there are none. An empty word is in every text.
    pub(super) fn new(words: &[String]) -> Option<Words> {
        let window = words.iter().map(String::len).min()?.min(WINDOW_MAX);
        let far = u8::try_from(window).unwrap_or(u8::MAX);
        let mut it = Words { words: words.to_vec(), window, moves: [far; 256] };
        for word in words {
            for (left, byte) in (0..far).rev().zip(word.bytes()) {
                for byte in [byte.to_ascii_lowercase(), byte.to_ascii_uppercase()] {
                    if let Some(to) = it.moves.get_mut(usize::from(byte)) {
                        *to = left.min(*to);
                    }
                }
            }
        }
        Some(it)
    }

    /// Whether any of them is in `text`.
    pub(super) fn are_in(&self, text: &[u8]) -> bool {
        if self.window == 0 {
            return true;
        }
        let mut last = self.window - 1;
        while let Some(byte) = text.get(last) {
            match self.moves.get(usize::from(*byte)) {
                Some(far @ 1..) => last += usize::from(*far),
                _ => {
                    let rest = text.get(last + 1 - self.window..).unwrap_or_default();
                    if self.words.iter().any(|it| begins_with(rest, it.as_bytes())) {
                        return true;
                    }
                    last += 1;
                }
            }
        }
        false
    }
}

fn begins_with(text: &[u8], word: &[u8]) -> bool {
    text.get(..word.len()).is_some_and(|it| it.eq_ignore_ascii_case(word))
}

/// What a move fits in.
const WINDOW_MAX: usize = u8::MAX as usize;

#[cfg(test)]
mod tests {
    use super::*;

    fn words(all: &[&str]) -> Words {
        Words::new(&all.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn words_are_found_anywhere_in_any_case() {
        let cases: &[(&[&str], &str, bool)] = &[
            (&["sipcli", "friendly-scanner"], "sipcli/v1.8", true),
            (&["sipcli", "friendly-scanner"], "a Friendly-Scanner", true),
            (&["sipcli", "friendly-scanner"], "friendly", false),
            (&["sipcli", "friendly-scanner"], "sipsipcli", true),
            (&["sipcli"], "sipcl", false),
            (&["sipcli"], "", false),
            (&["x"], "abcX", true),
            (&["aab"], "aaaab", true),
            (&["aab"], "aaaaa", false),
            (&["bad & loud"], "<sip:BAD & LOUD>", true),
            (&["", "x"], "", true),
        ];
        for (all, text, want) in cases {
            assert_eq!(words(all).are_in(text.as_bytes()), *want, "{all:?} {text}");
        }
        assert!(Words::new(&[]).is_none());
        let long = "ab".repeat(400);
        assert!(words(&[&long]).are_in(format!("xyz{long}").as_bytes()));
        assert!(!words(&[&long]).are_in(&long.as_bytes()[1..]));
    }

    #[test]
    #[allow(clippy::cast_possible_truncation)] // an index below four
    fn they_are_found_exactly_where_a_plain_search_finds_them() {
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut draw = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for round in 0..20_000 {
            let mut text = |longest: u64| -> String {
                (0..=draw(longest))
                    .map(|_| char::from(b"abA-"[usize::try_from(draw(4)).unwrap()]))
                    .collect()
            };
            let (all, text) = ([text(2), text(3), text(5)], text(30));
            let lower = text.to_ascii_lowercase();
            let want = all.iter().any(|it| lower.contains(&it.to_ascii_lowercase()));
            let got = Words::new(&all).unwrap().are_in(text.as_bytes());
            assert_eq!(got, want, "round {round}: {all:?} in {text}");
        }
    }
}
