// F32: w = itself. What was not f32 was decoded when it was loaded.

@group(0) @binding(3) var<storage, read> values: array<vec4<f32>>;

// The four weights from `4 at` on.
fn weights(at: u32) -> vec4<f32> {
    return values[at];
}
