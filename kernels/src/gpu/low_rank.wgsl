// y[t,o] += sum_r B[o,r] low[t,r] + scale bias[o], with low = scale A x of the rows of a graft.
//
// A lane is an output and sums the rank in order, four sums side by side. A graft of a bias alone has rank 0.

struct Args {
    list: u32,
    rows: u32,
    // The row of `y` that is row 0.
    first: u32,
    outputs: u32,
    stride: u32,
    rank: u32,
    // Where `low` begins.
    start: u32,
    scale: f32,
    biased: u32,
}

@group(0) @binding(0) var<uniform> args: Args;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> low: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let o = place(group, groups) * LANES + lane;
    let t = group.z;
    if (o >= args.outputs) {
        return;
    }
    let chunks = (args.rank + 3u) / 4u;
    let at = args.start + t * args.rank;
    var parts = vec4<f32>();
    for (var c = 0u; c < chunks; c++) {
        var a = vec4<f32>();
        for (var r = 0u; r < min(4u, args.rank - 4u * c); r++) {
            a[r] = low[at + 4u * c + r];
        }
        parts = fma(weights(o * chunks + c), a, parts);
    }
    var sum = (parts.x + parts.y) + (parts.z + parts.w);
    if (args.biased != 0u) {
        sum = fma(args.scale, bias[o], sum);
    }
    y[(args.first + t) * args.stride + o] += sum;
}
