// cache[place[t],h,0,:] = k[t,h,:] and cache[place[t],h,1,:] = v[t,h,:].
//
// A head takes whole vectors of 16; a lane stores a pair of values: two words, or one with both as halves.

struct Args {
    // Where `row, place` of every row lie.
    list: u32,
    heads: u32,
    dim: u32,
    // Pairs of a head in the cache.
    pairs: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> args: Args;
@group(0) @binding(1) var<storage, read_write> cache: array<u32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(4) var<storage, read> v: array<f32>;

fn put(at: u32, pair: vec2<f32>) {
    if (HALVES) {
        cache[at] = pack2x16float(pair);
    } else {
        cache[2u * at] = bitcast<u32>(pair.x);
        cache[2u * at + 1u] = bitcast<u32>(pair.y);
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = place(group, groups) * LANES + lane;
    if (index >= args.heads * args.pairs) {
        return;
    }
    let row = list[args.list + 2u * group.z];
    let head = list[args.list + 2u * group.z + 1u] * args.heads + index / args.pairs;
    let pair = index % args.pairs;
    let d = 2u * pair;
    let at = row * args.stride + index / args.pairs * args.dim + d;
    var keys = vec2<f32>();
    var values = vec2<f32>();
    if (d < args.dim) {
        keys.x = k[at];
        values.x = v[at];
    }
    if (d + 1u < args.dim) {
        keys.y = k[at + 1u];
        values.y = v[at + 1u];
    }
    put(2u * head * args.pairs + pair, keys);
    put((2u * head + 1u) * args.pairs + pair, values);
}
