//! The arrays of NumPy's `.npy` files, as far as matrices of floats go.
//!
//! Six bytes of magic, two of version, the length of the header (two bytes in version 1, four in 2 and 3), and a Python literal such as
//! `{'descr': '<f4', 'fortran_order': False, 'shape': (128, 4), }`; then the values, row after row or, in Fortran's order, column
//! after column.

use graftwork_kernels::{Format, Tensor, tensor};

use super::Error;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Headers are short.
const MAX_HEADER: usize = 1 << 12;

/// The matrix in a file, in F32.
///
/// # Errors
/// What is malformed, and arrays that are not matrices of `<f2`, `<f4` or `<f8`.
pub fn matrix(bytes: &[u8]) -> Result<Tensor, Error> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        let found = format!("{:?}", bytes.escape_ascii().to_string().chars().take(24).collect::<String>());
        return Err(Error::Magic { expected: "the magic of .npy files", found });
    };
    let truncated = |what: &str, at: usize, expected: usize| Error::Truncated {
        what: what.to_owned(),
        at,
        expected: expected as u64,
        found: bytes.len().saturating_sub(at) as u64,
    };
    let wide = usize::from(rest.first().is_some_and(|&major| major > 1)) * 2;
    let length = rest.get(2..4 + wide).ok_or_else(|| truncated("the header's length", 8, 2 + wide))?;
    let length = length.iter().rev().fold(0usize, |length, &byte| length << 8 | usize::from(byte));
    let at = MAGIC.len() + 4 + wide;
    if length > MAX_HEADER {
        let what = "bytes of the header".to_owned();
        return Err(Error::TooMany { what, limit: MAX_HEADER as u64, found: length as u64 });
    }
    let header = bytes.get(at..at + length).ok_or_else(|| truncated("the header", at, length))?;
    let header = std::str::from_utf8(header).map_err(|_| Error::NotUtf8 { what: "the header".into(), at })?;
    let (size, fortran, [rows, cols]) = fields(header)?;
    let (at, count) = (at + length, rows.checked_mul(cols));
    let expected = count.and_then(|count| count.checked_mul(size)).unwrap_or(usize::MAX);
    let data = &bytes[at..];
    if data.len() != expected {
        return Err(truncated("the values", at, expected));
    }
    let failed = |source| Error::Matrix { tensor: "the array".to_owned(), source };
    let mut values = tensor::zeros(rows * cols).map_err(failed)?;
    match size {
        2 => Format::F16.decode(data, &mut values),
        4 => Format::F32.decode(data, &mut values),
        _ => {
            let wide = data.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32);
            values.iter_mut().zip(wide).for_each(|(value, wide)| *value = wide);
        }
    }
    if fortran {
        let mut turned = tensor::reserved(rows * cols).map_err(failed)?;
        turned.extend((0..rows * cols).map(|i| values[i % cols * rows + i / cols]));
        values = turned;
    }
    Tensor::encode(Format::F32, rows, cols, &values).map_err(failed)
}

/// Bytes of a value, whether columns lie together, and the shape.
fn fields(header: &str) -> Result<(usize, bool, [usize; 2]), Error> {
    let wrong = |key: &str, expected: &str, found: &str| Error::Value {
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: found.chars().take(80).collect(),
    };
    // What follows a key, up to the next.
    let field = |key: &str| {
        let (_, rest) =
            header.split_once(&format!("'{key}':")).ok_or_else(|| wrong(key, "a value", "none"))?;
        let end = rest.find(": ").and_then(|colon| rest[..colon].rfind(',')).unwrap_or(rest.len());
        Ok(rest[..end].trim().trim_end_matches(['}', ' ']).trim_end_matches(',').trim())
    };
    let size = match field("descr")? {
        "'<f2'" => 2,
        "'<f4'" => 4,
        "'<f8'" => 8,
        other => return Err(wrong("descr", "'<f2', '<f4' or '<f8'", other)),
    };
    let fortran = match field("fortran_order")? {
        "False" => false,
        "True" => true,
        other => return Err(wrong("fortran_order", "False or True", other)),
    };
    let text = field("shape")?;
    let expected = || wrong("shape", "(rows, columns)", text);
    let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(')')).ok_or_else(expected)?;
    let dims: Option<Vec<usize>> =
        inner.split(',').map(|dim| dim.trim().parse().ok().filter(|&dim| dim > 0)).collect();
    let dims = dims.and_then(|dims| <[usize; 2]>::try_from(dims).ok()).ok_or_else(expected)?;
    Ok((size, fortran, dims))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as NumPy writes it.
    fn npy(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let wide = if version > 1 { 4 } else { 2 };
        let header = format!("{header:<117}\n");
        let length = (header.len() as u32).to_le_bytes();
        [MAGIC, &[version, 0], &length[..wide], header.as_bytes(), data].concat()
    }

    #[test]
    fn matrices_of_each_type_and_order() {
        let values = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let turned = [1.0f32, 4.0, 2.0, 5.0, 3.0, 6.0];
        let f4 = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        let f8: Vec<u8> = values.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
        // The halves of 1 to 6.
        let f2: Vec<u8> = [0x3c00u16, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600].map(u16::to_le_bytes).concat();
        for (version, descr, fortran, data) in [
            (1, "<f4", "False", f4(&values)),
            (2, "<f8", "False", f8),
            (3, "<f2", "False", f2),
            (1, "<f4", "True", f4(&turned)),
        ] {
            let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': (2, 3), }}");
            let bytes = npy(version, &header, &data);
            let tensor = matrix(&bytes).expect("a matrix");
            assert_eq!((tensor.rows(), tensor.cols()), (2, 3));
            assert_eq!(tensor.decode().expect("memory"), values);
            for end in 0..bytes.len() {
                assert!(matrix(&bytes[..end]).is_err(), "cut at {end}");
            }
        }
    }

    #[test]
    fn other_arrays_are_refused_by_what_they_are() {
        let header = |descr: &str, order: &str, shape: &str| {
            format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}")
        };
        for (header, message) in [
            (header("'|V2'", "False", "(2, 2)"), "descr"),
            (header("'>f4'", "False", "(2, 2)"), "descr"),
            (header("'<f4'", "Maybe", "(2, 2)"), "fortran_order"),
            (header("'<f4'", "False", "(4,)"), "shape"),
            (header("'<f4'", "False", "(2, 0)"), "shape"),
            (header("'<f4'", "False", "(1, 2, 2)"), "shape"),
            (header("'<f4'", "False", "(99999999999, 99999999999)"), "the values"),
            ("{'descr': '<f4'}".to_owned(), "fortran_order"),
        ] {
            let error = matrix(&npy(1, &header, &[0; 16])).expect_err(&header).to_string();
            assert!(error.contains(message), "{header}: {error}");
        }
        assert!(matrix(b"NUMPY").is_err());
    }
}
