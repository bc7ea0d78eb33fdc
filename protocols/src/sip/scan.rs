//! Looking for bytes in headers: values are some tens of bytes long, and for those a short loop over
//! registers costs less than a call into `memchr`, which is made for pages.

/// Position of the first byte below 16: CR, LF, or another control that lines rarely hold.
#[inline]
pub(crate) fn first_control(text: &[u8]) -> Option<usize> {
    first(text, below_16, |it| it < 16)
}

/// Position of the first byte that is `a`, which is ASCII.
#[inline]
pub(crate) fn first_is(text: &[u8], a: u8) -> Option<usize> {
    first(text, |word| zeros(word ^ repeat(a)), |it| it == a)
}

/// Position of the first byte that is `a` or `b`, both ASCII.
#[inline]
pub(crate) fn first_of(text: &[u8], a: u8, b: u8) -> Option<usize> {
    let marks = |word: u64| zeros(word ^ repeat(a)) | zeros(word ^ repeat(b));
    first(text, marks, |it| it == a || it == b)
}

/// Whether a token has this name; case does not matter. `lower` is how nearly everybody writes it.
#[inline]
pub(crate) fn is_named(token: &[u8], lower: &[u8]) -> bool {
    token == lower || token.eq_ignore_ascii_case(lower)
}

/// The first byte that `is` says yes to: past all blocks without one, then in words; byte by byte only where
/// there is no whole word.
///
/// `marks` says the same of a word: it sets the highest bit of the first such byte and none of a byte
/// before; what it says of later ones does not matter.
#[inline(always)]
fn first(text: &[u8], marks: impl Fn(u64) -> u64, is: impl Fn(u8) -> bool) -> Option<usize> {
    let (blocks, rest) = text.as_chunks::<16>();
    let mut at = 0;
    for block in blocks {
        // All sixteen are looked at whatever is found: that is one comparison of a vector register.
        if block.iter().fold(false, |any, it| any | is(*it)) {
            let ([low, high], _) = block.as_chunks() else { return None };
            let low = marks(u64::from_le_bytes(*low));
            let high = marks(u64::from_le_bytes(*high));
            let bit = if low != 0 { low.trailing_zeros() } else { 64 + high.trailing_zeros() };
            return Some(at + bit as usize / 8);
        }
        at += 16;
    }
    if let Some(word) = rest.first_chunk() {
        let found = marks(u64::from_le_bytes(*word));
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
    }
    // What is left is in the last word, of which the first bytes have been looked at already.
    let Some(word) = text.last_chunk() else { return text.iter().position(|it| is(*it)) };
    let found = marks(u64::from_le_bytes(*word));
    (found != 0).then(|| text.len() - word.len() + found.trailing_zeros() as usize / 8)
}

/// Subtraction borrows from the highest bit of a byte below 16, and only such a byte borrows from the
/// one after it.
#[inline(always)]
const fn below_16(word: u64) -> u64 {
    word.wrapping_sub(repeat(16)) & !word & repeat(0x80)
}

#[inline(always)]
const fn zeros(word: u64) -> u64 {
    word.wrapping_sub(repeat(1)) & !word & repeat(0x80)
}

const fn repeat(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn the_first_one_is_found_wherever_it_stands() {
        for seed in 0..20_000 {
            let text = Random::new(seed).mutate(b"a;b=\"c\x7f\x80\x8f\xff\" d\x0f\x10;e \t\r\n");
            for from in 0..text.len() {
                let text = &text[from..];
                let want = text.iter().position(|it| *it < 16);
                assert_eq!(first_control(text), want, "seed {seed} from {from}");
                let want = text.iter().position(|it| matches!(it, b';' | b'"'));
                assert_eq!(first_of(text, b';', b'"'), want, "seed {seed} from {from}");
                let want = text.iter().position(|it| *it == b';');
                assert_eq!(first_is(text, b';'), want, "seed {seed} from {from}");
            }
        }
    }
}
