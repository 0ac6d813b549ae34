// Hopper's own: tensor copies, barriers across a cluster, warpgroup matrix products (PTX ISA 9.0, sections
// 9.7.9.25, 9.7.13.15 and 9.7.15). Needs sm_90a.
namespace ks {

struct alignas(64) TensorMap {
    u64 opaque[16];
};

KS_FN void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// One tile of a matrix, from column `x` and row `y`; what lies outside the matrix arrives as zeros. `policy` as
// createpolicy makes it: how long the L2 cache keeps it.
KS_FN void tile_load(u32 destination, const TensorMap* map, int x, int y, u32 barrier, u64 policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, { %3, %4 }], [%2], %5;" ::"r"(destination), "l"(map), "r"(barrier), "r"(x), "r"(y), "l"(policy) : "memory");
}
// The same into every block of the cluster that `mask` names, at the same address, counted at each one's barrier.
KS_FN void tile_load_all(u32 destination, const TensorMap* map, int x, int y, u32 barrier, u64 policy, u16 mask) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1, { %3, %4 }], [%2], %5, %6;" ::"r"(destination), "l"(map), "r"(barrier), "r"(x), "r"(y), "h"(mask), "l"(policy) : "memory");
}
KS_FN u64 policy_evict_normal() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_unchanged.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

KS_FN void barrier_arrive(u32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }
KS_FN void barrier_arrive_at(u32 barrier, u32 rank) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(remote_address(barrier, rank)) : "memory");
}

// Among `threads` threads of a block: a barrier, and whether `flag` holds for any of them.
template <int NUMBER>
KS_FN bool any_of(bool flag, int threads) {
    int result;
    asm volatile(
        "{\n.reg .pred p, q;\nsetp.ne.s32 p, %1, 0;\n"
        "barrier.red.or.pred q, %2, %3, p;\nselp.s32 %0, 1, 0, q;\n}\n" : "=r"(result) : "r"(int(flag)), "n"(NUMBER), "r"(threads) : "memory");
    return result != 0;
}

// Among the 128 threads of one warpgroup.
KS_FN void group_barrier(int number) { asm volatile("bar.sync %0, 128;" ::"r"(number) : "memory"); }

KS_FN void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
KS_FN void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
KS_FN void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

// Keeps the compilers from moving accesses to accumulators past the products that fill them.
template <int N>
KS_FN void pin(float (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// Describes a tile whose rows are 128 bytes along the summed dimension, with the 128-byte swizzle.
KS_FN u64 tile_descriptor(u32 address) {
    return u64((address & 0x3ffff) >> 4) | u64(1) << 16 | u64(64) << 32 | u64(1) << 62;
}

template <int REGISTERS>
KS_FN void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }
template <int REGISTERS>
KS_FN void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }

}  // namespace ks
