//! `tokenizer.model`, the vocabulary of SentencePiece: a message in the encoding of Protocol Buffers.
//!
//! Of it only the pieces are read: field 1 of the message, of which field 1 is the text, 2 the score and 3 the type, numbered as
//! `tokenizer.ggml.token_type` numbers them.

use super::{Error, TokenType};

/// A piece.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: TokenType,
}

/// The pieces, by id.
pub(super) fn pieces(bytes: &[u8]) -> Result<Vec<Piece>, Error> {
    let wrong = || Error::Key {
        key: "tokenizer.model",
        expected: "a message with the pieces of a vocabulary".into(),
        found: "something else".into(),
    };
    let mut pieces = Vec::new();
    let mut message = Message(bytes);
    while !message.0.is_empty() {
        let (number, field) = message.field().ok_or_else(wrong)?;
        if let (1, Field::Bytes(bytes)) = (number, field) {
            pieces.push(piece(bytes).ok_or_else(wrong)?);
        }
    }
    if pieces.is_empty() { Err(wrong()) } else { Ok(pieces) }
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: TokenType::Normal };
    let mut message = Message(bytes);
    while !message.0.is_empty() {
        match message.field()? {
            (1, Field::Bytes(text)) => piece.text = str::from_utf8(text).ok()?.to_owned(),
            (2, Field::Four(score)) => piece.score = f32::from_le_bytes(score),
            (3, Field::Number(kind)) => piece.kind = TokenType::from_number(kind as i64),
            _ => {}
        }
    }
    Some(piece)
}

/// What is left of a message.
struct Message<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Four([u8; 4]),
    Eight,
}

impl<'a> Message<'a> {
    /// The number of the next field, and what it holds.
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.number()?;
        let field = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => self.take(8).map(|_| Field::Eight)?,
            2 => {
                let len = usize::try_from(self.number()?).ok()?;
                Field::Bytes(self.take(len)?)
            }
            5 => Field::Four(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((key >> 3, field))
    }

    /// Seven bits a byte, the lowest first; the last byte has no eighth bit.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let &byte = self.take(1)?.first()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_and_other_fields_left_out() {
        // Two pieces, the second of type 3, and between them field 2 with three bytes.
        let message = b"\x0a\x0a\x0a\x03abc\x15\x00\x00\x80\xbf\x12\x03xyz\x0a\x05\x0a\x01\xc3\x18\x03";
        assert!(pieces(message).is_err(), "half of a letter");
        let message = b"\x0a\x0a\x0a\x03abc\x15\x00\x00\x80\xbf\x12\x03xyz\x0a\x05\x0a\x01d\x18\x03";
        let piece = |text: &str, score, kind| Piece { text: text.into(), score, kind };
        let expected = [piece("abc", -1.0, TokenType::Normal), piece("d", 0.0, TokenType::Control)];
        assert_eq!(pieces(message).unwrap(), expected);
        for cut in 1..message.len() {
            // Ends between fields are no errors.
            let _ = pieces(&message[..cut]);
        }
        assert!(pieces(b"").is_err() && pieces(b"\x0b").is_err() && pieces(&[0xff; 20]).is_err());
    }
}
