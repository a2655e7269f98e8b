/*
 * kernel.h: the little of the kernel's interface that the programs use: helpers by number, return codes, headers.
 *
 * Declared here rather than taken from libbpf, so that clang and the kernel's uapi headers are enough to build.
 */
#ifndef FLANPY_BPF_KERNEL_H
#define FLANPY_BPF_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>

#define FP_SECTION(name) __attribute__((section(name), used))
#define FP_INLINE static inline __attribute__((always_inline))
#define FP_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define FP_UNLIKELY(condition) __builtin_expect(!!(condition), 0)

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to,
                                        __u32 bytes) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 bytes,
                                         __u64 flags) = (void *)BPF_FUNC_skb_store_bytes;
static long (*const bpf_skb_adjust_room)(struct __sk_buff *skb, __s32 difference, __u32 mode,
                                         __u64 flags) = (void *)BPF_FUNC_skb_adjust_room;
static long (*const bpf_skb_change_head)(struct __sk_buff *skb, __u32 bytes, __u64 flags) = (void *)BPF_FUNC_skb_change_head;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const bpf_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int bytes,
                                        __u64 flags) = (void *)BPF_FUNC_redirect_neigh;
static long (*const bpf_fib_lookup)(void *context, struct bpf_fib_lookup *params, int bytes,
                                    __u32 flags) = (void *)BPF_FUNC_fib_lookup;
static __u32 (*const bpf_get_hash_recalc)(struct __sk_buff *skb) = (void *)BPF_FUNC_get_hash_recalc;
static __s64 (*const bpf_csum_level)(struct __sk_buff *skb, __u64 level) = (void *)BPF_FUNC_csum_level;

/* What a program at tc returns. NEXT lets programs and filters of others run as if we were not there. */
enum { FP_TC_NEXT = -1, FP_TC_DROP = 2 };

#define FP_AF_INET 2
#define FP_AF_INET6 10
#define FP_PACKET_HOST 0
#define FP_ETHERTYPE_IP 0x0800
#define FP_ETHERTYPE_IP6 0x86dd
#define FP_ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7) /* Linux 6.3; missing in older headers, like the next */
#define FP_ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)
#define FP_ETHERNET_BYTES 14u

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define FP_BE16(value) ((__u16)__builtin_bswap16(value))
#define FP_BE32(value) ((__u32)__builtin_bswap32(value))
#else
#define FP_BE16(value) ((__u16)(value))
#define FP_BE32(value) ((__u32)(value))
#endif

/* A map as the loader finds it in the section "maps": symbol name and these numbers. */
struct fp_map {
    __u32 type;
    __u32 key_bytes;
    __u32 value_bytes;
    __u32 entries;
};
#define FP_MAP(name, map_type, key, value, count)                                                                             \
    struct fp_map name FP_SECTION("maps") = {                                                                                 \
        .type = (map_type), .key_bytes = (key), .value_bytes = (value), .entries = (count)}

#endif
