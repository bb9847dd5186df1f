//! Packing a matrix of every format into strips on one thread, as loading a model does on several. Arguments are the names of formats
//! to do alone.

use graftwork_benches::{median_seconds, random_values};
use graftwork_kernels::backend::Device;
use graftwork_kernels::cpu::CpuDevice;
use graftwork_kernels::{Format, Tensor};

const SHAPE: (usize, usize) = (5632, 2048);

fn main() {
    let named: Vec<_> = std::env::args().filter_map(|name| Format::from_name(&name)).collect();
    let (rows, cols) = SHAPE;
    for &format in if named.is_empty() { Format::ALL } else { &named } {
        // Few different rows: encoding takes far longer than packing.
        let some = Tensor::encode(format, 32, cols, &random_values(32 * cols, 1)).expect("whole blocks");
        let weight =
            Tensor::new(format, rows, cols, some.bytes().repeat(rows / 32).into()).expect("whole rows");
        let bytes = CpuDevice::default().matrix_bytes(&CpuDevice::default().matrix(&weight).expect("memory"));
        assert_eq!(bytes, CpuDevice::default().packed_bytes(format, rows, cols));
        let seconds = median_seconds(9, || drop(CpuDevice::default().matrix(&weight)));
        println!("{:>5}: {:6.2} ms, {:5.2} GB/s", format.name(), seconds * 1e3, bytes as f64 / seconds / 1e9);
    }
}
