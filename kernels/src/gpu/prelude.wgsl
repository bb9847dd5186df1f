// The beginning of every shader, after the constants that its kernel sets (`cache.rs`):
// `TOKENS`, rows that a workgroup computes side by side, and `HALVES`, whether the KV cache holds halves.
//
// Bindings: 0 what the operation is told, 1 what it writes, 2 to 4 what it reads, 5 lists of whole numbers.

const LANES = 64u;

@group(0) @binding(5) var<storage, read> list: array<u32>;

// The sums of the lanes, token after token; `fold` leaves the sum of token `t` in `sums[t * LANES]`.
var<workgroup> sums: array<f32, LANES * TOKENS>;

// The index of a workgroup: more than a dimension may have are spread over two.
fn place(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.x + group.y * groups.x;
}

// sum_l sums[t,l] for every token, as a tree: lane `l` takes lane `l + 32`, then `l + 16`, and so on.
fn fold(lane: u32) {
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) {
            for (var t = 0u; t < TOKENS; t++) {
                sums[t * LANES + lane] += sums[t * LANES + lane + half];
            }
        }
    }
    workgroupBarrier();
}
