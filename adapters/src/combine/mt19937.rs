//! The generator of torch on CPUs, and how `torch.bernoulli` and the first values of layers use it.
//!
//! MT19937 (Matsumoto and Nishimura, ACM TOMACS 8, 1998), of which torch takes the low 32 bits of a seed. A uniform float is
//! `(word mod 2^24) / 2^24`, one word each; `torch.bernoulli` of a tensor of floats draws one for each element and keeps those where it
//! is less than the probability. `uniform_` draws one word for each element, `normal_` of 16 elements or more likewise, and once
//! more for the last 16 if their number is no multiple of 16; of fewer, four words for every two.

const N: usize = 624;
const M: usize = 397;

pub(super) struct Mt19937 {
    state: [u32; N],
    at: usize,
}

impl Mt19937 {
    pub fn new(seed: u64) -> Self {
        let mut state = [seed as u32; N];
        for i in 1..N {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, at: N }
    }

    fn word(&mut self) -> u32 {
        if self.at == N {
            self.turn();
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn turn(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let mask = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ mask;
        }
        self.at = 0;
    }

    /// Whether an element of probability `p` is kept.
    pub fn keeps(&mut self, p: f32) -> bool {
        let uniform = (self.word() & 0xff_ffff) as f32 / (1 << 24) as f32;
        uniform < p
    }

    /// Passes over what `uniform_` of so many elements draws.
    pub fn skip_uniform(&mut self, elements: usize) {
        (0..elements).for_each(|_| _ = self.word());
    }

    /// Passes over what `normal_` of so many elements draws.
    pub fn skip_normal(&mut self, elements: usize) {
        self.skip_uniform(match elements {
            0..16 => 4 * elements.div_ceil(2),
            _ if elements.is_multiple_of(16) => elements,
            _ => elements + 16,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_definition() {
        // The C++ standard gives the ten thousandth word of the default seed.
        let mut generator = Mt19937::new(5489);
        generator.skip_uniform(9999);
        assert_eq!(generator.word(), 4_123_659_995);
        let mut same = Mt19937::new(5489 + (3 << 32));
        same.skip_uniform(9983);
        same.skip_normal(16);
        assert_eq!(same.word(), 4_123_659_995, "of a seed the low half is taken");
    }

    #[test]
    fn floats_are_kept_as_torch_keeps_them() {
        // torch.manual_seed(7); torch.bernoulli(torch.full((20,), 0.3)), and with 0.5 after torch.randn(17).
        let mut generator = Mt19937::new(7);
        let kept: Vec<usize> = (0..20).filter(|_| generator.keeps(0.3)).collect();
        assert_eq!(kept, TORCH_KEEPS);
        let mut generator = Mt19937::new(7);
        generator.skip_normal(17);
        let kept: Vec<usize> = (0..20).filter(|_| generator.keeps(0.5)).collect();
        assert_eq!(kept, TORCH_KEEPS_AFTER);
    }

    const TORCH_KEEPS: &[usize] = &[1, 4, 6, 12, 13, 17, 19];
    const TORCH_KEEPS_AFTER: &[usize] = &[3, 4, 5, 6, 8, 9, 13, 14, 16, 17];
}
