//! ggml's linear layers: its CPU backend, its buffer types, and graphs of `ggml_mul_mat` over many matrices.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{NonNull, null, null_mut};

use ggml_sys as g;
use graftwork_kernels::cpu::isa::Isa;
use graftwork_kernels::{Format, Tensor};

/// ggml's CPU backend with threads of its own.
pub struct Ggml {
    device: g::ggml_backend_dev_t,
    backend: g::ggml_backend_t,
    pool: g::ggml_threadpool_t,
}

impl Ggml {
    /// A backend with `threads` threads, the caller's among them.
    pub fn new(threads: usize) -> Self {
        let threads = i32::try_from(threads).expect("a number of threads");
        // SAFETY: plain calls of ggml; a null device or backend is refused before it is used.
        unsafe {
            g::ggml_log_set(Some(quiet), null_mut());
            let device = g::ggml_backend_dev_by_type(g::GGML_BACKEND_DEVICE_TYPE_CPU);
            assert!(!device.is_null(), "ggml has no CPU device");
            let backend = g::ggml_backend_dev_init(device, null());
            assert!(!backend.is_null(), "ggml's CPU backend does not start");
            let mut params = g::ggml_threadpool_params_default(threads);
            let pool = g::ggml_threadpool_new(&mut params);
            assert!(!pool.is_null(), "ggml's threads do not start");
            g::ggml_backend_cpu_set_n_threads(backend, threads);
            g::ggml_backend_cpu_set_threadpool(backend, pool);
            Self { device, backend, pool }
        }
    }

    /// Buffer types for weights: the plain one, then those that repack.
    pub fn buffer_types(&self) -> Vec<BufferType> {
        // SAFETY: the device is live; ggml documents the type of the function of this name, and its list ends with null.
        unsafe {
            let mut all = vec![BufferType(g::ggml_backend_cpu_buffer_type())];
            let registry = g::ggml_backend_dev_backend_reg(self.device);
            let name = c"ggml_backend_dev_get_extra_bufts".as_ptr();
            let address = g::ggml_backend_reg_get_proc_address(registry, name);
            let extra: g::ggml_backend_dev_get_extra_bufts_t = std::mem::transmute(address);
            let mut next = extra.map_or(null_mut(), |extra| extra(self.device));
            while !next.is_null() && !(*next).is_null() {
                all.push(BufferType(*next));
                next = next.add(1);
            }
            all
        }
    }

    /// What `isa` uses and this build of ggml lacks.
    pub fn lacks(isa: Isa) -> Vec<&'static str> {
        // SAFETY: these functions only give constants of the build.
        let has = unsafe {
            [
                ("avx2", g::ggml_cpu_has_avx2()),
                ("fma", g::ggml_cpu_has_fma()),
                ("f16c", g::ggml_cpu_has_f16c()),
                ("avx512", g::ggml_cpu_has_avx512()),
                ("avx512_vnni", g::ggml_cpu_has_avx512_vnni()),
            ]
        };
        let used = match isa.name() {
            "avx512vnni" | "avx512amx" => 5,
            "avx512" => 4,
            "avx2" => 3,
            _ => 0,
        };
        has[..used].iter().filter(|(_, has)| *has == 0).map(|(name, _)| *name).collect()
    }

    /// The instruction sets of this build of ggml, and whether it has llamafile's kernels.
    pub fn features() -> String {
        // SAFETY: these functions only give constants of the build.
        let has = unsafe {
            [
                ("avx2", g::ggml_cpu_has_avx2()),
                ("avx_vnni", g::ggml_cpu_has_avx_vnni()),
                ("avx512", g::ggml_cpu_has_avx512()),
                ("avx512_vbmi", g::ggml_cpu_has_avx512_vbmi()),
                ("avx512_vnni", g::ggml_cpu_has_avx512_vnni()),
                ("avx512_bf16", g::ggml_cpu_has_avx512_bf16()),
                ("amx_int8", g::ggml_cpu_has_amx_int8()),
                ("llamafile", g::ggml_cpu_has_llamafile()),
            ]
        };
        has.iter().filter(|(_, has)| *has != 0).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Ggml {
    fn drop(&mut self) {
        // SAFETY: both were made by `new`, and graphs borrow this value, so none is left.
        unsafe {
            g::ggml_backend_free(self.backend);
            g::ggml_threadpool_free(self.pool);
        }
    }
}

/// Where ggml keeps weights, and so how it lays them out.
#[derive(Clone, Copy)]
pub struct BufferType(g::ggml_backend_buffer_type_t);

impl BufferType {
    /// ggml's name, such as `CPU_REPACK`.
    pub fn name(self) -> String {
        // SAFETY: the type is one of ggml's statics, and so is its name.
        unsafe { CStr::from_ptr(g::ggml_backend_buft_name(self.0)) }.to_string_lossy().into_owned()
    }

    fn alloc(self, bytes: usize) -> Buffer {
        // SAFETY: the type is one of ggml's statics.
        Buffer(NonNull::new(unsafe { g::ggml_backend_buft_alloc_buffer(self.0, bytes) }).expect("memory"))
    }
}

struct Buffer(NonNull<g::ggml_backend_buffer>);

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: made by `alloc`, freed once.
        unsafe { g::ggml_backend_buffer_free(self.0.as_ptr()) }
    }
}

struct Context(NonNull<g::ggml_context>);

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_init`, freed once.
        unsafe { g::ggml_free(self.0.as_ptr()) }
    }
}

/// A graph that multiplies copies of one matrix, each at its own address, with the same activations.
pub struct Graph<'a> {
    ggml: &'a Ggml,
    graph: *mut g::ggml_cgraph,
    y: *mut g::ggml_tensor,
    // The tensors live in the context, their data in the buffers.
    _context: Context,
    _buffers: [Buffer; 2],
}

impl<'a> Graph<'a> {
    /// `copies` times `weight` in buffers of `place`, and activations `x`, whole rows; nothing if `place` cannot take it.
    pub fn new(ggml: &'a Ggml, place: BufferType, weight: &Tensor, copies: usize, x: &[f32]) -> Option<Self> {
        let (rows, cols) = (weight.rows() as i64, weight.cols() as i64);
        let nodes = 2 * copies + 8;
        // SAFETY: the context is made with room for all tensors and the graph; every tensor is given data of its size
        // (checked by ggml) in a buffer that this value keeps as long as the graph.
        unsafe {
            let mem_size = g::ggml_tensor_overhead() * nodes + g::ggml_graph_overhead_custom(nodes, false);
            let params = g::ggml_init_params { mem_size, mem_buffer: null_mut(), no_alloc: true };
            let context = Context(NonNull::new(g::ggml_init(params)).expect("memory"));
            let c = context.0.as_ptr();
            let kind = ggml_type(weight.format());
            let input = g::ggml_new_tensor_2d(c, g::GGML_TYPE_F32, cols, x.len() as i64 / cols);
            let weights: Vec<_> = (0..copies).map(|_| g::ggml_new_tensor_2d(c, kind, cols, rows)).collect();
            let outputs: Vec<_> = weights.iter().map(|&w| g::ggml_mul_mat(c, w, input)).collect();
            assert_eq!(g::ggml_nbytes(weights[0]), weight.bytes().len(), "both mean the same format");

            // As llama.cpp asks: would the operation be supported if the weight lay there?
            let (asked, probe) = (weights[0], place.alloc(0));
            (*asked).buffer = probe.0.as_ptr();
            let supported = g::ggml_backend_dev_supports_op(ggml.device, outputs[0]);
            (*asked).buffer = null_mut();
            if !supported {
                return None;
            }

            let step = padded(g::ggml_backend_buft_get_alloc_size(place.0, weights[0]));
            let held = place.alloc(step * copies);
            g::ggml_backend_buffer_set_usage(held.0.as_ptr(), g::GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
            let base = g::ggml_backend_buffer_get_base(held.0.as_ptr());
            for (i, &w) in weights.iter().enumerate() {
                g::ggml_backend_tensor_alloc(held.0.as_ptr(), w, base.byte_add(i * step));
                g::ggml_backend_tensor_set(w, weight.bytes().as_ptr().cast(), 0, weight.bytes().len());
            }

            // All outputs in one place, as ours are: an operation ends before the next begins.
            let first = padded(size_of_val(x));
            let plain = BufferType(g::ggml_backend_cpu_buffer_type());
            let values = plain.alloc(first + padded(g::ggml_nbytes(outputs[0])));
            let base = g::ggml_backend_buffer_get_base(values.0.as_ptr());
            g::ggml_backend_tensor_alloc(values.0.as_ptr(), input, base);
            g::ggml_backend_tensor_set(input, x.as_ptr().cast(), 0, size_of_val(x));
            let graph = g::ggml_new_graph_custom(c, nodes, false);
            for &y in &outputs {
                g::ggml_backend_tensor_alloc(values.0.as_ptr(), y, base.byte_add(first));
                g::ggml_build_forward_expand(graph, y);
            }
            Some(Self { ggml, graph, y: outputs[0], _context: context, _buffers: [held, values] })
        }
    }

    /// Multiplies with every copy.
    pub fn run(&mut self) {
        // SAFETY: the graph is complete, and all its tensors have data.
        let status = unsafe { g::ggml_backend_graph_compute(self.ggml.backend, self.graph) };
        assert_eq!(status, g::GGML_STATUS_SUCCESS, "ggml computes");
    }

    /// Wakes ggml's threads; [`Graph::pause`] lays them to sleep, so that they do not poll while others work.
    pub fn resume(&mut self) {
        // SAFETY: the pool is live.
        unsafe { g::ggml_threadpool_resume(self.ggml.pool) }
    }

    /// See [`Graph::resume`].
    pub fn pause(&mut self) {
        // SAFETY: the pool is live.
        unsafe { g::ggml_threadpool_pause(self.ggml.pool) }
    }

    /// The outputs of one copy, `[rows of x, rows of the matrix]`.
    pub fn output(&self) -> Vec<f32> {
        // SAFETY: the tensor is F32 and contiguous, and `out` has its size.
        unsafe {
            let mut out = vec![0.0f32; g::ggml_nbytes(self.y) / size_of::<f32>()];
            g::ggml_backend_tensor_get(self.y, out.as_mut_ptr().cast(), 0, size_of_val(&out[..]));
            out
        }
    }
}

/// Drops what ggml says: a line for every matrix that it repacks.
unsafe extern "C" fn quiet(_: g::ggml_log_level, _: *const c_char, _: *mut c_void) {}

/// Up to whole cache lines.
fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(64)
}

/// ggml's type of the same number; panics if this ggml has none.
fn ggml_type(format: Format) -> g::ggml_type {
    let id = format.ggml_id().filter(|&id| id < g::GGML_TYPE_COUNT as u32);
    id.unwrap_or_else(|| panic!("ggml has no {format}")) as g::ggml_type
}
