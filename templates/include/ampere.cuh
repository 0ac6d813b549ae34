// Copies into shared memory that nobody waits for at once, and reads of fragments (PTX ISA 9.0, sections 9.7.9.25.3 and
// 9.7.15.5). Needs sm_80.
namespace ks {

// 16 bytes to shared memory; zeros, and nothing is read, where `bytes` is 0.
KS_FN void copy_async(u32 destination, const void* source, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(bytes) : "memory");
}
KS_FN void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until no more than PENDING of this thread's last groups of copies are under way.
template <int PENDING>
KS_FN void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

KS_FN float4 shared_float4(u32 address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 { %0,%1,%2,%3 }, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address));
    return v;
}
// Four matrices of 8 rows of 16 bytes, whose addresses the lanes give: lane l the one of row l % 8 of matrix l / 8. Lane l
// gets word l % 4 of row l / 4 of each.
KS_FN void load_matrices(u32 (&word)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 { %0,%1,%2,%3 }, [%4];" : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3]) : "r"(address) : "memory");
}

}  // namespace ks
