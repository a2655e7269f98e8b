/*
 * run.h: what every program has in common: the start of a run, its ends (leave, drop, send), the size of a packet, probes.
 */
#ifndef FLANPY_BPF_RUN_H
#define FLANPY_BPF_RUN_H

#include "packet.h"
#include "state.h"

/* All that a program knows of its packet; lives on the stack of one run. */
struct fp_run {
    struct __sk_buff *skb;
    struct fp_bpf_counters *counters;
    void *snapshot;
    const struct fp_bpf_header *header;
    struct fp_trail trail;
    _Bool six;     /* the outer header is IPv6 */
    __u32 headers; /* bytes of the outer IP and UDP headers */
};

FP_INLINE _Bool fp_start(struct fp_run *run, struct __sk_buff *skb)
{
    run->skb = skb;
    run->trail = (struct fp_trail){0};
    run->counters = fp_counts();
    run->snapshot = fp_snapshot();
    if (!run->counters || !run->snapshot)
        return 0;
    run->header = fp_header(run->snapshot);
    if (!run->header || run->header->layout != FP_BPF_LAYOUT)
        return 0;
    run->six = run->header->flags & FP_BPF_SIX;
    run->headers = run->six ? FP_OUTER6_BYTES : FP_OUTER_BYTES;
    return 1;
}

/* Read an inner header whose first 20 bytes are there already. False: an IPv6 header is not there as a whole. */
FP_INLINE _Bool fp_read_inner(struct __sk_buff *skb, __u32 offset, struct fp_inner *inner)
{
    inner->version = inner->bytes[0] >> 4;
    if (inner->version != 6) {
        inner->total = FP_BE16(inner->v4.total_be);
        inner->headers = (inner->v4.version_ihl & 0x0fU) * 4;
        inner->protocol = inner->v4.protocol;
        inner->ttl = inner->v4.ttl;
        inner->tos = inner->v4.tos;
        return 1;
    }
    if (bpf_skb_load_bytes(skb, offset, &inner->v6, sizeof inner->v6))
        return 0;
    inner->total = FP_IP6_BYTES + FP_BE16(inner->v6.payload_be);
    inner->headers = FP_IP6_BYTES;
    inner->protocol = inner->v6.next;
    inner->ttl = inner->v6.hops;
    inner->tos = (__u8)(FP_BE32(inner->v6.version_class_label) >> 20);
    return 1;
}

FP_INLINE __u32 fp_word_of(const struct fp_run *run, const __be32 *address6)
{
    return fp_lookup6(run->snapshot, run->header, fp_half(address6), fp_half(address6 + 2));
}

FP_INLINE __u32 fp_source_word(struct fp_run *run, const struct fp_inner *inner)
{
    return inner->version == 6 ? fp_word_of(run, inner->v6.source_be)
                               : fp_lookup(run->snapshot, &run->trail, FP_BE32(inner->v4.source_be));
}

FP_INLINE __u32 fp_destination_word(struct fp_run *run, const struct fp_inner *inner)
{
    return inner->version == 6 ? fp_word_of(run, inner->v6.destination_be)
                               : fp_lookup(run->snapshot, &run->trail, FP_BE32(inner->v4.destination_be));
}

FP_INLINE int fp_leave(struct fp_run *run, enum fp_bpf_counter reason)
{
    run->counters->others[reason]++;
    return FP_TC_NEXT;
}

FP_INLINE int fp_drop(struct fp_run *run, enum fp_verdict verdict, __u32 packets, __u64 bytes)
{
    fp_count(run->counters, verdict, packets, bytes);
    return FP_TC_DROP;
}

/* Send through an interface; the kernel puts the link header on. */
FP_INLINE int fp_redirect(__u32 ifindex, struct bpf_redir_neigh *next)
{
    if (next->nh_family)
        return (int)bpf_redirect_neigh(ifindex, next, sizeof *next, 0);
    return (int)bpf_redirect_neigh(ifindex, (void *)0, 0, 0);
}

/* A packet of real size stands for itself, a superpacket for its segments. */
struct fp_size {
    __u32 headers; /* of one segment; 0: not a superpacket */
    __u32 largest; /* bytes of the largest segment */
    __u32 packets;
    __u64 bytes;
};

/* How a packet of `bytes` at `offset` counts. 0, or -1: a superpacket that is neither TCP nor UDP, or without its header. */
FP_INLINE int fp_measure(struct __sk_buff *skb, __u32 offset, const struct fp_inner *inner, __u32 bytes, struct fp_size *size)
{
    __u32 gso_bytes = skb->gso_size;
    if (!gso_bytes) {
        *size = (struct fp_size){.headers = 0, .largest = bytes, .packets = 1, .bytes = bytes};
        return 0;
    }
    __u32 headers = inner->headers;
    __u8 data_offset = 0;
    if (inner->protocol == FP_UDP)
        headers += sizeof(struct fp_udp);
    else if (inner->protocol != FP_TCP || bpf_skb_load_bytes(skb, offset + headers + 12, &data_offset, 1))
        return -1;
    else
        headers += (__u32)(data_offset >> 4) * 4;
    if (headers >= bytes)
        return -1;
    __u32 payload = bytes - headers;
    __u32 packets = (payload + gso_bytes - 1) / gso_bytes;
    size->headers = headers;
    size->largest = headers + gso_bytes;
    size->packets = packets;
    size->bytes = payload + (__u64)packets * headers;
    return 0;
}

/*
 * Whether the checksum over a header, options included, is right. Its length field has been checked. Options are read word by
 * word: older verifiers do not follow a length that is not constant.
 */
FP_INLINE _Bool fp_checksum_is_right(const struct fp_run *run, __u32 offset, const struct fp_ip4 *ip)
{
    __u32 sum = fp_ip4_sum(ip);
    __u32 options = (ip->version_ihl & 0x0fU) - 5;
    for (__u32 i = 0; i < 10 && i < options; i++) {
        __u16 half[2];
        if (bpf_skb_load_bytes(run->skb, offset + sizeof *ip + i * 4, half, sizeof half))
            return 0;
        sum += (__u32)half[0] + half[1];
    }
    return fp_fold(sum) == 0xffff;
}

/* The two ports of an inner TCP packet. False: it is none, or one with IP options, or a fragment: a later one has somebody's data there. */
FP_INLINE _Bool fp_tcp_ports(struct __sk_buff *skb, __u32 offset, const struct fp_inner *inner, __be32 *ports)
{
    return inner->protocol == FP_TCP &&
           (inner->version == 6 || (inner->headers == FP_IP4_BYTES && !(inner->v4.fragment_be & FP_BE16(FP_MF_OR_OFFSET)))) &&
           !bpf_skb_load_bytes(skb, offset + inner->headers, ports, sizeof *ports);
}

/*
 * A probe: TCP from port 0 to port 0, which nobody speaks. The datapath sends one of full size to each peer now and then, so that
 * both ends know whether superpackets arrive whole without waiting for a flow that shows it. Probes are neither counted nor delivered.
 */
FP_INLINE _Bool fp_is_probe(struct __sk_buff *skb, __u32 offset, const struct fp_inner *inner)
{
    __be32 ports = 1;
    return fp_tcp_ports(skb, offset, inner, &ports) && ports == 0;
}

#endif
