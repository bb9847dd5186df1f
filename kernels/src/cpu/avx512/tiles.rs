//! Many rows of activations on the matrix unit of Intel's server CPUs (AMX): sixteen of them times sixteen rows of weights at a time.
//!
//! A group's 16 products are summed by `tdpbf16ps`. A bfloat16 holds every 8-bit code, and the sums are integers below 2^24, so they are
//! exact, and those of the definition, however the unit adds; and they come as f32, where `tdpbssd` would give integers to convert. The unit takes as
//! long for any number of columns, so a tile has both groups of a block, and zeros where a product is not of the group that is summed.
//!
//! The unit's instructions keep one of the two ports busy that vectors need, and what they give must go through memory. So a product is begun two
//! blocks before it is scaled, and stored one block before.

use std::arch::asm;
use std::arch::x86_64::*;
use std::array::from_fn;
use std::sync::OnceLock;

use bytemuck::Zeroable;

use super::{Avx512Vnni, Wide};
use crate::cpu::isa::{BLOCK, LANES, Simd};
use crate::cpu::linear::{Join, Lane, Multiply};
use crate::cpu::strip::{ActivationTile, CodeRange, Int, IntPanel, LINE, TILES};
use crate::format::Block;

/// Blocks of 32 columns that are unpacked at a time.
const BLOCKS: usize = 8;

/// Proof that this process may use the CPU's matrix unit.
#[derive(Clone, Copy, Debug)]
pub struct Tiles(Avx512Vnni);

impl Avx512Vnni {
    /// The token of a CPU that has AMX for bfloat16, too, where the system lets this process use it: which is asked for once, for all
    /// threads.
    pub fn with_tiles() -> Option<Self> {
        static ALLOWED: OnceLock<bool> = OnceLock::new();
        let token = Self::new()?;
        ALLOWED.get_or_init(|| has_amx() && allowed()).then_some(Self { tiles: true, ..token })
    }
}

/// Whether the CPU has tiles and their products of bfloat16.
fn has_amx() -> bool {
    const BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BF16_AND_TILE == BF16_AND_TILE
}

/// Whether Linux saves tiles between threads; it wants to be asked first, since what it keeps of a thread grows by 8 KiB.
#[cfg(target_os = "linux")]
fn allowed() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: a request with two numbers, which reads and writes none of this process' memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Elsewhere nobody has tried it.
#[cfg(not(target_os = "linux"))]
fn allowed() -> bool {
    false
}

impl<const VNNI: bool> Wide<VNNI> {
    /// The matrix unit, where this token stands for one.
    #[inline(always)]
    pub(super) fn unit(self) -> Option<Tiles> {
        (VNNI && self.tiles).then_some(Tiles(Wide { second: self.second, tiles: true }))
    }
}

impl Tiles {
    /// Multiplies the first of the rows, whole tiles of them; gives how many those are.
    #[inline(always)]
    pub fn many<P: IntPanel>(self, m: &mut Multiply<'_, Int<P>>) -> usize {
        let rows = m.rows.len() / LANES * LANES;
        // Rows from the middle of a tile on do not lie side by side, and sums that wait in the outputs must not be added to what is there.
        let side_by_side = m.rows.start.is_multiple_of(LANES) && !m.x.tiles.is_empty();
        if rows == 0 || !side_by_side || !matches!(m.out.join, Join::Set) {
            return 0;
        }
        let s = self.0;
        let table = Table::of::<P>();
        let mut weights = Weights { blocks: [Columns::zeroed(); BLOCKS] };
        let mut products = [Products::zeroed(); 2];
        let unit = Unit::start();
        let (at_once, strips) = (BLOCKS * BLOCK / P::Block::LEN, m.panels.len() / m.length);
        for top in (0..rows).step_by(TILES * LANES) {
            let tiles = TILES.min((rows - top) / LANES);
            // All strips meet these columns of the rows before the next, for they stay in the first cache.
            for first in (0..m.used).step_by(at_once) {
                let panels = first..m.used.min(first + at_once);
                let (start, blocks) = (first * P::Block::LEN / BLOCK, panels.len() * P::Block::LEN / BLOCK);
                let inputs: [&[ActivationTile]; TILES] = from_fn(|tile| {
                    let row = (m.rows.start + top) / LANES + tile.min(tiles - 1);
                    &m.x.tiles[row * (m.x.cols / BLOCK) + start..][..blocks]
                });
                for strip in 0..strips {
                    let lanes = &mut m.out.lanes[strip * m.out.stride + top..][..tiles * LANES];
                    if first == 0 {
                        lanes.fill([0.0; LANES]);
                    }
                    // So many panels ahead are those unpacked next: of the next strip, or of the first's next columns.
                    let next =
                        if strip + 1 < strips { m.length } else { at_once.wrapping_sub(strip * m.length) };
                    weights.fill(s, &table, &m.panels[strip * m.length..][panels.clone()], next);
                    for input in &inputs[..tiles] {
                        ask_behind(s, input, (strip, strips));
                    }
                    weights.meet::<P>(s, &unit, &inputs[..tiles], &mut products, lanes);
                }
            }
        }
        rows
    }
}

/// Asks for the `i`-th of `n` shares of as many bytes as lie behind `x`: its next columns, or another row's first.
#[inline(always)]
fn ask_behind(s: Avx512Vnni, x: &[ActivationTile], (i, n): (usize, usize)) {
    let (bytes, share) = (size_of_val(x), size_of_val(x).div_ceil(n).next_multiple_of(LINE));
    for line in (i * share..bytes.min((i + 1) * share)).step_by(LINE) {
        s.prefetch(&x[0], bytes + line);
    }
}

/// What the unit's eight registers are on a thread.
#[repr(C, align(64))]
struct Palette {
    id: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}
const _: () = assert!(size_of::<Palette>() == 64);

/// The unit, set up on this thread. When it is dropped it is again what it was: other libraries on a thread rely on what they set up, and where
/// nothing was, the system has less to save.
struct Unit {
    before: Palette,
}

impl Unit {
    /// Sets up eight whole tiles.
    #[inline(always)]
    fn start() -> Self {
        let none = || Palette { id: 0, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let (mut before, mut tiles) = (none(), none());
        tiles.id = 1;
        tiles.row_bytes[..8].fill(LINE as u16);
        tiles.rows[..8].fill(16);
        // SAFETY: writes and reads 64 bytes, which a palette has. Whoever has `Tiles` may use the unit.
        unsafe {
            asm!(
                "sttilecfg [{before}]",
                "ldtilecfg [{tiles}]",
                before = in(reg) &mut before,
                tiles = in(reg) &tiles,
                options(nostack, preserves_flags)
            )
        };
        Self { before }
    }

    /// Begins the sums of both groups of a block with an even or odd number.
    #[inline(always)]
    fn multiply(&self, odd: bool, x: &ActivationTile, w: &Columns) {
        macro_rules! multiply {
            ($x:literal, $first:literal, $second:literal) => {
                // SAFETY: the unit is set up; reads 16 rows of 64 bytes from each of three places, which `x.q` and `w.codes` have there.
                unsafe {
                    asm!(
                        concat!("tileloadd ", $x, ", [{x} + {row}]"),
                        concat!("tileloadd tmm2, [{w} + {row}]"),
                        concat!("tilezero ", $first),
                        concat!("tdpbf16ps ", $first, ", ", $x, ", tmm2"),
                        concat!("tileloadd tmm3, [{w} + {row} + 8 * 64]"),
                        concat!("tilezero ", $second),
                        concat!("tdpbf16ps ", $second, ", ", $x, ", tmm3"),
                        x = in(reg) &x.q,
                        w = in(reg) &w.codes,
                        row = in(reg) LINE,
                        options(nostack, preserves_flags, readonly)
                    )
                }
            };
        }
        // What is begun takes other tiles than what waits to be stored.
        if odd { multiply!("tmm1", "tmm6", "tmm7") } else { multiply!("tmm0", "tmm4", "tmm5") }
    }

    /// Stores the sums of a block with an even or odd number.
    #[inline(always)]
    fn store(&self, odd: bool, out: &mut Products) {
        macro_rules! store {
            ($first:literal, $second:literal) => {
                // SAFETY: the unit is set up; writes 16 rows of 64 bytes to two places, which `out` has.
                unsafe {
                    asm!(
                        concat!("tilestored [{out} + {row}], ", $first),
                        concat!("tilestored [{out} + {row} + 16 * 64], ", $second),
                        out = in(reg) out,
                        row = in(reg) LINE,
                        options(nostack, preserves_flags)
                    )
                }
            };
        }
        if odd { store!("tmm6", "tmm7") } else { store!("tmm4", "tmm5") }
    }
}

impl Drop for Unit {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: reads 64 bytes that the unit wrote; of its state without tiles, the same as releasing them.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &self.before, options(nostack, preserves_flags, readonly)) };
    }
}

/// `n` of both groups of a block, for sixteen rows of activations.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
struct Products([[Lane; LANES]; 2]);

impl Products {
    /// Adds them to sums that are scaled later.
    #[inline(always)]
    fn add_part(&self, s: Avx512Vnni, x: &ActivationTile, parts: &mut [__m512; LANES]) {
        for g in 0..2 {
            for t in 0..LANES {
                parts[t] = s.fma(s.splat(x.d[g][t]), s.load(&self.0[g][t]), parts[t]);
            }
        }
    }
}

/// Blocks of activations and weights whose products are on their way: two are begun, of which one is stored.
struct Pipeline<'a, I> {
    unit: &'a Unit,
    rest: I,
    products: &'a mut [Products; 2],
    /// Whether the next to be begun has an odd number.
    odd: bool,
}

impl<'a, I: Iterator<Item = (&'a ActivationTile, &'a Columns)>> Pipeline<'a, I> {
    #[inline(always)]
    fn start(unit: &'a Unit, all: I, products: &'a mut [Products; 2]) -> Self {
        let mut pipeline = Self { unit, rest: all, products, odd: false };
        pipeline.begin();
        pipeline.begin();
        unit.store(false, &mut pipeline.products[0]);
        pipeline
    }

    /// Begins the next, if there is one.
    #[inline(always)]
    fn begin(&mut self) {
        if let Some((x, w)) = self.rest.next() {
            self.unit.multiply(self.odd, x, w);
        }
        self.odd = !self.odd;
    }

    /// The next products. After the last, they are without meaning.
    #[inline(always)]
    fn next(&mut self) -> &Products {
        self.begin();
        self.unit.store(self.odd, &mut self.products[usize::from(self.odd)]);
        &self.products[usize::from(!self.odd)]
    }
}

/// A block of 32 columns of sixteen rows of weights.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
struct Columns {
    /// Two columns of each row side by side: eight times those of the first group, eight times zeros, eight times those of the second.
    codes: [[u8; LINE]; 24],
    /// Of each group, or the first for both; where blocks share them, in the first of those.
    scales: [Lane; 2],
    mins: [Lane; 2],
}

/// Some columns of a strip, unpacked.
struct Weights {
    blocks: [Columns; BLOCKS],
}

impl Weights {
    /// Unpacks panels, of [`BLOCKS`] blocks at most. Asks for those that lie `next` panels ahead, wherever that is.
    #[inline(always)]
    fn fill<P: IntPanel>(&mut self, s: Avx512Vnni, table: &Table, panels: &[P], next: usize) {
        let share = size_of::<P>() / (P::Block::LEN / BLOCK);
        let ahead = next.wrapping_mul(size_of::<P>());
        for (panel, blocks) in panels.iter().zip(self.blocks.chunks_exact_mut(P::Block::LEN / BLOCK)) {
            for (b, block) in blocks.iter_mut().enumerate() {
                for line in (0..share).step_by(LINE) {
                    s.prefetch(panel, ahead.wrapping_add(b * share + line));
                }
                for step in 0..BLOCK / 4 {
                    let row = 16 * (step / 4) + 2 * (step % 4);
                    let [first, second] = table.spread::<P>(s, panel.indices(s, b, step));
                    s.store_codes(first, &mut block.codes[row]);
                    s.store_codes(second, &mut block.codes[row + 1]);
                }
                if P::SHARED && b > 0 {
                    continue;
                }
                for g in 0..if P::GROUPED { 2 } else { 1 } {
                    s.store(panel.scale(s, b, g), &mut block.scales[g]);
                    s.store(panel.min(s, b, g), &mut block.mins[g]);
                }
            }
        }
    }

    /// Adds the products of the first blocks with tiles of activations, of so many blocks each, to the sums in `lanes`.
    #[inline(always)]
    fn meet<P: IntPanel>(
        &self,
        s: Avx512Vnni,
        unit: &Unit,
        inputs: &[&[ActivationTile]],
        products: &mut [Products; 2],
        lanes: &mut [Lane],
    ) {
        let weights = &self.blocks[..inputs[0].len()];
        let pairs = inputs.iter().flat_map(|tile| tile.iter().zip(weights));
        let mut pipeline = Pipeline::start(unit, pairs, products);
        for (lanes, tile) in lanes.as_chunks_mut::<LANES>().0.iter_mut().zip(inputs) {
            if P::SHARED {
                let of_panel = P::Block::LEN / BLOCK;
                for (x, w) in tile.chunks_exact(of_panel).zip(weights.chunks_exact(of_panel)) {
                    let (mut parts, mut rest) = ([s.splat(0.0); LANES], [0.0; LANES]);
                    for x in x {
                        pipeline.next().add_part(s, x, &mut parts);
                        for t in 0..LANES {
                            rest[t] += x.dsum[t];
                        }
                    }
                    let (d, m) = (s.load(&w[0].scales[0]), s.load(&w[0].mins[0]));
                    for t in 0..LANES {
                        let y = s.fma(d, parts[t], s.load(&lanes[t]));
                        s.store(s.fma(m, s.splat(rest[t]), y), &mut lanes[t]);
                    }
                }
                continue;
            }
            let mut sums = [s.splat(0.0); LANES];
            for t in 0..LANES {
                sums[t] = s.load(&lanes[t]);
            }
            for (x, w) in tile.iter().zip(weights) {
                w.add::<P>(s, x, pipeline.next(), &mut sums);
            }
            for t in 0..LANES {
                s.store(sums[t], &mut lanes[t]);
            }
        }
    }
}

impl Columns {
    /// Adds the products of a block, as [`super::super::strip`] defines it.
    #[inline(always)]
    fn add<P: IntPanel>(&self, s: Avx512Vnni, x: &ActivationTile, n: &Products, sums: &mut [__m512; LANES]) {
        let (d, m) = ([0, 1].map(|g| s.load(&self.scales[g])), [0, 1].map(|g| s.load(&self.mins[g])));
        let add = |t: usize, sum: __m512| {
            let (n, dx) =
                ([s.load(&n.0[0][t]), s.load(&n.0[1][t])], [s.splat(x.d[0][t]), s.splat(x.d[1][t])]);
            if P::GROUPED {
                let (mut sum, ms) = (sum, [x.dsums[0][t], x.dsums[1][t]]);
                for g in 0..2 {
                    sum = s.fma(d[g], s.mul(dx[g], n[g]), sum);
                    if P::MIN {
                        sum = s.fma(m[g], s.splat(ms[g]), sum);
                    }
                }
                return sum;
            }
            let sum = s.fma(d[0], s.fma(dx[1], n[1], s.mul(dx[0], n[0])), sum);
            if P::MIN { s.fma(m[0], s.splat(x.dsum[t]), sum) } else { sum }
        };
        macro_rules! each {
            ($($t:literal)*) => { *sums = [$(add($t, sums[$t])),*] };
        }
        each!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
}

/// What each index stands for, as bfloat16.
struct Table([u16; 64]);

impl Table {
    #[inline(always)]
    fn of<P: IntPanel>() -> Self {
        let mut values = [0; 64];
        for (i, value) in values.iter_mut().enumerate() {
            let code = P::LEVELS.map_or(i as u8, |levels| levels[i % levels.len()]);
            let q = match P::RANGE {
                CodeRange::Signed => i32::from(code.cast_signed()),
                CodeRange::Unsigned(_) => i32::from(code) - P::ZERO,
            };
            *value = ((q as f32).to_bits() >> 16) as u16;
        }
        Self(values)
    }

    /// What four indices of each row stand for: of the first and third, and of the second and fourth.
    #[inline(always)]
    fn spread<P: IntPanel>(&self, _s: Avx512Vnni, indices: __m512i) -> [__m512i; 2] {
        let most = match P::RANGE {
            _ if P::LEVELS.is_some() => 15,
            CodeRange::Unsigned(most) => most,
            CodeRange::Signed => u8::MAX,
        };
        // SAFETY: the token proves AVX-512 F and BW; the table is two registers, read unaligned.
        unsafe {
            let [low, high] = [0, 32].map(
                #[inline(always)]
                |at| _mm512_loadu_si512(self.0[at..].as_ptr().cast()),
            );
            let odd = _mm512_srli_epi16::<8>(indices);
            match most {
                // Only as many bits of an index count as the table needs.
                0..32 => [indices, odd].map(
                    #[inline(always)]
                    |i| _mm512_permutexvar_epi16(i, low),
                ),
                32..64 => [indices, odd].map(
                    #[inline(always)]
                    |i| _mm512_permutex2var_epi16(low, i, high),
                ),
                _ => {
                    let zero = _mm512_set1_epi32(if P::RANGE == CodeRange::Signed { 0 } else { P::ZERO });
                    let float = |q| _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_sub_epi32(q, zero)));
                    let first = float(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(indices)));
                    let second = float(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(indices)));
                    let third = float(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<8>(indices)));
                    let fourth = float(_mm512_srai_epi32::<24>(indices));
                    let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
                    let pair = |a, b| _mm512_or_si512(_mm512_srli_epi32::<16>(a), _mm512_and_si512(b, high));
                    [pair(first, third), pair(second, fourth)]
                }
            }
        }
    }
}
