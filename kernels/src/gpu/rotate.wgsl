// Each pair (a, b) of each head becomes (a cos - b sin, a sin + b cos).

struct Args {
    // Where the cosines [rows, half] lie; the sines follow.
    list: u32,
    rows: u32,
    heads: u32,
    dim: u32,
    half: u32,
    stride: u32,
    interleaved: u32,
}

@group(0) @binding(0) var<uniform> args: Args;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pair = place(group, groups) * LANES + lane;
    let t = group.z;
    if (pair >= args.heads * args.half) {
        return;
    }
    let i = pair % args.half;
    let head = t * args.stride + pair / args.half * args.dim;
    let first = head + select(i, 2u * i, args.interleaved != 0u);
    let second = first + select(args.half, 1u, args.interleaved != 0u);
    let angle = args.list + t * args.half + i;
    let cos = bitcast<f32>(list[angle]);
    let sin = bitcast<f32>(list[angle + args.rows * args.half]);
    let a = x[first];
    let b = x[second];
    x[first] = fma(a, cos, -(b * sin));
    x[second] = fma(a, sin, b * cos);
}
