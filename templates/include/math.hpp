// ks:: functions on T, a SIMD vector of floats or one float. Polynomials were fitted for these ranges by
// Lawson's method and rounded to float one coefficient at a time; each states its own relative error.
// All treat NaN, inf and denormals as PyTorch does. A comparison gives a mask, `mask ? a : b` selects lanes.
namespace ks {

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2_HIGH = 0.693359375f;  // few bits: n * LN2_HIGH is exact
constexpr float LN2_LOW = -2.12194440e-4f;

template <class T>
KS_FN T abs(T a) { return bit_cast<T>(bits(a) & 0x7fffffff); }
template <class T>
KS_FN T copysign(T size, T sign) { return bit_cast<T>((bits(size) & 0x7fffffff) | (bits(sign) & int32_t(0x80000000))); }
// NaN spreads, as in torch.maximum and amax.
template <class T>
KS_FN T max(T a, T b) { return a != a ? a : greater_or_second(a, b); }
template <class T>
KS_FN T min(T a, T b) { return a != a ? a : lesser_or_second(a, b); }
// NaN stays, everything else ends up in [low, high].
template <class T>
KS_FN T clamp(T a, float low, float high) {
    return lesser_or_second(splat<T>(high), greater_or_second(splat<T>(low), a));
}
// 1, -1 or 0; 0 for NaN too, as torch.sign.
template <class T>
KS_FN T sign(T a) {
    const T zero = splat<T>(0.0f), one = splat<T>(1.0f);
    return (a > zero ? one : zero) - (a < zero ? one : zero);
}

template <class T>
KS_FN T sqrt(T a) { return map(a, [](float x) { return __builtin_sqrtf(x); }); }
template <class T>
KS_FN T rsqrt(T a) { return splat<T>(1.0f) / sqrt(a); }
template <class T>
KS_FN T floor(T a) { return map(a, [](float x) { return __builtin_floorf(x); }); }
template <class T>
KS_FN T ceil(T a) { return map(a, [](float x) { return __builtin_ceilf(x); }); }
template <class T>
KS_FN T round(T a) { return map(a, [](float x) { return __builtin_rintf(x); }); }  // half to even
template <class T>
KS_FN T sin(T a) { return map(a, [](float x) { return __builtin_sinf(x); }); }
template <class T>
KS_FN T cos(T a) { return map(a, [](float x) { return __builtin_cosf(x); }); }
template <class T>
KS_FN T pow(T a, T b) {
    if constexpr (WIDTH_OF<T> == 1) {
        return __builtin_powf(a, b);
    } else {
        T result;
        for (int i = 0; i < WIDTH_OF<T>; ++i) result[i] = __builtin_powf(a[i], b[i]);
        return result;
    }
}

// ---- exponentials ----------------------------------------------------------------------------------
// An integer n held twice, as a float and as bits: adding 1.5 * 2^23 leaves n in the low mantissa bits.
template <class T>
struct Integer {
    T value;
    Bits<T> whole;
};
template <class T>
KS_FN Integer<T> nearest(T a) {  // |a| < 2^22
    const T shifted = a + 12582912.0f;
    return {shifted - 12582912.0f, bits(shifted) - 0x4b400000};
}
// a * 2^n for |n| <= 252: in two steps, so that overflow gives inf and a denormal result is rounded once.
template <class T>
KS_FN T scale(T a, const Integer<T>& n) {
    if constexpr (AVX_WIDTH == 16 && WIDTH_OF<T> == 16) {
        asm("vscalefps %1, %0, %0" : "+v"(a) : "v"(n.value));
        return a;
    }
    const Bits<T> half = n.whole >> 1, rest = n.whole - half;
    return a * bit_cast<T>((half + 127) << 23) * bit_cast<T>((rest + 127) << 23);
}
// (e^r - 1 - r) / r^2 for |r| <= ln(2)/2; e^r to 2^-28
template <class T>
KS_FN T exp_tail(T r) {
    T p = r * 0.00138198258f + 0.00836868677f;
    p = p * r + 0.0416682772f;
    p = p * r + 0.166665211f;
    return p * r + 0.49999994f;
}
template <class T>
KS_FN T exp_reduced(T r) {
    const T p = exp_tail(r) * r + 1.0f;
    return p * r + 1.0f;
}
template <class T>
KS_FN T exp_in_range(T a) {  // from -104 to 89
    const Integer<T> n = nearest(T(a * LOG2E));
    const T r = (a - n.value * LN2_HIGH) - n.value * LN2_LOW;
    return scale(exp_reduced(r), n);
}
template <class T>
KS_FN T exp(T a) { return exp_in_range(clamp(a, -104.0f, 89.0f)); }  // beyond: 0 and inf
template <class T>
KS_FN T exp2(T a) {
    a = clamp(a, -151.0f, 129.0f);
    const Integer<T> n = nearest(a);
    return scale(exp_reduced(T((a - n.value) * 0.693147181f)), n);
}
template <class T>
KS_FN T expm1(T a) {
    a = clamp(a, -20.0f, 89.0f);
    const Integer<T> n = nearest(T(a * LOG2E));
    const T r = (a - n.value * LN2_HIGH) - n.value * LN2_LOW;
    const T p = exp_tail(r) * (r * r) + r;
    const T power = scale(splat<T>(1.0f), n);
    return a > splat<T>(20.0f) ? scale(T(p + 1.0f), n) : p * power + (power - 1.0f);
}
template <class T>
KS_FN T sigmoid(T a) { return splat<T>(1.0f) / (exp(T(-a)) + 1.0f); }
template <class T>
KS_FN T tanh(T a) {
    const T t = expm1(T(clamp(abs(a), 0.0f, 10.0f) * 2.0f));
    return copysign(T(t / (t + 2.0f)), a);
}

// ---- logarithms ----------------------------------------------------------------------------------
// a = 2^exponent * m with m in [sqrt(1/2), sqrt(2)); log(m) = f + tail, f = m - 1, for a positive and finite
template <class T>
struct Logarithm {
    T exponent, f, tail;
};
template <class T>
KS_FN Logarithm<T> split_log(T a) {
    const auto tiny = a < splat<T>(1.17549435e-38f);
    a = tiny ? a * 33554432.0f : a;  // denormals have no leading one
    const T adjust = tiny ? splat<T>(-25.0f) : splat<T>(0.0f);
    const Bits<T> e = (bits(a) - 0x3f3504f3) >> 23;
    const T f = bit_cast<T>(bits(a) - (e << 23)) - 1.0f;
    T q = f * -0.0763643906f + 0.127622172f;  // (log(1+f) - f + f^2/2) / f^3, 2^-27
    q = q * f - 0.131596103f;
    q = q * f + 0.1420158f;
    q = q * f - 0.166234091f;
    q = q * f + 0.200012416f;
    q = q * f - 0.250008196f;
    q = q * f + 0.333333313f;
    const T square = f * f;
    return {convert<T>(e) + adjust, f, q * f * square - square * 0.5f};
}
// the logarithm of what split_log does not cover, `value` elsewhere
template <class T>
KS_FN T or_special_log(T a, T value) {
    const T zero = splat<T>(0.0f), infinity = splat<T>(KS_INFINITY);
    const T at_zero = a < zero ? splat<T>(KS_NAN) : splat<T>(-KS_INFINITY);
    value = a < infinity ? value : a;  // inf and NaN
    return a <= zero ? at_zero : value;
}
template <class T>
KS_FN T log(T a) {
    const Logarithm<T> l = split_log(a);
    return or_special_log(a, T(l.exponent * LN2_HIGH + (l.f + (l.exponent * LN2_LOW + l.tail))));
}
template <class T>
KS_FN T log2(T a) {  // exact for powers of two
    const Logarithm<T> l = split_log(a);
    return or_special_log(a, T((l.f + l.tail) * LOG2E + l.exponent));
}
template <class T>
KS_FN T log1p(T a) {
    const T u = a + 1.0f;
    const T lost = (a - (u - 1.0f)) / u;  // what rounding 1 + a lost
    return log(u) + (abs(u) < splat<T>(KS_INFINITY) ? (u == splat<T>(0.0f) ? splat<T>(0.0f) : lost) : splat<T>(0.0f));
}

// ---- erf -----------------------------------------------------------------------------------------
template <class T>
KS_FN T erf(T a) {
    const T t = clamp(abs(a), 0.0f, 4.0f);  // 1 - erf(4) = 1.5e-8 rounds away
    const T s = t * t;
    T p = s * -0.000603445922f + 0.00500149047f;  // erf(t)/t - 1 for t < 0.9, 2^-26
    p = p * s - 0.0267720949f;
    p = p * s + 0.112819612f;
    p = p * s - 0.376125067f;
    p = p * s + 0.128379151f;
    T q = t * 2.05286178e-05f - 0.000427971449f;  // -log(1 - erf(t)) - t for 0.88 < t < 4
    q = q * t + 0.00413990859f;
    q = q * t - 0.0250382181f;
    q = q * t + 0.108155861f;
    q = q * t + 0.633458495f;
    q = q * t + 0.129460394f;
    q = q * t - 0.000163489138f;
    const T far = splat<T>(1.0f) - exp_in_range(T(-(q + t)));
    return copysign(T(t < splat<T>(0.9f) ? p * t + t : far), a);
}

}  // namespace ks
