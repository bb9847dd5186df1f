//! Operations are recorded here and submitted many at a time.
//!
//! What operations are told, and lists such as tokens, angles and pages, are gathered in one stretch of
//! memory that is sent along with the commands: a submission is one transfer and one compute pass.

use std::sync::Arc;

use wgpu::{BindGroup, Buffer, BufferUsages, ComputePipeline};

use super::cache::{ARGUMENTS, Kernel, Pipelines};
use super::device::GpuDevice;
use crate::tensor::Error;

/// Recorded operations that are submitted although the step goes on, so that the GPU is not idle until its
/// end.
const MOST: usize = 256;

/// Words of the stretch of memory for what operations are told, at least: 1 MiB.
const WORDS: usize = 1 << 18;

/// Most workgroups in one dimension.
const GROUPS: usize = 32768;

/// An operation to be recorded.
pub struct Call<'a> {
    pub kernel: Kernel,
    /// What it is told after its first argument, which is where its list lies. Floats are their bits.
    pub args: &'a [u32],
    /// Its list, in parts that follow each other.
    pub list: &'a [&'a [u32]],
    /// What it writes.
    pub y: &'a Buffer,
    /// What it reads, at bindings 2 to 4.
    pub reads: [Option<&'a Buffer>; 3],
    /// Workgroups by place, and by row.
    pub groups: (usize, usize),
}

/// An operation that was recorded.
struct Recorded {
    pipeline: ComputePipeline,
    bindings: BindGroup,
    offset: u32,
    groups: [u32; 3],
}

pub struct Recorder {
    device: Arc<GpuDevice>,
    pipelines: Pipelines,
    recorded: Vec<Recorded>,
    /// What the recorded operations are told.
    words: Vec<u32>,
    /// Where the lists among them lie, so that equal ones are sent once.
    lists: Vec<(usize, usize)>,
    memory: Buffer,
    /// Words between two places in it where an operation's arguments may begin.
    align: usize,
    /// Bound where a shader reads nothing.
    nothing: Buffer,
    /// What is read back.
    staging: Option<Buffer>,
    submissions: usize,
}

fn memory(device: &GpuDevice, words: usize) -> Result<Buffer, Error> {
    let usage = BufferUsages::STORAGE | BufferUsages::UNIFORM | BufferUsages::COPY_DST;
    device.buffer_for(usage, words.saturating_mul(size_of::<u32>()), false)
}

impl Recorder {
    pub fn new(device: &Arc<GpuDevice>) -> Result<Self, Error> {
        Ok(Self {
            pipelines: Pipelines::new(device),
            recorded: Vec::new(),
            words: Vec::new(),
            lists: Vec::new(),
            memory: memory(device, WORDS)?,
            align: device.device.limits().min_uniform_buffer_offset_alignment as usize / size_of::<u32>(),
            nothing: device.buffer(16)?,
            staging: None,
            submissions: 0,
            device: device.clone(),
        })
    }

    /// Bytes that it keeps for steps whose longest list has `words` words.
    pub fn bytes_for(words: usize) -> usize {
        words
            .saturating_add(WORDS)
            .saturating_mul(size_of::<u32>())
            .checked_next_multiple_of(16)
            .unwrap_or(usize::MAX)
    }

    /// Bytes that it keeps.
    pub fn bytes(&self) -> usize {
        self.memory.size() as usize
    }

    /// Makes room for lists of `words` words.
    pub fn reserve(&mut self, words: usize) -> Result<(), Error> {
        if Self::bytes_for(words) > self.bytes() {
            self.submit();
            self.memory = memory(&self.device, words.saturating_add(WORDS))?;
        }
        Ok(())
    }

    pub fn submissions(&self) -> usize {
        self.submissions
    }

    /// Records an operation. One without workgroups is none.
    pub fn call(&mut self, call: &Call<'_>) {
        let (places, rows) = call.groups;
        if places == 0 || rows == 0 {
            return;
        }
        let length: usize = call.list.iter().map(|part| part.len()).sum();
        let room = length + self.align + ARGUMENTS / size_of::<u32>();
        let held = self.memory.size() as usize / size_of::<u32>();
        if self.recorded.len() >= MOST || self.words.len() + room > held {
            self.submit();
        }
        if room > held {
            // `StepShape` does not bound the pages of a step's sequences: see docs/architecture.md.
            self.reserve(room).expect("memory for the list of an operation");
        }
        let list = self.list(call.list, length);
        self.words.resize(self.words.len().next_multiple_of(self.align), 0);
        let offset = (self.words.len() * size_of::<u32>()) as u32;
        let end = self.words.len() + ARGUMENTS / size_of::<u32>();
        self.words.push(list as u32);
        self.words.extend_from_slice(call.args);
        self.words.resize(end, 0);
        let pipeline = self.pipelines.get(&self.device, call.kernel);
        let bindings = self.bind(call);
        let depth = places.div_ceil(GROUPS);
        let groups = [places.min(GROUPS) as u32, depth as u32, u32::try_from(rows).expect("rows of a step")];
        self.recorded.push(Recorded { pipeline, bindings, offset, groups });
    }

    /// Where a list lies; it is written unless an equal one is there.
    fn list(&mut self, parts: &[&[u32]], length: usize) -> usize {
        let equal = |&&(at, len): &&(usize, usize)| {
            let mut rest = &self.words[at..at + len];
            len == length
                && parts.iter().all(|part| {
                    let (found, after) = rest.split_at(part.len());
                    rest = after;
                    found == *part
                })
        };
        if length == 0 {
            return 0;
        }
        if let Some(&(at, _)) = self.lists.iter().rev().find(equal) {
            return at;
        }
        let at = self.words.len();
        parts.iter().for_each(|part| self.words.extend_from_slice(part));
        self.lists.push((at, length));
        at
    }

    fn bind(&self, call: &Call<'_>) -> BindGroup {
        let whole = |buffer| wgpu::BufferBinding { buffer, offset: 0, size: None };
        let size = wgpu::BufferSize::new(ARGUMENTS as u64);
        let args = wgpu::BufferBinding { buffer: &self.memory, offset: 0, size };
        let reads = call.reads.map(|read| whole(read.unwrap_or(&self.nothing)));
        let bound = [args, whole(call.y)].into_iter().chain(reads).chain([whole(&self.memory)]);
        let entry = |(buffer, binding)| wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(buffer),
        };
        let entries: Vec<_> = bound.zip(0..).map(entry).collect();
        let layout = self.pipelines.layout();
        self.device.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        })
    }

    /// Submits what was recorded.
    pub fn submit(&mut self) {
        if self.recorded.is_empty() {
            return;
        }
        self.device.queue.write_buffer(&self.memory, 0, bytemuck::cast_slice(&self.words));
        self.encode(|encoder, recorder| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for Recorded { pipeline, bindings, offset, groups: [x, y, z] } in recorder.recorded.drain(..) {
                pass.set_pipeline(&pipeline);
                pass.set_bind_group(0, &bindings, &[offset]);
                pass.dispatch_workgroups(x, y, z);
            }
        });
        self.words.clear();
        self.lists.clear();
    }

    /// Submits what was recorded, then a copy.
    pub fn copy(&mut self, from: &Buffer, to: &Buffer, bytes: u64) {
        self.submit();
        self.encode(|encoder, _| encoder.copy_buffer_to_buffer(from, 0, to, 0, Some(bytes)));
    }

    fn encode(&mut self, commands: impl FnOnce(&mut wgpu::CommandEncoder, &mut Self)) {
        let mut encoder =
            self.device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        commands(&mut encoder, self);
        self.device.queue.submit([encoder.finish()]);
        self.submissions += 1;
    }

    /// The first `values` values of a buffer, once all that was recorded is done.
    pub fn read(&mut self, buffer: &Buffer, values: usize) -> Vec<f32> {
        let bytes = (values * size_of::<f32>()) as u64;
        let staging = match self.staging.take() {
            Some(staging) if staging.size() >= bytes => staging,
            _ => {
                let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
                self.device.buffer_for(usage, bytes as usize, false).expect("memory for values that are read")
            }
        };
        self.copy(buffer, &staging, bytes);
        staging.map_async(wgpu::MapMode::Read, ..bytes, |mapped| mapped.expect("the device was not lost"));
        self.device.device.poll(wgpu::PollType::wait_indefinitely()).expect("the device was not lost");
        let view = staging.get_mapped_range(..bytes).expect("it is mapped");
        let read = bytemuck::cast_slice(&view).to_vec();
        drop(view);
        staging.unmap();
        self.staging = Some(staging);
        read
    }
}
