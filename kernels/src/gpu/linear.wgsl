// y[t,o] = scale sum_i W[o,i] x[t,i] + bias[o], added to y[t,o] if `keep`.
//
// Lane `l` of the 64 sums columns `4 c..4 c + 4` for `c = l, l + 64, ...` in order, in four sums that it
// adds in
// pairs; then `fold`. That order is the same for every row, wherever it lies and with however many others.

struct Args {
    list: u32,
    rows: u32,
    // The row of `x` that is row 0.
    first: u32,
    outputs: u32,
    // Vectors of four in a row of `x` and of `W`.
    chunks: u32,
    stride: u32,
    // Where `y` begins.
    start: u32,
    scale: f32,
    biased: u32,
    keep: u32,
}

@group(0) @binding(0) var<uniform> args: Args;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let o = place(group, groups);
    if (o >= args.outputs) {
        return;
    }
    let first = group.z * TOKENS;
    var parts: array<vec4<f32>, TOKENS>;
    for (var c = lane; c < args.chunks; c += LANES) {
        let w = weights(o * args.chunks + c);
        for (var t = 0u; t < TOKENS; t++) {
            // Rows beyond the last compute what nobody writes.
            let row = args.first + min(first + t, args.rows - 1u);
            parts[t] = fma(w, x[row * args.chunks + c], parts[t]);
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        sums[t * LANES + lane] = (parts[t].x + parts[t].y) + (parts[t].z + parts[t].w);
    }
    fold(lane);
    let t = first + lane;
    if (lane < TOKENS && t < args.rows) {
        var sum = args.scale * sums[lane * LANES];
        if (args.biased != 0u) {
            sum += bias[o];
        }
        let at = args.start + t * args.stride + o;
        if (args.keep != 0u) {
            sum = y[at] + sum;
        }
        y[at] = sum;
    }
}
