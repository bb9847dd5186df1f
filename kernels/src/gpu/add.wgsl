// y[t,i] += x[t,i].

struct Args {
    list: u32,
    // Vectors of four of all rows.
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
    let at = place(group, groups) * LANES + lane;
    if (at < args.chunks) {
        y[at] += x[at];
    }
}
