// y[t,h,:] = sum_p softmax_p(scale q[t,h,:] k[p,g,:]) v[p,g,:] with g = h kv_heads / heads.
//
// A workgroup is a head of a row; it folds the pages in order (Milakov and Gimelshein, 2018): with the
// scores `s`
// of a page, m' = max(m, max s), c = exp(m - m'), l = l c + sum exp(s - m'), o = o c + sum exp(s - m') v.

const PAGE = 32u;
// Outputs of a lane: heads of up to 256.
const WIDE = 4u;

struct Args {
    // Where `row, positions, its pages` of every row lie; then the pages.
    list: u32,
    heads: u32,
    kv_heads: u32,
    dim: u32,
    // Pairs of a head in the cache.
    pairs: u32,
    stride: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> args: Args;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> q: array<f32>;
@group(0) @binding(3) var<storage, read> cache: array<u32>;

var<workgroup> scores: array<f32, PAGE>;

fn pair(at: u32) -> vec2<f32> {
    if (HALVES) {
        return unpack2x16float(cache[at]);
    }
    return bitcast<vec2<f32>>(vec2<u32>(cache[2u * at], cache[2u * at + 1u]));
}

// q[t,h,:] k[p,g,:], dimension after dimension.
fn score(query: u32, key: u32) -> f32 {
    var sum = 0.0;
    for (var d = 0u; d < args.dim; d += 2u) {
        let k = pair(key + d / 2u);
        sum = fma(q[query + d], k.x, sum);
        if (d + 1u < args.dim) {
            sum = fma(q[query + d + 1u], k.y, sum);
        }
    }
    return args.scale * sum;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let h = place(group, groups);
    if (h >= args.heads) {
        return;
    }
    let entry = args.list + 3u * group.z;
    let positions = list[entry + 1u];
    let pages = args.list + list[entry + 2u];
    let query = list[entry] * args.stride + h * args.dim;
    let kv = h * args.kv_heads / args.heads;
    var most = -3.0e38;
    var weight = 0.0;
    var out: array<f32, WIDE>;
    for (var first = 0u; first < positions; first += PAGE) {
        let count = min(PAGE, positions - first);
        // Keys of position p of the page begin at pair `base + p step`, its values `args.pairs` further on.
        let step = 2u * args.kv_heads * args.pairs;
        let base = list[pages + first / PAGE] * PAGE * step + 2u * kv * args.pairs;
        var s = 0.0;
        if (lane < count) {
            s = score(query, base + lane * step);
            scores[lane] = s;
        }
        workgroupBarrier();
        let before = most;
        for (var p = 0u; p < count; p++) {
            most = max(most, scores[p]);
        }
        workgroupBarrier();
        if (lane < count) {
            scores[lane] = exp(s - most);
        }
        workgroupBarrier();
        let kept = exp(before - most);
        weight *= kept;
        for (var p = 0u; p < count; p++) {
            weight += scores[p];
        }
        for (var j = 0u; j < WIDE; j++) {
            let d = lane + j * LANES;
            if (d < args.dim) {
                out[j] *= kept;
                for (var p = 0u; p < count; p++) {
                    let v = pair(base + p * step + args.pairs + d / 2u);
                    out[j] = fma(scores[p], select(v.x, v.y, (d & 1u) != 0u), out[j]);
                }
            }
        }
        workgroupBarrier();
    }
    for (var j = 0u; j < WIDE; j++) {
        let d = lane + j * LANES;
        if (d < args.dim) {
            y[query + d] = out[j] / weight;
        }
    }
}
