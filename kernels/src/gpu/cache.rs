//! Shaders and their pipelines: put together when first used, then kept.

use std::collections::HashMap;

use wgpu::{BindGroupLayout, BindingType, BufferBindingType, ComputePipeline};

use super::device::GpuDevice;
use crate::format::Format;

/// How weights lie in the memory of the GPU: one file of `format/` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codes {
    /// Singles: `F32`, and every format that has no shader yet, decoded.
    F32,
    /// Blocks of `Q4_0`.
    Q4_0,
}

impl Codes {
    /// How a format is kept.
    pub fn of(format: Format) -> Self {
        if format == Format::Q4_0 { Self::Q4_0 } else { Self::F32 }
    }

    /// Words of a row.
    pub fn row_words(self, cols: usize) -> usize {
        match self {
            Self::F32 => cols.div_ceil(4).saturating_mul(4),
            Self::Q4_0 => cols / 32 * 5,
        }
    }

    fn source(self) -> &'static str {
        match self {
            Self::F32 => include_str!("format/f32.wgsl"),
            Self::Q4_0 => include_str!("format/q4_0.wgsl"),
        }
    }
}

/// A shader: an operation, and what its text is put together from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// `embed.wgsl`
    Embed(Codes),
    /// `linear.wgsl`, for this number of rows side by side: 1 or [`MANY`].
    Linear(Codes, usize),
    /// `low_rank.wgsl`
    LowRank(Codes),
    /// `rms_norm.wgsl`
    RmsNorm,
    /// `rotate.wgsl`
    Rotate,
    /// `gate.wgsl`
    Gate,
    Add,
    /// `select.wgsl`
    Select,
    /// `store.wgsl`, in halves or singles.
    Store(bool),
    /// `attend.wgsl`, in halves or singles.
    Attend(bool),
}

/// Lanes of a workgroup, as in `prelude.wgsl`.
pub const LANES: usize = 64;

/// Rows that share the decoding of a weight.
pub const MANY: usize = 8;

impl Kernel {
    /// Constants, prelude, format and operation, one after the other.
    fn source(self) -> String {
        let (tokens, halves, codes, operation) = match self {
            Self::Embed(codes) => (1, false, Some(codes), include_str!("embed.wgsl")),
            Self::Linear(codes, tokens) => (tokens, false, Some(codes), include_str!("linear.wgsl")),
            Self::LowRank(codes) => (1, false, Some(codes), include_str!("low_rank.wgsl")),
            Self::RmsNorm => (1, false, None, include_str!("rms_norm.wgsl")),
            Self::Rotate => (1, false, None, include_str!("rotate.wgsl")),
            Self::Gate => (1, false, None, include_str!("gate.wgsl")),
            Self::Add => (1, false, None, include_str!("add.wgsl")),
            Self::Select => (1, false, None, include_str!("select.wgsl")),
            Self::Store(halves) => (1, halves, None, include_str!("store.wgsl")),
            Self::Attend(halves) => (1, halves, None, include_str!("attend.wgsl")),
        };
        let constants = format!("const TOKENS = {tokens}u;\nconst HALVES = {halves};\n");
        let format = codes.map_or("", Codes::source);
        [&constants, include_str!("prelude.wgsl"), format, operation].concat()
    }
}

/// Binding 0 of every shader, in bytes: what the operation is told.
pub const ARGUMENTS: usize = 64;

/// The pipelines in use, all with one layout of bindings.
pub struct Pipelines {
    layout: BindGroupLayout,
    pipelines: HashMap<Kernel, ComputePipeline>,
}

impl Pipelines {
    pub fn new(device: &GpuDevice) -> Self {
        let storage = |read_only| BufferBindingType::Storage { read_only };
        let types = [BufferBindingType::Uniform, storage(false)].into_iter().chain([storage(true); 4]);
        let entries: Vec<_> = types
            .zip(0..)
            .map(|(ty, binding)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: BindingType::Buffer { ty, has_dynamic_offset: binding == 0, min_binding_size: None },
                count: None,
            })
            .collect();
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
        Self { layout: device.device.create_bind_group_layout(&descriptor), pipelines: HashMap::new() }
    }

    /// The layout of every pipeline's bindings.
    pub fn layout(&self) -> &BindGroupLayout {
        &self.layout
    }

    /// The pipeline of a shader.
    pub fn get(&mut self, device: &GpuDevice, kernel: Kernel) -> ComputePipeline {
        let Self { layout, pipelines } = self;
        pipelines.entry(kernel).or_insert_with(|| compile(device, layout, kernel)).clone()
    }
}

fn compile(device: &GpuDevice, layout: &BindGroupLayout, kernel: Kernel) -> ComputePipeline {
    let device = &device.device;
    let label = format!("{kernel:?}");
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(&label),
        source: wgpu::ShaderSource::Wgsl(kernel.source().into()),
    });
    let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(layout)],
        immediate_size: 0,
    });
    // Workgroup memory is written before it is read.
    let compilation_options =
        wgpu::PipelineCompilationOptions { zero_initialize_workgroup_memory: false, ..Default::default() };
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(&label),
        layout: Some(&layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options,
        cache: None,
    })
}
