/*
 * packet.h: the headers that the programs read and write; all values as on the wire, lengths checked by whoever calls.
 */
#ifndef FLANPY_BPF_PACKET_H
#define FLANPY_BPF_PACKET_H

#include "kernel.h"
#include "layout.h"

struct fp_ip4 {
    __u8 version_ihl;
    __u8 tos;
    __be16 total_be;
    __be16 id;
    __be16 fragment_be;
    __u8 ttl;
    __u8 protocol;
    __u16 check;
    __be32 source_be;
    __be32 destination_be;
};

struct fp_ip6 {
    __be32 version_class_label;
    __be16 payload_be;
    __u8 next;
    __u8 hops;
    __be32 source_be[4];
    __be32 destination_be[4];
};

/* An inner packet's header as it stands there, and what both families say in their own ways. */
struct fp_inner {
    union {
        struct fp_ip4 v4;
        struct fp_ip6 v6;
        __u8 bytes[40];
    };
    __u32 version;
    __u32 total;   /* bytes of the packet, by its own account */
    __u32 headers; /* bytes before `protocol`; IPv6: 40, extension headers are not looked into */
    __u8 protocol;
    __u8 ttl;
    __u8 tos;
};

struct fp_udp {
    __be16 source_be;
    __be16 destination_be;
    __be16 length_be;
    __u16 check;
};

/* The headers of the tunnel, of either family; what is behind them is behind this in memory too. */
struct fp_outer {
    union {
        struct fp_ip6 v6;
        struct {
            __u8 unused[20];
            struct fp_ip4 v4;
        };
    };
    struct fp_udp udp;
};

/* The header of a fragment, RFC 8200, section 4.5. */
struct fp_fragment6 {
    __u8 next;
    __u8 reserved;
    __be16 offset_be; /* FP_OFFSET6, and the flag that more follow */
    __be32 id;
};

struct fp_ethernet {
    __u8 destination[6];
    __u8 source[6];
    __be16 type_be;
} __attribute__((packed));

enum { FP_ICMP = 1, FP_TCP = 6, FP_UDP = 17, FP_FRAGMENT6 = 44 };
#define FP_OUTER_BYTES 28u
#define FP_OUTER6_BYTES 48u
#define FP_HEAD_BYTES 12u /* the part of an IP header that we change lies therein, in either family */
#define FP_IP4_BYTES 20u
#define FP_IP6_BYTES 40u
#define FP_DF 0x4000
#define FP_MF_OR_OFFSET 0x3fff
#define FP_OFFSET6 0xfff8

enum { FP_NOT_ECT, FP_ECT_1, FP_ECT_0, FP_CE };

_Static_assert(sizeof(struct fp_ip6) == FP_IP6_BYTES, "RFC 8200");
_Static_assert(sizeof(struct fp_outer) == FP_OUTER6_BYTES, "headers of the tunnel");
_Static_assert(__builtin_offsetof(struct fp_outer, v4) == FP_OUTER6_BYTES - FP_OUTER_BYTES, "both end where the inner packet begins");
_Static_assert(sizeof(struct fp_ethernet) == FP_ETHERNET_BYTES, "no padding");

/*
 * Bytes of a packet, read where they lie if they are in the linear part, else by the helper. 0, or -errno. Offset and number must be
 * constants, or verifiers lose track of them; the number a multiple of 4, for a header is aligned so where the machine wants it
 * (NET_IP_ALIGN).
 */
FP_INLINE long fp_load(struct __sk_buff *skb, __u32 offset, void *to, __u32 bytes)
{
    const __u8 *data = (const void *)(unsigned long)skb->data + offset, *end = (const void *)(unsigned long)skb->data_end;
    if (FP_LIKELY(data + bytes <= end)) {
        __builtin_memcpy(to, __builtin_assume_aligned(data, 4), bytes);
        return 0;
    }
    return bpf_skb_load_bytes(skb, offset, to, bytes);
}

FP_INLINE struct fp_address fp_mapped(__be32 address_be)
{
    return (struct fp_address){.low = 0xffffULL << 32 | FP_BE32(address_be)};
}

FP_INLINE __u64 fp_half(const __be32 *words)
{
    return (__u64)FP_BE32(words[0]) << 32 | FP_BE32(words[1]);
}

FP_INLINE void fp_put_half(__be32 *words, __u64 half)
{
    words[0] = FP_BE32(half >> 32);
    words[1] = FP_BE32(half);
}

FP_INLINE void fp_put_address(__be32 *words, const struct fp_address *address)
{
    fp_put_half(words, address->high);
    fp_put_half(words + 2, address->low);
}

FP_INLINE struct fp_address fp_address_of(const __be32 *address6)
{
    return (struct fp_address){fp_half(address6), fp_half(address6 + 2)};
}

FP_INLINE _Bool fp_is_same(const struct fp_address *one, const struct fp_address *other)
{
    return one->high == other->high && one->low == other->low;
}

FP_INLINE __u16 fp_fold(__u32 sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (__u16)sum;
}

/* Sum of a header of 20 bytes, folded, native order: 0xffff when its checksum is right. */
FP_INLINE __u16 fp_ip4_sum(const struct fp_ip4 *ip)
{
    const __u16 *word = (const __u16 *)ip;
    __u32 sum = 0;
#pragma unroll
    for (int i = 0; i < 10; i++)
        sum += word[i];
    return fp_fold(sum);
}

/* RFC 1624, equation 3. */
FP_INLINE __u16 fp_check_adjust(__u16 check, __u16 before, __u16 after)
{
    return (__u16)~fp_fold((__u32)(__u16)~check + (__u16)~before + after);
}

/* The caller has seen a TTL of at least 1. */
FP_INLINE void fp_decrement_ttl(struct fp_ip4 *ip)
{
    __u16 before, after;
    __builtin_memcpy(&before, &ip->ttl, 2);
    ip->ttl--;
    __builtin_memcpy(&after, &ip->ttl, 2);
    ip->check = fp_check_adjust(ip->check, before, after);
}

FP_INLINE void fp_set_tos(struct fp_ip4 *ip, __u8 tos)
{
    __u16 before, after;
    __builtin_memcpy(&before, ip, 2);
    ip->tos = tos;
    __builtin_memcpy(&after, ip, 2);
    ip->check = fp_check_adjust(ip->check, before, after);
}

/* Never forwarded, as source or destination: 0/8, 127/8, multicast, limited broadcast (as fp_ip_martian of the core). */
FP_INLINE _Bool fp_martian(__u32 address)
{
    __u32 top = address >> 24;
    return top == 0 || top == 127 || (top & 0xf0) == 0xe0 || address == 0xffffffff;
}

/* One hop less and this TOS or traffic class, in the header's first FP_HEAD_BYTES. */
FP_INLINE void fp_age(struct fp_inner *inner, __u8 tos)
{
    if (inner->version == 6) {
        inner->v6.hops--;
        inner->v6.version_class_label =
            (inner->v6.version_class_label & FP_BE32(0xf00fffff)) | FP_BE32((__u32)tos << 20);
        return;
    }
    fp_decrement_ttl(&inner->v4);
    if (tos != inner->tos)
        fp_set_tos(&inner->v4, tos);
}

/* The same for IPv6: multicast, link-local, and all of ::/80 (as ip6.c of the core). */
FP_INLINE _Bool fp_martian6(const __be32 *address)
{
    __u32 top = FP_BE32(address[0]);
    return top >> 24 == 0xff || top >> 22 == 0xfe80 >> 6 || (!top && !address[1] && !(FP_BE32(address[2]) >> 16));
}

FP_INLINE _Bool fp_is_fragment(const struct fp_inner *inner)
{
    return inner->version == 6 ? inner->protocol == FP_FRAGMENT6 : inner->v4.fragment_be & FP_BE16(FP_MF_OR_OFFSET);
}

FP_INLINE _Bool fp_is_martian(const struct fp_inner *inner)
{
    if (inner->version == 6)
        return fp_martian6(inner->v6.source_be) || fp_martian6(inner->v6.destination_be);
    return fp_martian(FP_BE32(inner->v4.source_be)) || fp_martian(FP_BE32(inner->v4.destination_be));
}

/* Inner ECN bits after decapsulation (RFC 6040, figure 4), or -1: drop. */
FP_INLINE int fp_ecn_combine(__u8 inner, __u8 outer)
{
    if (inner == FP_NOT_ECT)
        return outer == FP_CE ? -1 : FP_NOT_ECT;
    if (outer == FP_CE || inner == FP_CE)
        return FP_CE;
    return outer == FP_ECT_1 ? FP_ECT_1 : inner;
}

#endif
