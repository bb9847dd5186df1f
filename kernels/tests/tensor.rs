//! Bytes and matrices: what is refused, and that the bytes' owner lives exactly as long as it is needed.

use std::sync::Arc;

use graftwork_kernels::tensor::Error;
use graftwork_kernels::{Bytes, Format, Tensor};

mod random;
use random::Random;

#[test]
fn slices_of_bytes_stay_in_bounds() {
    let bytes = Bytes::new((0..100u8).collect::<Vec<_>>());
    let middle = bytes.slice(10..60).unwrap();
    assert_eq!(middle[..], (10..60).collect::<Vec<u8>>());
    assert_eq!(middle.slice(5..7).unwrap()[..], [15, 16]);
    assert_eq!(middle.slice(50..50).unwrap().len(), 0);
    assert!(middle.slice(0..51).is_none(), "beyond the slice, though within its owner");
    assert!(middle.slice(51..51).is_none());
    assert!(middle.slice(usize::MAX - 1..usize::MAX).is_none());
    #[expect(clippy::reversed_empty_ranges)]
    let backwards = middle.slice(7..5);
    assert!(backwards.is_none());
    assert_eq!(format!("{middle:?}"), "Bytes(50)");
}

#[test]
fn the_owner_lives_as_long_as_the_last_slice() {
    struct Owner(Vec<u8>, #[expect(dead_code)] Arc<()>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let alive = Arc::new(());
    let bytes = Bytes::new(Owner(vec![7; 64], alive.clone()));
    let tensor = Tensor::new(Format::F32, 2, 4, bytes.slice(32..64).unwrap()).unwrap();
    let copy = tensor.clone();
    drop((bytes, tensor));
    assert_eq!(Arc::strong_count(&alive), 2);
    assert_eq!(copy.bytes()[..], [7; 32]);
    drop(copy);
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[test]
fn matrices_of_the_wrong_size_are_refused_by_name_and_number() {
    for &format in Format::ALL {
        let (cols, rows) = (2 * format.block_len(), 3);
        let expected = 6 * format.block_bytes();
        let make = |rows, cols, bytes| Tensor::new(format, rows, cols, Bytes::new(vec![0; bytes]));
        assert!(make(rows, cols, expected).is_ok());
        assert!(make(0, cols, 0).is_ok() && make(rows, 0, 0).is_ok());
        for found in [0, 1, expected - 1, expected + 1] {
            let error = make(rows, cols, found).unwrap_err();
            assert_eq!(error, Error::Length { format, rows, cols, expected, found });
            assert_eq!(
                error.to_string(),
                format!("{format} [3, {cols}] takes {expected} bytes, found {found}")
            );
        }
        if format.block_len() > 1 {
            let error = make(rows, cols + 1, expected).unwrap_err();
            let block = format.block_len();
            assert_eq!(error, Error::RaggedRow { format, cols: cols + 1, block });
            let message = error.to_string();
            assert!(
                message.contains(format.name()) && message.contains(&(cols + 1).to_string()),
                "{message}"
            );
        }
        let huge = usize::MAX / format.block_len() * format.block_len();
        for (rows, cols) in [(usize::MAX, huge), (usize::MAX, cols), (1 << 40, 1 << 40)] {
            assert_eq!(make(rows, cols, 16).unwrap_err(), Error::TooLarge { format, rows, cols });
        }
    }
}

#[test]
fn values_of_the_wrong_number_are_not_encoded() {
    let values = vec![1.0; 64];
    for (rows, cols) in [(1, 32), (3, 32), (0, 0), (usize::MAX, 2)] {
        assert!(matches!(Tensor::encode(Format::Q4_0, rows, cols, &values), Err(Error::Length { .. })));
    }
    assert_eq!(
        Tensor::encode(Format::Q4_0, 4, 16, &values).unwrap_err(),
        Error::RaggedRow { format: Format::Q4_0, cols: 16, block: 32 }
    );
}

#[test]
fn rows_decode_as_the_whole_does() {
    let mut random = Random(41);
    for &format in Format::ALL {
        let (rows, cols) = (5, 3 * format.block_len());
        let values: Vec<f32> = (0..rows * cols).map(|_| random.normal()).collect();
        let tensor = Tensor::encode(format, rows, cols, &values).unwrap();
        assert_eq!((tensor.format(), tensor.rows(), tensor.cols()), (format, rows, cols));
        assert_eq!(tensor.row_bytes(), 3 * format.block_bytes());
        let whole = tensor.decode().unwrap();
        let mut row = vec![0.0; cols];
        for (i, expected) in whole.chunks(cols).enumerate() {
            tensor.decode_row(i, &mut row);
            assert_eq!(row, expected, "row {i} of {format}");
        }
    }
}

/// Blocks have no alignment: bytes may begin anywhere in a file.
#[test]
fn matrices_may_begin_at_any_byte() {
    let mut random = Random(42);
    for &format in Format::ALL {
        let cols = format.block_len().max(32);
        let values: Vec<f32> = (0..2 * cols).map(|_| random.normal()).collect();
        let tensor = Tensor::encode(format, 2, cols, &values).unwrap();
        for shift in 0..4 {
            let mut file = vec![0xA5; shift];
            file.extend_from_slice(tensor.bytes());
            let end = file.len();
            let moved = Tensor::new(format, 2, cols, Bytes::new(file).slice(shift..end).unwrap()).unwrap();
            assert_eq!(moved.decode().unwrap(), tensor.decode().unwrap(), "{format} at byte {shift}");
        }
    }
}

/// What is kept of a copied file is its own bytes; what is mapped, borrowed or a whole vector stays where it is.
#[test]
fn a_compact_matrix_keeps_no_file_in_memory() {
    for &format in Format::ALL {
        let cols = format.block_len().max(32);
        let values: Vec<f32> = (0..3 * cols).map(|i| i as f32 / 3.0 - 7.0).collect();
        let tensor = Tensor::encode(format, 3, cols, &values).unwrap();
        let mut file = vec![9u8; 7];
        file.extend_from_slice(tensor.bytes());
        file.push(9);
        let place = 7..7 + tensor.bytes().len();
        let part = |bytes: Bytes| Tensor::new(format, 3, cols, bytes.slice(place.clone()).unwrap()).unwrap();
        let address = |tensor: &Tensor| tensor.bytes().as_ptr().addr();

        let copied = part(file.clone().into());
        let at = address(&copied);
        let compact = copied.clone().compact().unwrap();
        assert_ne!(address(&compact), at, "{format}");
        assert_eq!((compact.decode(), compact.rows(), compact.cols()), (copied.decode(), 3, cols));
        let at = address(&compact);
        assert_eq!(address(&compact.compact().unwrap()), at, "already on its own");

        let mapped = part(Bytes::new(file.clone()));
        let at = address(&mapped);
        assert_eq!(address(&mapped.compact().unwrap()), at, "of another owner");
    }
}
