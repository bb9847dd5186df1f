// y[j,:] = x[rows[j],:].

struct Args {
    // Where the rows lie.
    list: u32,
    rows: u32,
    chunks: u32,
}

@group(0) @binding(0) var<uniform> args: Args;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = place(group, groups);
    if (t >= args.rows) {
        return;
    }
    let row = list[args.list + t] * args.chunks;
    for (var c = lane; c < args.chunks; c += LANES) {
        y[t * args.chunks + c] = x[row + c];
    }
}
