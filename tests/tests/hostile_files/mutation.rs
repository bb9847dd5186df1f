//! Seeded random damage.

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Values in [-1, 1).
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}

/// Numbers at the edges of what a format counts.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    31,
    32,
    33,
    127,
    128,
    255,
    256,
    65_535,
    65_536,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 40,
    1 << 62,
    0x7fff_ffff_ffff_ffff,
    1 << 63,
    0xffff_ffff_ffff_ffe0,
    0xffff_ffff_ffff_ffff,
];

/// Pieces of JSON that a header or configuration does not expect where it finds them.
const PIECES: &[&str] = &[
    "null",
    "true",
    "-1",
    "1e999",
    "0.5",
    "18446744073709551615",
    "18446744073709551616",
    "\"\"",
    "[]",
    "{}",
    "[[[[",
    "{\"a\":",
    "\\u0000",
    "\\ud800",
    "\"../x\"",
    "\"F64\"",
    "\"r\":0,",
    ",",
    ":",
    "}",
    "]",
    "\u{feff}",
    "(((a{99}){99}){99})",
];

/// One to four random changes, most of them within the first `header` bytes, where the structure is.
pub fn mutate(random: &mut Random, bytes: &mut Vec<u8>, header: usize) {
    for _ in 0..=random.below(4) {
        let reach = if random.below(4) > 0 { header.min(bytes.len()) } else { bytes.len() };
        let at = random.below(reach);
        let end = (at + 1 + random.below(24)).min(bytes.len());
        match random.below(9) {
            _ if bytes.is_empty() => return,
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => overwrite(bytes, at, &random.pick(EDGES).to_le_bytes()[..random.pick(&[1, 2, 4, 8])]),
            3 => _ = bytes.drain(at..end),
            4 => _ = bytes.splice(at..at, (0..random.below(24)).map(|i| i as u8).collect::<Vec<_>>()),
            5 => _ = bytes.splice(at..at, bytes[at..end].to_vec()),
            6 => bytes.truncate(at),
            7 => _ = bytes.splice(at..end, random.pick(PIECES).bytes()),
            _ => replace_number(random, bytes, at),
        }
    }
}

fn overwrite(bytes: &mut [u8], at: usize, new: &[u8]) {
    let len = new.len().min(bytes.len() - at);
    bytes[at..at + len].copy_from_slice(&new[..len]);
}

/// Puts another number in the place of the decimal number at or after `at`.
fn replace_number(random: &mut Random, bytes: &mut Vec<u8>, at: usize) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    if let Some(start) = bytes[at..].iter().position(is_digit).map(|offset| at + offset) {
        let len = bytes[start..].iter().take_while(|byte| is_digit(byte)).count();
        bytes.splice(start..start + len, random.pick(EDGES).to_string().into_bytes());
    }
}
