// Shared device code: element types, vector loads and stores, shuffles, clusters, bulk copies.
// Inline PTX instead of CUDA headers: cuda_fp16.h and cooperative_groups.h would cost NVRTC 0.1 to
// 0.5 s a candidate, this costs 0.01 s.
#define KS_FN __device__ __forceinline__
#define KS_INFINITY __int_as_float(0x7f800000)
#define KS_NAN __int_as_float(0x7fc00000)

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

namespace ks {

// ---- element types: storage E, arithmetic always in float -----------------------------------------
struct Float32 {
    using Storage = float;
    static constexpr int PER_WORD = 1;  // elements in one 32-bit word
    static KS_FN float get(u32 word, int) { return __uint_as_float(word); }
    static KS_FN u32 pack(float a, float) { return __float_as_uint(a); }
    static KS_FN float load(const float* p) { return *p; }
    static KS_FN void store(float* p, float a) { *p = a; }
};

struct BFloat16 {
    using Storage = u16;
    static constexpr int PER_WORD = 2;
    static KS_FN float get(u32 word, int i) { return __uint_as_float(i ? word & 0xffff0000u : word << 16); }
    static KS_FN u32 pack(float a, float b) {  // round to nearest even; a in the low half
        u32 word;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
        return word;
    }
    static KS_FN float load(const u16* p) { return __uint_as_float(u32(*p) << 16); }
    static KS_FN void store(u16* p, float a) { *p = u16(pack(a, 0.0f)); }
};

struct Float16 {
    using Storage = u16;
    static constexpr int PER_WORD = 2;
    static KS_FN float get(u32 word, int i) { return to_float(u16(i ? word >> 16 : word)); }
    static KS_FN u32 pack(float a, float b) {
        u32 word;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
        return word;
    }
    static KS_FN float to_float(u16 half) {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
        return value;
    }
    static KS_FN float load(const u16* p) { return to_float(*p); }
    static KS_FN void store(u16* p, float a) { *p = u16(pack(a, 0.0f)); }
};

// ---- vectors of 2 to 16 bytes ---------------------------------------------------------------------
// The read-only path without L1 allocation; streaming; to stay in L2 for the next pass, and not any longer.
enum Load { LOAD_DEFAULT, LOAD_NC, LOAD_CS, LOAD_RETAIN, LOAD_RELEASE };
enum Store { STORE_DEFAULT, STORE_CS, STORE_CG };  // streaming; L2 only

template <int BYTES>
struct alignas(BYTES < 4 ? 4 : BYTES) Raw {
    u32 word[(BYTES + 3) / 4];
};

KS_FN u64 policy_evict_last() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
KS_FN u64 policy_evict_first() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

template <int BYTES, Load POLICY>
KS_FN Raw<BYTES> load(const void* p) {
    Raw<BYTES> r;
    if constexpr (BYTES == 16 && (POLICY == LOAD_RETAIN || POLICY == LOAD_RELEASE)) {
        const u64 policy = POLICY == LOAD_RETAIN ? policy_evict_last() : policy_evict_first();
        u32 &a = r.word[0], &b = r.word[1], &c = r.word[2], &d = r.word[3];
        asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 { %0,%1,%2,%3 }, [%4], %5;" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "l"(p), "l"(policy));
    } else if constexpr (BYTES == 16) {
        u32 &a = r.word[0], &b = r.word[1], &c = r.word[2], &d = r.word[3];
        if constexpr (POLICY == LOAD_NC)
            asm("ld.global.nc.L1::no_allocate.v4.u32 { %0,%1,%2,%3 }, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "l"(p));
        else if constexpr (POLICY == LOAD_CS)
            asm volatile("ld.global.cs.v4.u32 { %0,%1,%2,%3 }, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "l"(p));
        else
            asm volatile("ld.global.v4.u32 { %0,%1,%2,%3 }, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "l"(p));
    } else if constexpr (BYTES == 8) {
        u32 &a = r.word[0], &b = r.word[1];
        if constexpr (POLICY == LOAD_NC)
            asm("ld.global.nc.L1::no_allocate.v2.u32 { %0,%1 }, [%2];" : "=r"(a), "=r"(b) : "l"(p));
        else if constexpr (POLICY == LOAD_CS)
            asm volatile("ld.global.cs.v2.u32 { %0,%1 }, [%2];" : "=r"(a), "=r"(b) : "l"(p));
        else
            asm volatile("ld.global.v2.u32 { %0,%1 }, [%2];" : "=r"(a), "=r"(b) : "l"(p));
    } else if constexpr (BYTES == 4) {
        if constexpr (POLICY == LOAD_NC)
            asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(r.word[0]) : "l"(p));
        else if constexpr (POLICY == LOAD_CS)
            asm volatile("ld.global.cs.u32 %0, [%1];" : "=r"(r.word[0]) : "l"(p));
        else
            asm volatile("ld.global.u32 %0, [%1];" : "=r"(r.word[0]) : "l"(p));
    } else {
        r.word[0] = *static_cast<const u16*>(p);
    }
    return r;
}

template <int BYTES, Store POLICY>
KS_FN void store(void* p, const Raw<BYTES>& r) {
    if constexpr (BYTES == 16) {
        if constexpr (POLICY == STORE_CS)
            asm volatile("st.global.cs.v4.u32 [%0], { %1,%2,%3,%4 };" ::"l"(p), "r"(r.word[0]), "r"(r.word[1]), "r"(r.word[2]), "r"(r.word[3]) : "memory");
        else if constexpr (POLICY == STORE_CG)
            asm volatile("st.global.cg.v4.u32 [%0], { %1,%2,%3,%4 };" ::"l"(p), "r"(r.word[0]), "r"(r.word[1]), "r"(r.word[2]), "r"(r.word[3]) : "memory");
        else
            asm volatile("st.global.v4.u32 [%0], { %1,%2,%3,%4 };" ::"l"(p), "r"(r.word[0]), "r"(r.word[1]), "r"(r.word[2]), "r"(r.word[3]) : "memory");
    } else if constexpr (BYTES == 8) {
        if constexpr (POLICY == STORE_CS)
            asm volatile("st.global.cs.v2.u32 [%0], { %1,%2 };" ::"l"(p), "r"(r.word[0]), "r"(r.word[1]) : "memory");
        else if constexpr (POLICY == STORE_CG)
            asm volatile("st.global.cg.v2.u32 [%0], { %1,%2 };" ::"l"(p), "r"(r.word[0]), "r"(r.word[1]) : "memory");
        else
            asm volatile("st.global.v2.u32 [%0], { %1,%2 };" ::"l"(p), "r"(r.word[0]), "r"(r.word[1]) : "memory");
    } else if constexpr (BYTES == 4) {
        if constexpr (POLICY == STORE_CS)
            asm volatile("st.global.cs.u32 [%0], %1;" ::"l"(p), "r"(r.word[0]) : "memory");
        else if constexpr (POLICY == STORE_CG)
            asm volatile("st.global.cg.u32 [%0], %1;" ::"l"(p), "r"(r.word[0]) : "memory");
        else
            asm volatile("st.global.u32 [%0], %1;" ::"l"(p), "r"(r.word[0]) : "memory");
    } else {
        *static_cast<u16*>(p) = u16(r.word[0]);
    }
}

template <class D, int BYTES>
KS_FN float element(const Raw<BYTES>& r, int lane) {
    return D::get(r.word[lane / D::PER_WORD], lane % D::PER_WORD);
}

template <class D, int VEC, int BYTES>
KS_FN Raw<BYTES> pack(const float (&value)[VEC]) {
    Raw<BYTES> r;
    if constexpr (D::PER_WORD == 1) {
#pragma unroll
        for (int i = 0; i < VEC; ++i) r.word[i] = D::pack(value[i], 0.0f);
    } else {
#pragma unroll
        for (int i = 0; i < VEC; i += 2) r.word[i / 2] = D::pack(value[i], i + 1 < VEC ? value[i + 1 < VEC ? i + 1 : i] : 0.0f);
    }
    return r;
}

// Hides a value from common-subexpression elimination by adding a zero that only the host knows to be
// one. The compilers otherwise keep what they computed of a whole row alive from pass to pass: floats
// beside packed halves, exponentials beside their arguments. 32 words of bf16 spilled at a cap of 80
// registers with it and fit 64 without.
template <int BYTES>
KS_FN void launder(Raw<BYTES>& r, u32 zero) {
#pragma unroll
    for (u32& w : r.word) w += zero;
}

// For a copy of what is laundered itself later on: by the same sum the two would be shared after all
// (32 words of bf16 in log_softmax, online: 100 bytes spilled at 64 registers; none with this).
template <int BYTES>
KS_FN void launder_copy(Raw<BYTES>& r, u32 zero) {
#pragma unroll
    for (u32& w : r.word) w ^= zero;
}

// ---- the place of an extreme: a column, in two words among a row's floats ------------------------------
#define KS_NOWHERE 0x7fffffffffffffffll
KS_FN float low_word(long long place) { return __uint_as_float(u32(place)); }
KS_FN float high_word(long long place) { return __uint_as_float(u32(u64(place) >> 32)); }
KS_FN long long place_of(float low, float high) {
    return (long long)((u64(__float_as_uint(high)) << 32) | __float_as_uint(low));
}
KS_FN long long place_if(bool counts, float low, float high) { return counts ? place_of(low, high) : KS_NOWHERE; }
KS_FN bool is_same(float a, float b) { return a == b || (a != a && b != b); }

// ---- shared memory, clusters, barriers, bulk copies (PTX ISA, sections 9.7.8 and 9.7.13) -------------
KS_FN u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

KS_FN u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

KS_FN void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
KS_FN void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The address of this shared variable in another block of the cluster.
KS_FN u32 remote_address(u32 address, u32 rank) {
    u32 remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}
// Writes a word into another block and counts its bytes at that block's barrier: no one need wait for all
// (1.5 % of a 4096x393216 softmax, against barrier.cluster).
KS_FN void remote_send(u32 address, u32 word, u32 barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(address), "r"(word), "r"(barrier) : "memory");
}
KS_FN void remote_send(u32 address, u32 word, u32 next_word, u32 barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], { %1,%2 }, [%3];" ::"r"(address), "r"(word), "r"(next_word), "r"(barrier) : "memory");
}
// Lets the other blocks of the cluster see barriers that were just made, once they have passed a barrier.cluster.
KS_FN void cluster_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

KS_FN void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// Orders this thread's earlier accesses to shared memory before bulk copies that others start after a
// barrier. Reads too: without it a copy overtook loads still queued behind bank conflicts (found by the
// bitwise comparison of two runs, 32768x256 bf16, 8 rows in a block of 32 threads).
KS_FN void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
KS_FN void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
KS_FN void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::"r"(barrier), "r"(parity) : "memory");
}
// The same for words that other blocks of the cluster have sent.
KS_FN void barrier_wait_cluster(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::"r"(barrier), "r"(parity) : "memory");
}
KS_FN void bulk_load(u32 destination, const void* source, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(destination), "l"(source), "r"(bytes), "r"(barrier) : "memory");
}

// 16 bytes, without a register and without waiting for them; a thread sees its own after the wait.
KS_FN void async_load(void* destination, const void* source) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(destination)), "l"(source) : "memory");
}
KS_FN void async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- blocks anywhere on the device, through global memory ---------------------------------------------
KS_FN u32 load_relaxed(const u32* p) {
    u32 word;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(p) : "memory");
    return word;
}
// A value and its tag travel as one 64-bit word, which is read whole or not at all: no fence is needed.
KS_FN void post(u64* word, float value, u32 tag) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"((u64(tag) << 32) | __float_as_uint(value)) : "memory");
}
KS_FN float await(const u64* word, u32 tag) {
    u64 seen;
    do {
        asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(word) : "memory");
    } while (u32(seen >> 32) != tag);
    return __uint_as_float(u32(seen));
}

}  // namespace ks
