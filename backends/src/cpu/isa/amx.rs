//! AMX, the tile unit of Intel's server CPUs from Sapphire Rapids on.

use std::arch::asm;
use std::sync::OnceLock;

use raw_cpuid::CpuId;

use super::CpuPath;

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Words of 32 bits in a row of a tile.
pub(crate) const TILE_WORDS: usize = 16;
/// Columns of sums that are computed together: two tiles side by side.
pub(crate) const COLUMNS: usize = 2 * TILE_WORDS;

const ROW_BYTES: usize = size_of::<[u32; TILE_WORDS]>();

/// Sums of two tiles of rows, one below the other.
#[repr(C, align(64))]
pub(crate) struct TileSums(pub(crate) [[f32; COLUMNS]; 2 * TILE_ROWS]);

impl TileSums {
    pub(crate) const ZERO: Self = Self([[0.0; COLUMNS]; 2 * TILE_ROWS]);
}

/// What `ldtilecfg` reads: the shape of each tile.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// Eight tiles of whole rows, with so many rows each.
    #[inline(always)]
    fn of(rows: [usize; 8]) -> Self {
        let mut config =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (tile, rows) in rows.into_iter().enumerate() {
            config.rows[tile] = rows as u8;
            config.row_bytes[tile] = ROW_BYTES as u16;
        }
        config
    }
}

/// Asks the memory for some lines of the weights to come, if it is to be asked.
macro_rules! ask {
    ($lines:literal, $over:literal) => {
        concat!(
            "test {asks}, {asks}\n jz ",
            $over,
            "f\n .irp line,",
            $lines,
            "\n prefetcht1 [{w} + {ahead} + 64*\\line]\n .endr\n ",
            $over,
            ":"
        )
    };
}

/// AMX with bf16. A value is proof that the CPU has it and that the system lets this process use it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amx(());

impl Amx {
    /// Asks the system once, for all threads of this process.
    pub(super) fn here() -> Option<Self> {
        static HERE: OnceLock<Option<Amx>> = OnceLock::new();
        *HERE.get_or_init(|| {
            let features = CpuId::new().get_extended_feature_info()?;
            let is_there = features.has_amx_tile() && features.has_amx_bf16();
            (is_there && may_use_tiles()).then_some(Self(()))
        })
    }

    /// If a path is the one with AMX.
    pub(crate) fn of(path: CpuPath) -> Option<Self> {
        if path == CpuPath::Amx { Self::here() } else { None }
    }

    /// Adds to `sums` products of pairs of bf16, `TILE_WORDS` of them in a step along `k`. `weights` are
    /// `[steps, TILE_WORDS, COLUMNS]`, `x` is `[steps, rows, TILE_WORDS]` of 1 to `TILE_ROWS` rows, and of as
    /// many or none that come below; sums of rows that are not there may be anything. `AHEAD`: words after
    /// those in use that the memory is asked for if `asks`.
    ///
    /// In a step the products of the pairs' lower halves are added up in order, those of the upper ones
    /// likewise, each fused and from 0 on, then both, and that to what stands in `sums` (Intel, "Architecture
    /// Instruction Set Extensions", `TDPBF16PS`): it does not depend on other rows. Denormals count as 0.
    ///
    /// # Panics
    /// If lengths do not fit.
    #[inline(always)]
    pub(crate) fn add_pairs<const AHEAD: usize>(
        self,
        (weights, asks): (&[u32], bool),
        x: [&[u32]; 2],
        sums: &mut TileSums,
    ) {
        let steps = weights.len() / (TILE_WORDS * COLUMNS);
        if steps == 0 {
            return;
        }
        let [rows, below] = x.map(|x| x.len() / (steps * TILE_WORDS));
        assert_eq!(weights.len(), steps * TILE_WORDS * COLUMNS, "whole steps");
        assert_eq!(x.map(<[u32]>::len), [rows, below].map(|rows| steps * rows * TILE_WORDS));
        assert!((1..=TILE_ROWS).contains(&rows) && below <= TILE_ROWS, "{rows} and {below} rows");
        // Where no rows are below, the unit multiplies the first one twice.
        let (below, x_below) = if below == 0 { (1, x[0]) } else { (below, x[1]) };
        let below_step = x_below.len() / steps * size_of::<u32>();
        // Sums 0 and 1, below them 2 and 3; weights 4 and 5; rows 6, below them 7.
        let config =
            TileConfig::of([rows, rows, below, below, TILE_WORDS, TILE_WORDS, rows, below]);
        // SAFETY: `self` proves that the instructions are there and may be used. A step reads 16 rows of 128
        // bytes from `weights` and as many rows of 64 bytes of each of `x` as the configuration says: `steps`
        // times that is what was just checked to be there, and where no rows are below, one of the first
        // ones, of which there is at least one. `sums` has two times 16 rows of 128 bytes. In the end all
        // tiles are released, as they are found. A prefetch never faults.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "tileloadd tmm0, [{sums} + {row}*1]",
                "tileloadd tmm1, [{sums} + {row}*1 + 64]",
                "tileloadd tmm2, [{sums} + {row}*1 + 2048]",
                "tileloadd tmm3, [{sums} + {row}*1 + 2112]",
                "2:",
                "tileloadd tmm4, [{w} + {row}*1]",
                ask!("0,1,2,3,4,5,6,7", "3"),
                "tileloadd tmm6, [{x} + {x_row}*1]",
                "tdpbf16ps tmm0, tmm6, tmm4",
                ask!("8,9,10,11,12,13,14,15", "4"),
                "tileloadd tmm7, [{below} + {x_row}*1]",
                "tdpbf16ps tmm2, tmm7, tmm4",
                ask!("16,17,18,19,20,21,22,23", "5"),
                "tileloadd tmm5, [{w} + {row}*1 + 64]",
                "tdpbf16ps tmm1, tmm6, tmm5",
                ask!("24,25,26,27,28,29,30,31", "6"),
                "tdpbf16ps tmm3, tmm7, tmm5",
                "add {w}, 2048",
                "add {x}, {x_step}",
                "add {below}, {below_step}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {row}*1], tmm0",
                "tilestored [{sums} + {row}*1 + 64], tmm1",
                "tilestored [{sums} + {row}*1 + 2048], tmm2",
                "tilestored [{sums} + {row}*1 + 2112], tmm3",
                "tilerelease",
                config = in(reg) &raw const config,
                asks = in(reg) u64::from(asks),
                ahead = const size_of::<u32>() * AHEAD,
                sums = in(reg) sums,
                row = in(reg) 2 * ROW_BYTES,
                x_row = in(reg) ROW_BYTES,
                w = inout(reg) weights.as_ptr() => _,
                x = inout(reg) x[0].as_ptr() => _,
                x_step = in(reg) rows * ROW_BYTES,
                below = inout(reg) x_below.as_ptr() => _,
                below_step = in(reg) below_step,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// Asks Linux (5.16 and later) for room to keep the tiles of threads that do not run.
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours; where it is not known it fails.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}
