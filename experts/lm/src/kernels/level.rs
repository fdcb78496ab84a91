//! Which vector instructions this machine has, found out once at run time.
//!
//! A [`Level`] can only be had from the detection here, so holding one proves that its instructions exist:
//! that is what makes calling functions compiled for them sound.

use std::sync::OnceLock;

/// A set of vector instructions that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level(Set);

/// The sets that there are kernels for, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "other processors run the portable code")
)]
pub(super) enum Set {
    /// Portable code.
    Scalar,
    /// AVX2, FMA and F16C (2013 and later).
    Avx2,
    /// Those and AVX-VNNI: 8-bit dot products in 256-bit registers.
    AvxVnni,
    /// AVX-512 with its VNNI: the same in 512-bit registers.
    Avx512,
}

impl Level {
    /// The best set of this machine.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Self::all().last().copied().unwrap_or(Self(Set::Scalar)))
    }

    /// Every set of this machine, the best last.
    pub(super) fn all() -> Vec<Self> {
        #[cfg_attr(
            not(target_arch = "x86_64"),
            expect(unused_mut, reason = "other processors run the portable code")
        )]
        let mut sets = vec![Self(Set::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                sets.push(Self(Set::Avx2));
                if has!("avxvnni") {
                    sets.push(Self(Set::AvxVnni));
                }
                let wide = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
                if wide && has!("avx512vnni") {
                    sets.push(Self(Set::Avx512));
                }
            }
        }
        sets
    }

    pub(super) fn set(self) -> Set {
        self.0
    }
}

/// The vector instructions that arithmetic on the CPU uses on this machine, e.g. `AVX-512 VNNI`.
pub fn instructions() -> &'static str {
    match Level::best().set() {
        Set::Scalar => "no vector instructions",
        Set::Avx2 => "AVX2",
        Set::AvxVnni => "AVX-VNNI",
        Set::Avx512 => "AVX-512 VNNI",
    }
}

/// Compiles a function of plain loops once for each width of vector registers; the first argument of the
/// result is the [`Level`] to run at. Within one level and between levels the operations and their order
/// are the same, so the results are too.
macro_rules! by_level {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        $vis fn $name(level: $crate::kernels::Level, $($arg: $type),*) {
            #[inline(always)]
            fn body($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::kernels::level::Set;
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
                fn wide($($arg: $type),*) {
                    body($($arg),*);
                }
                #[target_feature(enable = "avx2,fma")]
                fn narrow($($arg: $type),*) {
                    body($($arg),*);
                }
                match level.set() {
                    // SAFETY: a level exists only where its instructions were detected.
                    Set::Avx512 => return unsafe { wide($($arg),*) },
                    // SAFETY: as above.
                    Set::Avx2 | Set::AvxVnni => return unsafe { narrow($($arg),*) },
                    Set::Scalar => {}
                }
            }
            let _ = level;
            body($($arg),*);
        }
    };
}
pub(super) use by_level;
