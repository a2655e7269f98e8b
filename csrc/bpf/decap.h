/*
 * decap.h: from a packet of these programs at the underlay's ingress to where inner packets go; or left to the stack untouched.
 */
#ifndef FLANPY_BPF_DECAP_H
#define FLANPY_BPF_DECAP_H

#include "run.h"

struct fp_tunnel {
    struct fp_outer outer;
    struct fp_inner inner;
};

/* The end of the link header and the changed start of the inner one, stored by one call where that leaves sums as they are. */
struct fp_tail {
    __be16 type_be;
    __u8 inner[FP_HEAD_BYTES];
};

/* Whether this is a packet of the overlay for these programs; if not, `reason` says what to count, or is negative. */
FP_INLINE _Bool fp_is_ours(const struct fp_run *run, const struct fp_tunnel *tunnel, int *reason)
{
    const struct fp_ip4 *ip = &tunnel->outer.ip;
    *reason = -1;
    if (ip->destination_be != run->header->address_be || tunnel->outer.udp.destination_be != run->header->port_be)
        return 0;
    if (ip->fragment_be & FP_BE16(FP_MF_OR_OFFSET)) {
        *reason = FP_BPF_UP_FRAGMENT;
        return 0;
    }
    *reason = FP_BPF_UP_SOCKET;
    return tunnel->outer.udp.check == 0;
}

/* The header of an inner packet of which `bytes` are there, or its verdict. */
FP_INLINE enum fp_verdict fp_judge_header(const struct fp_run *run, const struct fp_inner *inner, __u32 bytes)
{
    if (inner->version == 6) {
        if (bytes >= FP_IP6_BYTES && inner->total == FP_IP6_BYTES && inner->protocol == 0) /* a jumbogram, RFC 2675 */
            return FP_DROP_BAD_HEADER;
        return inner->total > bytes ? FP_DROP_TRUNCATED : FP_DECAPSULATED;
    }
    if (inner->version != 4 || inner->headers < FP_IP4_BYTES || inner->total < inner->headers)
        return FP_DROP_BAD_HEADER;
    if (inner->total > bytes)
        return FP_DROP_TRUNCATED;
    return fp_checksum_is_right(run, FP_ETHERNET_BYTES + FP_OUTER_BYTES, &inner->v4) ? FP_DECAPSULATED : FP_DROP_BAD_HEADER;
}

/* The verdict over an inner packet; FP_DECAPSULATED: it may pass. The same rules, in the same order, as the userspace core. */
FP_INLINE enum fp_verdict fp_judge(const struct fp_run *run, const struct fp_tunnel *tunnel, __u32 bytes)
{
    const struct fp_inner *inner = &tunnel->inner;
    enum fp_verdict verdict = fp_judge_header(run, inner, bytes);
    if (verdict != FP_DECAPSULATED)
        return verdict;
    if (fp_is_martian(inner))
        return FP_DROP_MARTIAN;
    __u32 source = fp_source_word(run, inner);
    if (run->header->flags & FP_BPF_SOURCE_CHECK) {
        __u32 sender = FP_BE32(tunnel->outer.ip.source_be);
        const struct fp_bpf_hop *owner = fp_hop(run->snapshot, source);
        if (!owner || owner->address != sender)
            return fp_knows(run->snapshot, run->header->hops, sender) ? FP_DROP_SPOOFED : FP_DROP_UNKNOWN_PEER;
    } else if (source == FP_BPF_LOCAL) {
        return FP_DROP_SPOOFED; /* no peer, NATed or not, has one of our own addresses */
    }
    if (fp_destination_word(run, inner) != FP_BPF_LOCAL)
        return FP_DROP_NOT_LOCAL;
    if (fp_ecn_combine(inner->tos & 3, tunnel->outer.ip.tos & 3) < 0)
        return FP_DROP_ECN;
    return FP_DECAPSULATED;
}

/*
 * Learn from an accepted packet: that superpackets of its sender reach us whole, and what it says of ours. Returns whether a
 * single TCP packet is worth merging: its sender's superpackets have not come whole for a while.
 */
FP_INLINE _Bool fp_learn(const struct fp_run *run, const struct fp_tunnel *tunnel)
{
    __u32 sender = FP_BE32(tunnel->outer.ip.source_be);
    __u16 id = FP_BE16(tunnel->outer.ip.id);
    __u64 *whole = fp_note(&fp_wholes, sender);
    if (id & FP_BPF_ID_WHOLE)
        fp_note_set(fp_note(&fp_thanks, sender), sender, id >> 8 & 0x7f);
    if (run->skb->gso_size) {
        fp_note_set(whole, sender, fp_units(tunnel->inner.total));
        return 0;
    }
    return run->header->flags & FP_BPF_INNER_GRO && tunnel->inner.protocol == FP_TCP && !fp_note_units(whole, sender);
}

/* Whether the host would send this inner packet out of the pod bridge; then `next` is the pod or the router behind it. */
FP_INLINE _Bool fp_is_for_bridge(const struct fp_run *run, const struct fp_inner *inner, struct bpf_redir_neigh *next)
{
    struct bpf_fib_lookup way = {
        .family = inner->version == 6 ? FP_AF_INET6 : FP_AF_INET,
        .ifindex = run->header->device,
        .tot_len = 0, /* checked against the device's MTU then */
    };
    if (inner->version == 6) {
        __builtin_memcpy(way.ipv6_src, inner->v6.source_be, sizeof way.ipv6_src);
        __builtin_memcpy(way.ipv6_dst, inner->v6.destination_be, sizeof way.ipv6_dst);
    } else {
        way.ipv4_src = inner->v4.source_be;
        way.ipv4_dst = inner->v4.destination_be;
    }
    __u8 family = way.family;
    long result = bpf_fib_lookup(run->skb, &way, sizeof way, 0);
    if ((result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH) || way.ifindex != run->header->bridge ||
        way.family != family)
        return 0;
    if (result == BPF_FIB_LKUP_RET_SUCCESS) {
        next->nh_family = family;
        __builtin_memcpy(next->ipv6_nh, way.ipv6_dst, sizeof next->ipv6_nh); /* the same memory as IPv4's */
    }
    return 1;
}

/* Hand a decapsulated packet on. */
FP_INLINE int fp_deliver(struct fp_run *run, const struct fp_inner *inner, _Bool merge)
{
    struct bpf_redir_neigh next = {0};
    if (merge) {
        run->counters->others[FP_BPF_MERGED]++;
        return (int)bpf_redirect(run->header->gro, 0);
    }
    if (run->header->flags & FP_BPF_BYPASS && fp_is_for_bridge(run, inner, &next)) {
        run->counters->others[FP_BPF_BYPASSED]++;
        return fp_redirect(run->header->bridge, &next);
    }
    return (int)bpf_redirect(run->header->device, BPF_F_INGRESS);
}

/* Take the outer headers off, and store what has changed behind them. 0, or what a helper said: the packet is spoilt. */
FP_INLINE long fp_strip(struct fp_run *run, struct fp_tunnel *tunnel)
{
    struct fp_inner *inner = &tunnel->inner;
    _Bool six = inner->version == 6;
    struct fp_tail tail = {.type_be = six ? FP_BE16(FP_ETHERTYPE_IP6) : FP_BE16(FP_ETHERTYPE_IP)};
    __u8 ecn = (__u8)fp_ecn_combine(inner->tos & 3, tunnel->outer.ip.tos & 3);
    fp_age(inner, (inner->tos & 0xfc) | ecn);
    __builtin_memcpy(tail.inner, inner->bytes, FP_HEAD_BYTES);
    long failed = bpf_skb_adjust_room(run->skb, -(__s32)FP_OUTER_BYTES, BPF_ADJ_ROOM_MAC,
                                      BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET |
                                          (six ? FP_ADJ_ROOM_DECAP_L3_IPV6 : 0));
    if (failed)
        return failed;
    if (!six)
        return bpf_skb_store_bytes(run->skb, FP_ETHERNET_BYTES - sizeof tail.type_be, &tail, sizeof tail, 0);
    /* No header checksum makes up for the change: where the device has summed up the packet, that sum, which begins at the header, has
     * to follow. */
    failed = bpf_skb_store_bytes(run->skb, FP_ETHERNET_BYTES - sizeof tail.type_be, &tail.type_be, sizeof tail.type_be, 0);
    return failed ? failed
                  : bpf_skb_store_bytes(run->skb, FP_ETHERNET_BYTES, tail.inner, sizeof tail.inner, BPF_F_RECOMPUTE_CSUM);
}

FP_INLINE int fp_decapsulate(struct __sk_buff *skb)
{
    struct fp_run run;
    struct fp_tunnel tunnel;
    struct fp_size size;
    int reason;
    /* Frames to others (the card listens to all) and of VLANs that nobody has taken off: the host would not have them. */
    if (skb->pkt_type != FP_PACKET_HOST || skb->vlan_present)
        return FP_TC_NEXT;
    if (skb->protocol != FP_BE16(FP_ETHERTYPE_IP) ||
        bpf_skb_load_bytes(skb, FP_ETHERNET_BYTES, &tunnel, FP_OUTER_BYTES + FP_IP4_BYTES))
        return FP_TC_NEXT;
    /* Options in the outer header: the socket can have them. A wrong checksum: the stack drops it. */
    if (tunnel.outer.ip.version_ihl != 0x45 || tunnel.outer.ip.protocol != FP_UDP ||
        fp_ip4_sum(&tunnel.outer.ip) != 0xffff || !fp_start(&run, skb))
        return FP_TC_NEXT;
    if (!fp_is_ours(&run, &tunnel, &reason))
        return reason < 0 ? FP_TC_NEXT : fp_leave(&run, (enum fp_bpf_counter)reason);

    __u32 total = FP_BE16(tunnel.outer.ip.total_be), length = FP_BE16(tunnel.outer.udp.length_be);
    /* Lengths that contradict each other are the stack's to judge; a train of datagrams must not be stripped as one. */
    if (total > skb->len - FP_ETHERNET_BYTES || length + sizeof(struct fp_ip4) != total || length < FP_OUTER_BYTES ||
        !fp_read_inner(skb, FP_ETHERNET_BYTES + FP_OUTER_BYTES, &tunnel.inner) ||
        (skb->gso_size && tunnel.inner.total + FP_OUTER_BYTES != total))
        return fp_leave(&run, FP_BPF_UP_SOCKET);
    enum fp_verdict verdict = fp_judge(&run, &tunnel, length - (__u32)sizeof(struct fp_udp));
    if (verdict == FP_DECAPSULATED && tunnel.inner.ttl <= 1)
        return fp_leave(&run, FP_BPF_UP_ANSWER);
    if (fp_measure(skb, FP_ETHERNET_BYTES + FP_OUTER_BYTES, &tunnel.inner, tunnel.inner.total, &size))
        return fp_leave(&run, FP_BPF_UP_SOCKET);
    struct fp_bpf_peer *peer = fp_peer(FP_BE32(tunnel.outer.ip.source_be));
    if (verdict != FP_DECAPSULATED) {
        if (peer)
            peer->dropped_in += size.packets;
        return fp_drop(&run, verdict, size.packets, size.bytes);
    }

    _Bool merge = fp_learn(&run, &tunnel);
    if (fp_is_probe(skb, FP_ETHERNET_BYTES + FP_OUTER_BYTES, &tunnel.inner)) {
        run.counters->others[FP_BPF_PROBES_IN]++;
        return FP_TC_DROP;
    }
    if (fp_strip(&run, &tunnel))
        return fp_drop(&run, FP_DROP_WRITE, size.packets, size.bytes);
    /* The device may have verified the outer checksum (there is none) and the inner one: one level less now. */
    bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
    fp_count(run.counters, FP_DECAPSULATED, size.packets, size.bytes);
    if (peer)
        fp_add(&peer->received, size.packets, size.bytes);
    if (size.headers)
        run.counters->others[FP_BPF_SUPERPACKETS_IN]++;
    return fp_deliver(&run, &tunnel.inner, merge);
}

#endif
