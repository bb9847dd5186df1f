// Q4_0: w = d (q - 8). A block of 32 weights is five words: `d` as f32, then 16 bytes; byte `i` holds the
// code of
// weight `i` in its low and of weight `i + 16` in its high nibble.

@group(0) @binding(3) var<storage, read> codes: array<u32>;

// The four weights from `4 at` on; exact, since a code times the half `d` has 15 bits.
fn weights(at: u32) -> vec4<f32> {
    let block = 5u * (at / 8u);
    let word = codes[block + 1u + at % 4u] >> (at & 4u);
    let q = vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u));
    return bitcast<f32>(codes[block]) * (q - 8.0);
}
