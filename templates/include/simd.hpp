// Shared CPU code: SIMD vectors of floats, element types, loads and stores of whole and partial vectors.
// GCC vector extensions, so that one template serves every width and plain float (a vector of one lane).
// The few instructions without a portable spelling are inline assembly instead of <immintrin.h>, which
// alone would cost 0.37 s of a 0.4 s compile. Built without -ffast-math: NaN and inf mean what they say.
#include <cstdint>

#define KS_INLINE inline __attribute__((always_inline))
#define KS_FN static KS_INLINE
#define KS_INFINITY __builtin_inff()
#define KS_NAN __builtin_nanf("")
#define KS_LOWEST (-3.4028234663852886e38f)  // the most negative finite float

namespace ks {

// Floats in the widest AVX register, 0 without AVX; wider vectors are the compiler's to split.
#if defined(__AVX512F__)
constexpr int AVX_WIDTH = 16;
#elif defined(__AVX__)
constexpr int AVX_WIDTH = 8;
#else
constexpr int AVX_WIDTH = 0;
#endif

// ---- vectors ----------------------------------------------------------------------------------------
template <int WIDTH>
struct Simd {
    typedef float Float __attribute__((vector_size(WIDTH * 4)));
    typedef int32_t Bits __attribute__((vector_size(WIDTH * 4)));
    typedef uint16_t Half __attribute__((vector_size(WIDTH * 2)));
};
template <>
struct Simd<1> {
    using Float = float;
    using Bits = int32_t;
    using Half = uint16_t;
};

template <class T>
constexpr int WIDTH_OF = sizeof(T) / sizeof(float);
template <class T>
using Bits = typename Simd<WIDTH_OF<T>>::Bits;
template <class T>
using Half = typename Simd<WIDTH_OF<T>>::Half;

template <class To, class From>
KS_FN To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}
template <class To, class From>
KS_FN To convert(From from) {  // by value, lane by lane
    if constexpr (sizeof(From) <= 4)
        return To(from);
    else
        return __builtin_convertvector(from, To);
}
template <class T>
KS_FN Bits<T> bits(T a) { return bit_cast<Bits<T>>(a); }

template <class T>
KS_FN T splat(float a) {
    if constexpr (WIDTH_OF<T> == 1)
        return a;
    else
        return a - T{};  // not +: it would turn -0.0 into 0.0
}
// b where either is NaN, as the x86 instruction does; GCC 12 would compare and select, for one float
// with a branch that is hard to predict.
template <class T>
KS_FN T greater_or_second(T a, T b) {
    if constexpr (WIDTH_OF<T> > AVX_WIDTH) {
        return a > b ? a : b;
    } else {
        T result;
        if constexpr (WIDTH_OF<T> == 1)
            asm("vmaxss %2, %1, %0" : "=v"(result) : "v"(a), "v"(b));
        else
            asm("vmaxps %2, %1, %0" : "=v"(result) : "v"(a), "v"(b));
        return result;
    }
}
template <class T>
KS_FN T lesser_or_second(T a, T b) {
    if constexpr (WIDTH_OF<T> > AVX_WIDTH) {
        return a < b ? a : b;
    } else {
        T result;
        if constexpr (WIDTH_OF<T> == 1)
            asm("vminss %2, %1, %0" : "=v"(result) : "v"(a), "v"(b));
        else
            asm("vminps %2, %1, %0" : "=v"(result) : "v"(a), "v"(b));
        return result;
    }
}
template <class T, class F>
KS_FN T map(T a, F&& function) {  // lane by lane; becomes one instruction where there is one
    if constexpr (WIDTH_OF<T> == 1) {
        return function(a);
    } else {
        T result;
        for (int i = 0; i < WIDTH_OF<T>; ++i) result[i] = function(a[i]);
        return result;
    }
}
// All lanes combined into one float, halving each time.
template <class T, class F>
KS_FN float fold(T a, F&& combine) {
    if constexpr (WIDTH_OF<T> == 1) {
        return a;
    } else {
        using Part = typename Simd<WIDTH_OF<T> / 2>::Float;
        Part low, high;
        __builtin_memcpy(&low, &a, sizeof(Part));
        if constexpr (AVX_WIDTH == 16 && WIDTH_OF<T> == 16)
            asm("vextractf64x4 $1, %1, %0" : "=v"(high) : "v"(a));  // GCC 12 goes through memory
        else
            __builtin_memcpy(&high, reinterpret_cast<const char*>(&a) + sizeof(Part), sizeof(Part));
        return fold(Part(combine(low, high)), combine);
    }
}

// ---- element types: 32- or 16-bit storage, arithmetic always in float --------------------------------
struct float16 {
    uint16_t storage;
};
struct bfloat16 {
    uint16_t storage;
};

template <class T>
KS_FN T to_float(float16, Half<T> half) {
    T value;
#if defined(__F16C__)
    if constexpr (WIDTH_OF<T> > 1 && WIDTH_OF<T> <= AVX_WIDTH) {
        asm("vcvtph2ps %1, %0" : "=v"(value) : "v"(half));
        return value;
    }
#endif
    // 2^112 rebases the exponent and makes denormals exact; 0x7c00 and above is inf or NaN
    const Bits<T> wide = convert<Bits<T>>(half), magnitude = wide & 0x7fff;
    value = bit_cast<T>(magnitude << 13) * 0x1p112f;
    const Bits<T> special = (magnitude << 13) | 0x7f800000;
    const Bits<T> finite = bits(value);
    return bit_cast<T>((magnitude >= 0x7c00 ? special : finite) | ((wide & 0x8000) << 16));
}
template <class T>
KS_FN T to_float(bfloat16, Half<T> half) {
    Bits<T> wide;
    if constexpr (AVX_WIDTH == 16 && WIDTH_OF<T> == 16)
        asm("vpmovzxwd %1, %0" : "=v"(wide) : "v"(half));  // GCC 12 widens two halves and joins them
    else
        wide = convert<Bits<T>>(half);
    return bit_cast<T>(wide << 16);
}

template <class T>
KS_FN Half<T> from_float(float16, T value) {  // to nearest, ties to even
    Half<T> half;
#if defined(__F16C__)
    if constexpr (WIDTH_OF<T> > 1 && WIDTH_OF<T> <= AVX_WIDTH) {
        asm("vcvtps2ph $0, %1, %0" : "=v"(half) : "v"(value));
        return half;
    }
#endif
    const Bits<T> all = bits(value), magnitude = all & 0x7fffffff;
    const Bits<T> normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    // below 2^-14 the addition of 0.5 rounds at the last bit of a half denormal, 2^-24
    const Bits<T> small = bits(T(bit_cast<T>(magnitude) + 0.5f)) - 0x3f000000;
    const Bits<T> special = magnitude > 0x7f800000 ? Bits<T>{} + 0x7e00 : Bits<T>{} + 0x7c00;
    const Bits<T> finite = magnitude < 0x38800000 ? small : normal;
    return convert<Half<T>>(Bits<T>((magnitude >= 0x477ff000 ? special : finite) | ((all >> 16) & 0x8000)));
}
template <class T>
KS_FN Half<T> from_float(bfloat16, T value) {
    const Bits<T> all = bits(value), rounded = (all + 0x7fff + ((all >> 16) & 1)) >> 16;
    const Bits<T> quiet = Bits<T>{} + 0x7fc0;
    return convert<Half<T>>(Bits<T>((all & 0x7fffffff) > 0x7f800000 ? quiet : rounded));
}

// ---- loads and stores: any alignment of an element ----------------------------------------------------
template <class T>
KS_FN T load(const float* p) {
    T value;
    __builtin_memcpy(&value, p, sizeof(T));
    return value;
}
template <class T, class E>
KS_FN T load(const E* p) {
    Half<T> half;
    __builtin_memcpy(&half, p, sizeof(half));
    return to_float<T>(E{}, half);
}
template <class T>
KS_FN void store(float* p, T value) {
    __builtin_memcpy(p, &value, sizeof(T));
}
template <class T, class E>
KS_FN void store(E* p, T value) {
    const Half<T> half = from_float<T>(E{}, value);
    __builtin_memcpy(p, &half, sizeof(half));
}

// Past the caches where AVX allows it, p aligned to the vector: saves reading a line before writing it.
template <class V>
KS_FN void stream_raw(void* p, V value) {
    struct Line {
        char bytes[sizeof(V)];
    };
    if constexpr (sizeof(V) >= 16 && int(sizeof(V)) <= AVX_WIDTH * 4)
        asm volatile("vmovntps %1, %0" : "=m"(*static_cast<Line*>(p)) : "v"(value));
    else
        __builtin_memcpy(p, &value, sizeof(V));
}
template <class T>
KS_FN void stream(float* p, T value) { stream_raw(p, value); }
template <class T, class E>
KS_FN void stream(E* p, T value) { stream_raw(p, from_float<T>(E{}, value)); }

// After a thread's last streamed store: makes them visible in order.
KS_FN void stream_fence() {
#if defined(__SSE2__)
    asm volatile("sfence" ::: "memory");
#endif
}

// ---- which lanes of a vector count ---------------------------------------------------------------------
struct Whole {
    template <class T, class E>
    KS_INLINE T load(const E* p) const { return ks::load<T>(p); }
    template <class T, class E>
    KS_INLINE void store(E* p, T value) const { ks::store(p, value); }
    template <class T>
    KS_INLINE T keep(T value, float) const { return value; }
};

// The first `count` lanes. The others load as 0, so that nothing past the end is touched.
struct Part {
    int count;

    template <class T, class E>
    KS_INLINE T load(const E* p) const {
        E lane[WIDTH_OF<T>] = {};
        for (int i = 0; i < count; ++i) lane[i] = p[i];
        return ks::load<T>(lane);
    }
    template <class T, class E>
    KS_INLINE void store(E* p, T value) const {
        E lane[WIDTH_OF<T>];
        ks::store(lane, value);
        for (int i = 0; i < count; ++i) p[i] = lane[i];
    }
    // the value in the lanes that count, `neutral` in the others
    template <class T>
    KS_INLINE T keep(T value, float neutral) const {
        T kept = splat<T>(neutral);
        for (int i = 0; i < WIDTH_OF<T>; ++i) kept[i] = i < count ? value[i] : neutral;
        return kept;
    }
};

template <int COUNT>
struct Vectors {
    static constexpr int value = COUNT;
};

// body(lanes, at, Vectors<N>) over the columns [from, to): groups of UNROLL vectors, then single ones,
// then the lanes that are left.
template <class T, int UNROLL, class F>
KS_FN void sweep(int64_t from, int64_t to, F&& body) {
    constexpr int WIDTH = WIDTH_OF<T>;
    int64_t at = from;
    for (; at + UNROLL * WIDTH <= to; at += UNROLL * WIDTH) body(Whole{}, at, Vectors<UNROLL>{});
    if constexpr (UNROLL > 1)
        for (; at + WIDTH <= to; at += WIDTH) body(Whole{}, at, Vectors<1>{});
    if (at < to) body(Part{int(to - at)}, at, Vectors<1>{});
}

// Elements from the last aligned address of a vector to p.
template <class T, class E>
KS_FN int64_t past_aligned(const E* p) {
    return int64_t(reinterpret_cast<uintptr_t>(p) % (WIDTH_OF<T> * sizeof(E)) / sizeof(E));
}

// The same for columns that are written to each p: with STREAM, whole vectors go past the caches, which
// they may only from the first address on that is aligned in all of them, and not at all where there is
// none. body(lanes, at, Vectors<N>, write), write(p, value).
template <bool STREAM, class T, int UNROLL, class E, int OUTPUTS, class F>
KS_FN void sweep_out(E* const (&p)[OUTPUTS], int64_t from, int64_t to, F&& body) {
    const auto plain = [](auto lanes, E* place, T value) { lanes.store(place, value); };
    if constexpr (!STREAM) {
        sweep<T, UNROLL>(from, to, [&](auto lanes, int64_t at, auto count) { body(lanes, at, count, plain); });
    } else {
        constexpr int WIDTH = WIDTH_OF<T>;
        const int64_t past = past_aligned<T>(p[0] + from);
        for (int k = 1; k < OUTPUTS; ++k)
            if (past_aligned<T>(p[k] + from) != past) return sweep_out<false, T, UNROLL>(p, from, to, body);
        const int64_t aligned = past ? from + WIDTH - past : from;
        const int64_t first = aligned < to ? aligned : to;
        if (from < first) body(Part{int(first - from)}, from, Vectors<1>{}, plain);
        sweep<T, UNROLL>(first, to, [&](auto lanes, int64_t at, auto count) {
            if constexpr (__is_same(decltype(lanes), Whole))
                body(lanes, at, count, [](auto, E* place, T value) { stream(place, value); });
            else
                body(lanes, at, count, plain);
        });
    }
}

}  // namespace ks
