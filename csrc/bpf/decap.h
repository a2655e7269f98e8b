/*
 * decap.h: from a packet of these programs at the underlay's ingress to where inner packets go; or left to the stack untouched.
 */
#ifndef FLANPY_BPF_DECAP_H
#define FLANPY_BPF_DECAP_H

#include "run.h"

struct fp_tunnel {
    struct fp_outer outer;
    struct fp_inner inner;
    struct fp_address sender;
    __u32 total; /* bytes of the outer packet, by its own account */
    __u16 word;  /* what the sender says of our superpackets; 0: nothing */
    __u8 tos;
    _Bool fragment; /* the outer packet is one; the first has the UDP header that says whose it is */
};

/* The end of the link header and the changed start of the inner one, stored by one call where that leaves sums as they are. */
struct fp_tail {
    __be16 type_be;
    __u8 inner[FP_HEAD_BYTES];
};

/* Outer headers over IPv4. Options: the socket can have them. A wrong checksum: the stack drops it. */
FP_INLINE _Bool fp_read_outer4(struct __sk_buff *skb, struct fp_tunnel *tunnel)
{
    const struct fp_ip4 *ip = &tunnel->outer.v4;
    if (fp_load(skb, FP_ETHERNET_BYTES, &tunnel->outer.v4, FP_OUTER_BYTES + FP_IP4_BYTES) || ip->version_ihl != 0x45 ||
        ip->protocol != FP_UDP || fp_ip4_sum(ip) != 0xffff)
        return 0;
    tunnel->sender = fp_mapped(ip->source_be);
    tunnel->total = FP_BE16(ip->total_be);
    tunnel->word = FP_BE16(ip->id);
    tunnel->tos = ip->tos;
    tunnel->fragment = ip->fragment_be & FP_BE16(FP_MF_OR_OFFSET);
    return 1;
}

/* Whether this is the first fragment of a UDP packet over IPv6, whose UDP header stands behind another (RFC 8200, section 4.5). */
FP_INLINE _Bool fp_read_fragment6(struct __sk_buff *skb, struct fp_tunnel *tunnel)
{
    struct {
        struct fp_fragment6 fragment;
        struct fp_udp udp;
    } start;
    if (tunnel->outer.v6.next != FP_FRAGMENT6 || bpf_skb_load_bytes(skb, FP_ETHERNET_BYTES + FP_IP6_BYTES, &start, sizeof start) ||
        start.fragment.next != FP_UDP || start.fragment.offset_be & FP_BE16(FP_OFFSET6))
        return 0;
    tunnel->outer.udp = start.udp;
    tunnel->fragment = 1;
    return 1;
}

/* The same over IPv6. Extension headers: the socket can have them; of these, fragments are told apart to be counted. */
FP_INLINE _Bool fp_read_outer6(struct __sk_buff *skb, struct fp_tunnel *tunnel)
{
    const struct fp_ip6 *ip = &tunnel->outer.v6;
    tunnel->fragment = 0;
    if (fp_load(skb, FP_ETHERNET_BYTES, &tunnel->outer, FP_OUTER6_BYTES + FP_IP4_BYTES) ||
        (ip->next != FP_UDP && !fp_read_fragment6(skb, tunnel)))
        return 0;
    __u32 first = FP_BE32(ip->version_class_label);
    if (first >> 28 != 6)
        return 0;
    tunnel->sender = fp_address_of(ip->source_be);
    tunnel->total = FP_IP6_BYTES + FP_BE16(ip->payload_be);
    tunnel->word = (first & (FP_BPF_LABEL_MARK | 0xff)) == FP_BPF_LABEL_MARK ? (__u16)first : 0;
    tunnel->tos = (__u8)(first >> 20);
    return 1;
}

FP_INLINE _Bool fp_is_to_us(const struct fp_run *run, const struct fp_outer *outer)
{
    struct fp_address target = run->six ? fp_address_of(outer->v6.destination_be) : fp_mapped(outer->v4.destination_be);
    return fp_is_same(&run->header->own, &target) && outer->udp.destination_be == run->header->port_be;
}

/* Whether this is a packet of the overlay for these programs; if not, `reason` says what to count, or is negative. */
FP_INLINE _Bool fp_is_ours(const struct fp_run *run, const struct fp_tunnel *tunnel, int *reason)
{
    *reason = -1;
    if (!fp_is_to_us(run, &tunnel->outer))
        return 0;
    if (tunnel->fragment) {
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
    return fp_checksum_is_right(run, FP_ETHERNET_BYTES + run->headers, &inner->v4) ? FP_DECAPSULATED : FP_DROP_BAD_HEADER;
}

/* The verdict over an inner packet; FP_DECAPSULATED: it may pass. The same rules, in the same order, as the userspace core. */
FP_INLINE enum fp_verdict fp_judge(struct fp_run *run, const struct fp_tunnel *tunnel, __u32 bytes)
{
    const struct fp_inner *inner = &tunnel->inner;
    enum fp_verdict verdict = fp_judge_header(run, inner, bytes);
    if (verdict != FP_DECAPSULATED)
        return verdict;
    if (fp_is_martian(inner))
        return FP_DROP_MARTIAN;
    __u32 source = fp_source_word(run, inner);
    if (run->header->flags & FP_BPF_SOURCE_CHECK) {
        const struct fp_bpf_hop *owner = fp_hop(run->snapshot, source);
        if (!owner || !fp_is_same(&owner->address, &tunnel->sender))
            return fp_knows(run->snapshot, run->header->hops, &tunnel->sender) ? FP_DROP_SPOOFED : FP_DROP_UNKNOWN_PEER;
    } else if (source == FP_BPF_LOCAL) {
        return FP_DROP_SPOOFED; /* no peer, NATed or not, has one of our own addresses */
    }
    if (fp_destination_word(run, inner) != FP_BPF_LOCAL)
        return FP_DROP_NOT_LOCAL;
    if (fp_ecn_combine(inner->tos & 3, tunnel->tos & 3) < 0)
        return FP_DROP_ECN;
    return FP_DECAPSULATED;
}

/*
 * Learn from an accepted packet: that superpackets of its sender reach us whole, and what it says of ours. Returns whether a
 * single TCP packet is worth merging: its sender's superpackets have not come whole for a while, and it does not send bulk in trains.
 */
FP_INLINE _Bool fp_learn(const struct fp_run *run, const struct fp_tunnel *tunnel)
{
    __u32 sender = fp_peer_key(&tunnel->sender);
    __u64 *whole = fp_note(&fp_wholes, sender);
    if (tunnel->word & FP_BPF_ID_WHOLE)
        fp_note_set(fp_note(&fp_thanks, sender), sender, tunnel->word >> 8 & 0x7f);
    if (run->skb->gso_size) {
        fp_note_set(whole, sender, fp_units(tunnel->inner.total));
        return 0;
    }
    return (run->header->flags & (FP_BPF_INNER_GRO | FP_BPF_TRAINS)) == FP_BPF_INNER_GRO && tunnel->inner.protocol == FP_TCP &&
           !fp_note_units(whole, sender);
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
    __u8 ecn = (__u8)fp_ecn_combine(inner->tos & 3, tunnel->tos & 3);
    fp_age(inner, (inner->tos & 0xfc) | ecn);
    __builtin_memcpy(tail.inner, inner->bytes, FP_HEAD_BYTES);
    __u64 other = six == run->six ? 0 : six ? FP_ADJ_ROOM_DECAP_L3_IPV6 : FP_ADJ_ROOM_DECAP_L3_IPV4; /* also changes skb->protocol */
    long failed = bpf_skb_adjust_room(run->skb, -(__s32)run->headers, BPF_ADJ_ROOM_MAC,
                                      BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET | other);
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

/* Drop a packet of a peer's, or of somebody else's (NULL). */
FP_INLINE int fp_refuse(struct fp_run *run, struct fp_bpf_peer *peer, enum fp_verdict verdict, const struct fp_size *size)
{
    if (peer)
        peer->dropped_in += size->packets;
    return fp_drop(run, verdict, size->packets, size->bytes);
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
    _Bool six = skb->protocol == FP_BE16(FP_ETHERTYPE_IP6);
    if (six ? !fp_read_outer6(skb, &tunnel) : skb->protocol != FP_BE16(FP_ETHERTYPE_IP) || !fp_read_outer4(skb, &tunnel))
        return FP_TC_NEXT;
    if (!fp_start(&run, skb) || run.six != six)
        return FP_TC_NEXT;
    if (!fp_is_ours(&run, &tunnel, &reason))
        return reason < 0 ? FP_TC_NEXT : fp_leave(&run, (enum fp_bpf_counter)reason);

    __u32 length = FP_BE16(tunnel.outer.udp.length_be), inner_at = FP_ETHERNET_BYTES + run.headers;
    /* Lengths that contradict each other are the stack's to judge; a train of datagrams must not be stripped as one. */
    if (tunnel.total > skb->len - FP_ETHERNET_BYTES || length + run.headers != tunnel.total + sizeof(struct fp_udp) ||
        length < sizeof(struct fp_udp) + FP_IP4_BYTES || !fp_read_inner(skb, inner_at, &tunnel.inner) ||
        (skb->gso_size && tunnel.inner.total + run.headers != tunnel.total))
        return fp_leave(&run, FP_BPF_UP_SOCKET);
    enum fp_verdict verdict = fp_judge(&run, &tunnel, length - (__u32)sizeof(struct fp_udp));
    if (verdict == FP_DECAPSULATED && tunnel.inner.ttl <= 1)
        return fp_leave(&run, FP_BPF_UP_ANSWER);
    if (fp_measure(skb, inner_at, &tunnel.inner, tunnel.inner.total, &size))
        return fp_leave(&run, FP_BPF_UP_SOCKET);
    struct fp_bpf_peer *peer = fp_peer(&tunnel.sender);
    if (verdict != FP_DECAPSULATED)
        return fp_refuse(&run, peer, verdict, &size);

    _Bool merge = fp_learn(&run, &tunnel);
    if (fp_is_probe(skb, inner_at, &tunnel.inner)) {
        run.counters->others[FP_BPF_PROBES_IN]++;
        return FP_TC_DROP;
    }
    if (fp_strip(&run, &tunnel))
        return fp_refuse(&run, peer, FP_DROP_WRITE, &size);
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
