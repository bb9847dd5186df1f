// y[t,i] = x[t,i] w[i] / sqrt(mean_i x[t,i]^2 + eps).
//
// A workgroup is a row; its lanes sum squares as those of a linear layer sum products.

struct Args {
    list: u32,
    rows: u32,
    // The row that is row 0.
    first: u32,
    cols: u32,
    chunks: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> args: Args;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> weight: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = place(group, groups);
    if (row >= args.rows) {
        return;
    }
    let t = args.first + row;
    var parts = vec4<f32>();
    for (var c = lane; c < args.chunks; c += LANES) {
        let v = x[t * args.chunks + c];
        parts = fma(v, v, parts);
    }
    sums[lane] = (parts.x + parts.y) + (parts.z + parts.w);
    fold(lane);
    let scale = inverseSqrt(sums[0] / f32(args.cols) + args.eps);
    for (var c = lane; c < args.chunks; c += LANES) {
        let at = t * args.chunks + c;
        y[at] = x[at] * scale * weight[c];
    }
}
