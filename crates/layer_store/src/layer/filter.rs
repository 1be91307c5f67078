//! Which keys a layer may hold: a split block Bloom filter.
//!
//! A line is 32 bytes, eight words of 32 bits; a key sets one bit in each word of one line, so that a probe touches
//! one line. Lines are stored in blocks of [`LINES_PER_BLOCK`].

use pg_types::Key;

/// Bytes of a line.
pub(crate) const LINE_SIZE: usize = 32;
/// Lines in a filter block: 16 KiB.
pub(crate) const LINES_PER_BLOCK: u32 = 512;
/// Twelve bits for each key answer wrongly for about one absent key in 200.
const BITS_PER_KEY: u64 = 12;

/// Odd multipliers, one for each word, that pick its bit; the ones of the Parquet format's filter.
const SALTS: [u32; 8] = [
    0x47b6_137b,
    0x4497_4d91,
    0x8824_ad5b,
    0xa2b7_289d,
    0x7054_95c7,
    0x2df1_424b,
    0x9efc_4947,
    0x5c6b_fb31,
];

/// Hash of a key; part of the file format.
pub(crate) fn hash(key: Key) -> u64 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r] = key.0;
    let first = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let second = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
    let third = u64::from(u16::from_le_bytes([q, r]));
    [first, second, third].into_iter().fold(0x9e37_79b9_7f4a_7c15, |hash, word| mix(hash ^ word))
}

/// The finaliser of splitmix64.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Lines of a filter for so many keys.
pub(crate) fn line_count(keys: u64) -> u32 {
    let lines = keys.saturating_mul(BITS_PER_KEY).div_ceil(LINE_SIZE as u64 * 8);
    u32::try_from(lines).unwrap_or(u32::MAX)
}

/// The line of a key: the high half of the hash, scaled.
pub(crate) fn line_of(hash: u64, lines: u32) -> u32 {
    let scaled = (hash >> 32) * u64::from(lines);
    u32::try_from(scaled >> 32).unwrap_or(0)
}

/// The bit of each word: the low half of the hash, multiplied by the word's salt.
#[expect(clippy::cast_possible_truncation, reason = "the low half of the hash is meant")]
fn bits(hash: u64) -> impl Iterator<Item = u32> {
    let low = hash as u32;
    SALTS.into_iter().map(move |salt| 1_u32 << (low.wrapping_mul(salt) >> 27))
}

/// Notes a key in its line.
pub(crate) fn set(line: &mut [u8], hash: u64) {
    for (word, bit) in line.as_chunks_mut::<4>().0.iter_mut().zip(bits(hash)) {
        *word = (u32::from_le_bytes(*word) | bit).to_le_bytes();
    }
}

/// Whether a key may have been noted in its line.
pub(crate) fn may_contain(line: &[u8], hash: u64) -> bool {
    line.as_chunks::<4>()
        .0
        .iter()
        .zip(bits(hash))
        .all(|(word, bit)| u32::from_le_bytes(*word) & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Key {
        Key::from_fields(0, 1663, 5, 16384, 0, number)
    }

    #[test]
    fn finds_all_keys_and_few_others() {
        let count = 10_000;
        let lines = line_count(u64::from(count));
        let mut filter = vec![0; lines as usize * LINE_SIZE];
        let line = |hash| line_of(hash, lines) as usize * LINE_SIZE;
        for number in 0..count {
            let hash = hash(key(number));
            set(&mut filter[line(hash)..][..LINE_SIZE], hash);
        }
        let found = |number| {
            let hash = hash(key(number));
            may_contain(&filter[line(hash)..][..LINE_SIZE], hash)
        };
        assert!((0..count).all(found));
        let wrong = (count..11 * count).filter(|number| found(*number)).count();
        assert!(wrong < 1000, "{wrong} of {} absent keys", 10 * count);
    }

    #[test]
    fn hash_is_part_of_the_format() {
        assert_eq!(hash(key(7)), 4_987_216_259_641_906_115);
        assert_eq!(line_of(u64::MAX, 10), 9);
        assert_eq!(line_of(0, 10), 0);
        assert_eq!(line_count(0), 0);
        assert_eq!(line_count(1), 1);
    }
}
