//! The printable alphabet of byte-level vocabularies (GPT-2): one character for each of the 256 bytes.
//!
//! Printable Latin-1 bytes stand for themselves; the other 68 are numbered from U+0100 upwards, so that a space is
//! `Ġ` and a line feed `Ċ`.

/// Whether a byte is its own character in the alphabet.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// `REMAPPED[c - 0x100]` is the byte that the character `c` stands for.
const REMAPPED: [u8; 68] = {
    let mut table = [0; 68];
    let (mut byte, mut next) = (0u8, 0);
    loop {
        if !is_printable(byte) {
            table[next] = byte;
            next += 1;
        }
        if byte == 255 {
            break table;
        }
        byte += 1;
    }
};

/// The byte that a character of the alphabet stands for, none for any other character.
pub(crate) fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|&byte| is_printable(byte)),
        code => REMAPPED.get(usize::try_from(code - 0x100).ok()?).copied(),
    }
}

/// The bytes of a token written in the alphabet; a token with any other character stands for its own text, which is
/// how added tokens with spaces are stored.
pub(crate) fn decode(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte of a fallback token `<0xNN>`.
pub(crate) fn fallback(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(hex, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_byte_has_one_character() {
        let seen: HashSet<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(seen.len(), 256);
        assert_eq!(
            (byte_of('Ġ'), byte_of('Ċ'), byte_of(' '), byte_of('é')),
            (Some(32), Some(10), None, Some(0xe9))
        );
        assert_eq!(decode("Ġhi"), b" hi");
        assert_eq!(decode("a b"), b"a b");
    }

    #[test]
    fn fallback_tokens_are_two_hex_digits() {
        assert_eq!(fallback("<0x0A>"), Some(10));
        for wrong in ["<0xA>", "<0x+1>", "<0x0A", "0x0A>", "<0x0G>"] {
            assert_eq!(fallback(wrong), None, "{wrong}");
        }
    }
}
