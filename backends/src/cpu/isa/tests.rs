//! Every operation of every instruction set of this CPU beside the same in plain Rust.

use half::{bf16, f16};

use super::{CpuPath, Isa, Kernel, dispatch, madd};

/// More than the lanes of any set.
const ROOM: usize = 32;

/// Bits in no order, and the f32 that rounding, signs and NaN are about.
fn words(seed: u32) -> [u32; ROOM] {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let special = [0, 1 << 31, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 1, 0x007f_ffff, 0x7f7f_ffff];
    std::array::from_fn(|i| match next() {
        word if word % 4 == 0 => special[(i + seed as usize) % special.len()],
        word => word,
    })
}

/// Numbers near one another, so that sums and products are rounded; for odd seeds also others.
fn floats(seed: u32) -> [f32; ROOM] {
    let near = words(seed).map(|word| f32::from_bits(0x3f80_0000 | word & 0x817f_ffff));
    let any = words(seed + 1).map(f32::from_bits);
    std::array::from_fn(|i| if seed % 2 == 1 && i % 5 == 0 { any[i] } else { near[i] })
}

/// The same bits, or NaN in the same places.
fn equal(got: &[f32], want: &[f32]) -> bool {
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    got.len() == want.len() && got.iter().zip(want).all(same)
}

#[inline(always)]
fn lanes<I: Isa>(isa: I, v: I::V) -> Vec<f32> {
    let mut to = vec![0.0; I::LANES];
    isa.store(v, &mut to);
    to
}

/// A word's bytes come out one by one, as their products with 1.
#[inline(always)]
fn lanes_of_words<I: Isa>(isa: I, w: I::W) -> Vec<u32> {
    let mut words = vec![0; I::LANES];
    for shift in [0, 8, 16, 24] {
        let bytes = isa.to_f32(isa.dot_bytes(isa.splat_word(0), w, 1 << shift));
        for (word, byte) in words.iter_mut().zip(lanes(isa, bytes)) {
            *word |= (byte as u32) << shift;
        }
    }
    words
}

fn of_lanes<I: Isa>(value: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..I::LANES).map(value).collect()
}

struct Check {
    path: CpuPath,
    seed: u32,
}

impl Kernel for Check {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        check_numbers(isa, &self);
        check_parts(isa, &self);
        check_words(isa, &self);
        check_dots(isa, &self);
    }
}

#[inline(always)]
fn check_numbers<I: Isa>(isa: I, &Check { path, seed }: &Check) {
    let (a, b, c) = (floats(seed), floats(seed + 2), floats(seed + 4));
    let (va, vb, vc) = (isa.load(&a), isa.load(&b[..I::LANES]), isa.load(&c));
    for (name, got, want) in [
        ("load", va, of_lanes::<I>(|i| a[i])),
        ("zero", isa.zero(), of_lanes::<I>(|_| 0.0)),
        ("splat", isa.splat(a[0]), of_lanes::<I>(|_| a[0])),
        ("add", isa.add(va, vb), of_lanes::<I>(|i| a[i] + b[i])),
        ("mul", isa.mul(va, vb), of_lanes::<I>(|i| a[i] * b[i])),
        ("madd", isa.madd(va, vb, vc), of_lanes::<I>(|i| madd::<I>(a[i], b[i], c[i]))),
    ] {
        assert!(equal(&lanes(isa, got), &want), "{path} {name}");
    }
    let (mut halves, mut half) = (a, I::LANES / 2);
    while half > 0 {
        halves = std::array::from_fn(|i| halves[i] + halves[(i + half) % ROOM]);
        half /= 2;
    }
    assert!(equal(&[isa.sum(va)], &halves[..1]), "{path} sum");
    let (low, high) = isa.interleave(va, vb);
    for (from, got) in [(0, low), (I::LANES / 2, high)] {
        let want = of_lanes::<I>(|i| if i % 2 == 0 { a[from + i / 2] } else { b[from + i / 2] });
        assert!(equal(&lanes(isa, got), &want), "{path} interleave");
    }
    let lanes = &a[..I::LANES];
    if lanes.iter().all(|x| !x.is_nan()) {
        let most = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // Zeros of either sign are equal.
        assert!(isa.largest(va) == most, "{path} largest");
    }
}

#[inline(always)]
fn check_parts<I: Isa>(isa: I, &Check { path, seed }: &Check) {
    let a = floats(seed);
    let short = words(seed + 6).map(|word| bf16::from_bits(word as u16));
    let wide = short.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16));
    assert!(equal(&lanes(isa, isa.load_bf16(&short)), &wide[..I::LANES]), "{path} load_bf16");
    for n in 0..I::LANES {
        let got = lanes(isa, isa.load_part(&a[..n]));
        let want = of_lanes::<I>(|i| if i < n { a[i] } else { 0.0 });
        assert!(equal(&got, &want), "{path} load_part {n}");
        let got = lanes(isa, isa.load_bf16_part(&short[..n]));
        let want = of_lanes::<I>(|i| if i < n { wide[i] } else { 0.0 });
        assert!(equal(&got, &want), "{path} load_bf16_part {n}");
    }
    for n in 0..ROOM {
        let mut to = [7.0; ROOM];
        isa.store(isa.load(&a), &mut to[..n]);
        let mut want = [7.0; ROOM];
        want[..n.min(I::LANES)].copy_from_slice(&a[..n.min(I::LANES)]);
        assert!(equal(&to, &want), "{path} store {n}");
    }
}

#[inline(always)]
fn check_words<I: Isa>(isa: I, &Check { path, seed }: &Check) {
    let w = &words(seed + 7)[..I::LANES];
    let vw = isa.load_words(w);
    let of_words = |value: fn(u32) -> u32| w.iter().map(|&w| value(w)).collect::<Vec<_>>();
    for (name, got, want) in [
        ("load_words", vw, w.to_vec()),
        ("splat_word", isa.splat_word(w[0] as i32), vec![w[0]; I::LANES]),
        ("low_nibbles", isa.low_nibbles(vw), of_words(|w| w & 0x0f0f_0f0f)),
        ("high_nibbles", isa.high_nibbles(vw), of_words(|w| w >> 4 & 0x0f0f_0f0f)),
    ] {
        assert_eq!(lanes_of_words(isa, got), want, "{path} {name}");
    }
    let want = of_lanes::<I>(|i| w[i] as i32 as f32);
    assert!(equal(&lanes(isa, isa.to_f32(vw)), &want), "{path} to_f32");
}

#[inline(always)]
fn check_dots<I: Isa>(isa: I, &Check { path, seed }: &Check) {
    let (w, sums, xs) = (words(seed + 7), words(seed + 8), words(seed + 9));
    for x in [xs[0], xs[1], 0x8080_8080, 0x7f7f_7f7f, 0x80ff_017f] {
        for w in [w, [u32::MAX; ROOM], [0x8080_8080; ROOM], [0x7f7f_7f7f; ROOM]] {
            let got = isa.dot_bytes(isa.load_words(&sums), isa.load_words(&w), x);
            let want = (0..I::LANES).map(|i| {
                let products = w[i].to_le_bytes().into_iter().zip(x.to_le_bytes());
                products.fold(sums[i], |sum, (w, x)| {
                    sum.wrapping_add((i32::from(w) * i32::from(x as i8)) as u32)
                })
            });
            let want = want.collect::<Vec<_>>();
            assert_eq!(lanes_of_words(isa, got), want, "{path} dot_bytes {x:x}");
        }
    }

    // One instruction for it rounds, and treats tiny numbers, in a way of its own.
    if matches!(path, CpuPath::Avx512Dot | CpuPath::Amx) {
        return;
    }
    let low = |word: u32| f32::from_bits(word << 16);
    let high = |word: u32| f32::from_bits(word & 0xffff_0000);
    let (a, b, c) = (floats(seed), floats(seed + 2), floats(seed + 4));
    let near = std::array::from_fn(|i| a[i].to_bits() >> 16 | b[i].to_bits() & 0xffff_0000);
    for (w, x) in [(near, near[3]), (near, near[16]), (w, sums[0])] {
        let got = isa.dot_bf16(isa.load(&c), isa.load_words(&w), x);
        let want =
            of_lanes::<I>(|i| madd::<I>(high(w[i]), high(x), madd::<I>(low(w[i]), low(x), c[i])));
        assert!(equal(&lanes(isa, got), &want), "{path} dot_bf16 {x:x}");
    }
}

#[test]
fn every_operation_of_every_path_is_what_plain_rust_says() {
    for path in CpuPath::available() {
        for seed in 0..1000 {
            dispatch(path, Check { path, seed });
        }
    }
}

struct Widen([f16; ROOM]);

impl Kernel for Widen {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Vec<f32> {
        lanes(isa, isa.load_f16(&self.0))
    }
}

#[test]
fn every_f16_widens_exactly_on_every_path() {
    for path in CpuPath::available() {
        for first in (0..=u16::MAX).step_by(8) {
            let values = std::array::from_fn(|i| f16::from_bits(first.wrapping_add(i as u16)));
            let want = values.map(|x| x.to_f64() as f32);
            let got = dispatch(path, Widen(values));
            assert!(equal(&got, &want[..got.len()]), "{path} {first:x}");
        }
    }
}
