//! One lane of the suite: the tested device in one float type, and the reference beside it.

use std::io::Write as _;
use std::sync::OnceLock;

use dfastllm_backends::{
    CpuProvider, DType, Device, DeviceProvider, DeviceSpec, KernelChoice, KernelOptions,
    OpenDevice, Switch, Tensor, TensorData, configure_kernels, open_device,
};
use dfastllm_cube::CubeProvider;

/// The tested device in one float type.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    pub(crate) device: Device,
    pub(crate) dtype: DType,
    /// Largest allowed `|tested - reference| / (1 + |reference|)`.
    tolerance: f32,
    /// The same for operations with matrix products.
    product_tolerance: f32,
    /// Whether kernels are only compiled: the driver of `scripts/cuda` runs nothing.
    pub(crate) only_compiles: bool,
    /// Whether the device multiplies matrices of f16.
    pub(crate) has_tensor_cores: bool,
}

/// The same numbers on the tested device, in the lane's dtype, and in f32 on flex.
#[derive(Debug, Clone)]
pub(crate) struct Pair<const D: usize> {
    pub(crate) tested: Tensor<D>,
    pub(crate) reference: Tensor<D>,
}

/// The lanes to run, or none with a line that says why.
pub(crate) fn lanes(suite: &str) -> Vec<Lane> {
    let Ok(name) = std::env::var("DFASTLLM_TEST_DEVICE") else {
        say(&format!(
            "ops parity, {suite}: not run, because DFASTLLM_TEST_DEVICE names no device\n"
        ));
        return Vec::new();
    };
    // On tensor cores where there are any, else without: everywhere the same is copied together.
    // Where kernels can be measured, that takes minutes for the suite's many shapes.
    let choice = std::env::var("DFASTLLM_TEST_KERNELS").ok();
    let choice = choice.map_or(KernelChoice::Tuned, |text| text.parse().unwrap());
    configure_kernels(KernelOptions { choice, flash: Switch::On, ..KernelOptions::default() });
    let only_compiles = std::env::var_os("DFASTLLM_TEST_ONLY_COMPILES").is_some();
    if only_compiles {
        return unopened();
    }
    let open = opened(&name);
    let lane = |&dtype: &DType| {
        let tolerance = rounding(dtype);
        // CUDA's tensor cores multiply f32 as tf32, which has the mantissa of f16.
        let is_tf32 = dtype == DType::F32 && matches!(open.spec, DeviceSpec::Cuda(_));
        let product_tolerance = if is_tf32 { rounding(DType::F16) } else { tolerance };
        let device = open.device.clone();
        let has_tensor_cores = matches!(open.spec, DeviceSpec::Cuda(_));
        Lane { device, dtype, tolerance, product_tolerance, only_compiles, has_tensor_cores }
    };
    open.info.dtypes.iter().map(lane).collect()
}

/// The first CUDA device as it is, without asking whether it computes.
fn unopened() -> Vec<Lane> {
    #[cfg(feature = "cuda")]
    {
        CubeProvider.install_kernels();
        let lane = |dtype| Lane {
            device: Device::cuda(0),
            dtype,
            tolerance: 0.0,
            product_tolerance: 0.0,
            only_compiles: true,
            has_tensor_cores: true,
        };
        [DType::F32, DType::F16, DType::BF16].map(lane).into()
    }
    #[cfg(not(feature = "cuda"))]
    Vec::new()
}

/// Rounding of a type times a few operations, sums of some hundred terms included: about 160
/// units in the last place of f32, 8 of f16 and 8 of bf16.
fn rounding(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 2e-5,
        DType::F16 => 4e-3,
        _ => 3e-2,
    }
}

fn opened(name: &str) -> &'static OpenDevice {
    static OPEN: OnceLock<OpenDevice> = OnceLock::new();
    OPEN.get_or_init(|| {
        let providers: [Box<dyn DeviceProvider>; 2] =
            [Box::new(CubeProvider), Box::new(CpuProvider)];
        let open = name.parse().and_then(|spec| open_device(spec, &providers)).unwrap();
        let info = &open.info;
        let memory = info.total_memory_bytes.map(|bytes| bytes >> 20);
        say(&format!(
            "ops parity on {}: {}, MiB {memory:?}, {}\n",
            open.spec,
            info.name,
            info.dtype_names()
        ));
        open
    })
}

/// Writes a line past the test harness, which hides what passing tests print, and in one piece.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
}

impl Lane {
    /// `values`, rounded to the lane's dtype on both sides.
    pub(crate) fn pair<const D: usize>(&self, values: &[f32], shape: [usize; D]) -> Pair<D> {
        let flex = Device::flex();
        let exact = TensorData::new(values.to_vec(), shape);
        let rounded = Tensor::<D>::from_data(exact, (&flex, DType::F32)).cast(self.dtype);
        Pair {
            tested: Tensor::from_data(rounded.to_data(), (&self.device, self.dtype)),
            reference: rounded.cast(DType::F32),
        }
    }

    /// A pair of `salt`'s pseudo-random numbers in `[-1, 1)`.
    pub(crate) fn noise<const D: usize>(&self, salt: usize, shape: [usize; D]) -> Pair<D> {
        self.pair(&noise(salt, shape.iter().product()), shape)
    }

    /// Fails unless the device computed what the reference says, in shape, dtype and value.
    pub(crate) fn check<const D: usize>(
        &self,
        what: &str,
        tested: &Tensor<D>,
        reference: &Tensor<D>,
    ) {
        self.compare(what, [tested, reference], self.tolerance);
    }

    /// [`check`](Self::check) for operations with matrix products.
    pub(crate) fn check_product(&self, what: &str, tested: &Tensor<2>, reference: &Tensor<2>) {
        self.compare(what, [tested, reference], self.product_tolerance);
    }

    /// Whether a number differs from a sum of products by no more than rounding.
    pub(crate) fn is_product(&self, tested: f64, reference: f64) -> bool {
        (tested - reference).abs() <= f64::from(self.product_tolerance) * (1.0 + reference.abs())
    }

    /// Fails unless both are equal.
    pub(crate) fn assert_eq<T: std::fmt::Debug + PartialEq + ?Sized>(
        &self,
        tested: &T,
        expected: &T,
        what: impl FnOnce() -> String,
    ) {
        if !self.only_compiles {
            assert_eq!(tested, expected, "{} in {:?}", what(), self.dtype);
        }
    }

    fn compare<const D: usize>(&self, what: &str, pair: [&Tensor<D>; 2], tolerance: f32) {
        let [tested, reference] = pair;
        assert_eq!(tested.dtype(), self.dtype, "{what}");
        assert_eq!(tested.dims(), reference.dims(), "{what}");
        let [tested, reference] =
            [tested, reference].map(|t| t.to_data().iter::<f32>().collect::<Vec<_>>());
        if self.only_compiles {
            return;
        }
        for (i, (t, r)) in tested.iter().zip(&reference).enumerate() {
            let error = (t - r).abs() / (1.0 + r.abs());
            // Written so that NaN fails.
            assert!(
                error <= tolerance,
                "{what} in {:?}: element {i} of {} is {t}, expected {r} within {tolerance}",
                self.dtype,
                tested.len()
            );
        }
    }
}

/// Repeatable numbers in `[-1, 1)` without visible order.
pub(crate) fn noise(salt: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| {
            let hash = (i + salt * 1009).wrapping_mul(2_654_435_761) & 0xffff_ffff;
            (hash ^ (hash >> 15)) as u16 as f32 / 32768.0 - 1.0
        })
        .collect()
}
