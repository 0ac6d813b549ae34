// ks:: functions on floats. KS_FAST_MATH picks ex2.approx and rcp.approx (each about 2 ulp, denormal
// results flushed) for exp and sigmoid; never a global --use_fast_math, which would change divisions too.
namespace ks {

template <class T>
KS_FN T splat(float a) { return a; }

KS_FN float exp2_approx(float a) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
    return r;
}
KS_FN float rcp_approx(float a) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
    return r;
}

KS_FN float exp(float a) {
#if KS_FAST_MATH
    return exp2_approx(a * 1.4426950408889634f);
#else
    return expf(a);
#endif
}
KS_FN float sigmoid(float a) {
#if KS_FAST_MATH
    return rcp_approx(1.0f + exp2_approx(a * -1.4426950408889634f));
#else
    return 1.0f / (1.0f + expf(-a));
#endif
}
KS_FN float exp2(float a) { return exp2f(a); }
KS_FN float expm1(float a) { return expm1f(a); }
KS_FN float log(float a) { return logf(a); }
KS_FN float log1p(float a) { return log1pf(a); }
KS_FN float log2(float a) { return log2f(a); }
KS_FN float sqrt(float a) { return sqrtf(a); }
KS_FN float rsqrt(float a) { return rsqrtf(a); }
KS_FN float abs(float a) { return fabsf(a); }
KS_FN float tanh(float a) { return tanhf(a); }
KS_FN float erf(float a) { return erff(a); }
KS_FN float sin(float a) { return sinf(a); }
KS_FN float cos(float a) { return cosf(a); }
KS_FN float floor(float a) { return floorf(a); }
KS_FN float ceil(float a) { return ceilf(a); }
KS_FN float round(float a) { return rintf(a); }
KS_FN float pow(float a, float b) { return powf(a, b); }
// NaN spreads, as in torch.maximum and amax; fmaxf would swallow it.
KS_FN float max(float a, float b) {
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
// Of all lanes of a warp, by one instruction: floats in the order of integers, where max's NaN is the largest.
KS_FN float warp_max(float a) {
    const int key = __float_as_int(a);
    const int most = __reduce_max_sync(~0u, key ^ ((key >> 31) & 0x7fffffff));
    return __int_as_float(most ^ ((most >> 31) & 0x7fffffff));
}
KS_FN float min(float a, float b) {
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

}  // namespace ks
