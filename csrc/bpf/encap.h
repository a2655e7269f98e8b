/*
 * encap.h: from an inner packet at a device's egress, or at the pod bridge, to the underlay; or left to userspace untouched.
 */
#ifndef FLANPY_BPF_ENCAP_H
#define FLANPY_BPF_ENCAP_H

#include "run.h"

#define FP_TRAIN_NS (50 * 1000 * 1000ULL) /* bulk stays with userspace that long after its last large packet */
#define FP_DRAIN_NS (10 * 1000 * 1000ULL) /* and then until half of this has passed without a packet, which userspace may still have */
#define FP_DRAINS 127u                    /* but not for ever: 0.6 s at least. Counted in the low bits of the time */

/*
 * A number for the two ends of an inner packet, odd; or even, for a flow of TCP (`ports` 0: UDP and fragments, of which nobody knows the
 * flow). Slot 0 is for all of them. Of a product only the upper bits depend on all of the factor, and the last byte of an IPv4 source
 * stands uppermost in it: so those bits are the number.
 */
FP_INLINE __u32 fp_pair(const struct fp_inner *inner, __be32 ports)
{
    const __u64 odd = 0xd6e8feb86659fd93ULL;
    __u64 mixed;
    if (inner->version == 6)
        mixed = ((fp_half(inner->v6.source_be) * odd + fp_half(inner->v6.source_be + 2)) * odd +
                 fp_half(inner->v6.destination_be)) * odd + fp_half(inner->v6.destination_be + 2);
    else
        mixed = (__u64)inner->v4.source_be << 32 | inner->v4.destination_be;
    mixed *= odd;
    if (!ports)
        return (__u32)(mixed >> 52) | 1;
    __u32 flow = (__u32)((mixed ^ ports) * odd >> 52) & ~1u;
    return flow ? flow : 2;
}

/* Whether it is longer ago than that. It may lie ahead: another CPU wrote it down after this one had asked for the time. */
FP_INLINE _Bool fp_is_past(__u64 now, __u64 then, __u64 period)
{
    return (__s64)(now - then) > (__s64)period;
}

/*
 * Whether a packet must follow large ones that userspace has been left lately: it would overtake them. `starts`: it is such a one itself.
 * `waits`: it follows until there is a pause, too. The first slot tells whether anybody sent one lately, so that most packets look no further.
 */
FP_INLINE _Bool fp_is_train(const struct fp_inner *inner, __be32 ports, _Bool starts, _Bool waits)
{
    __u64 *any = fp_slot(&fp_trains, 0);
    if (!any || (!*any && !starts))
        return 0;
    __u64 now = bpf_ktime_get_ns();
    if (!starts && fp_is_past(now, *any, FP_TRAIN_NS))
        return 0;
    __u64 *pair = fp_slot(&fp_trains, fp_pair(inner, ports));
    __u64 since = pair ? *pair : 0;
    if (!pair || (!starts && fp_is_past(now, since, FP_TRAIN_NS)))
        return 0;
    if (starts) {
        *pair = now & ~(__u64)FP_DRAINS;
        *any = now;
    } else if (waits && fp_is_past(now, since, FP_TRAIN_NS - FP_DRAIN_NS / 2) && (since & FP_DRAINS) < FP_DRAINS) {
        *pair = ((now - FP_TRAIN_NS + FP_DRAIN_NS) & ~(__u64)FP_DRAINS) | ((since & FP_DRAINS) + 1);
        if (*any < *pair)
            *any = *pair;
    }
    return 1;
}

/* Fields that this node never forwards, or that only the userspace core judges; 0 when the packet is plain. */
FP_INLINE _Bool fp_is_odd(const struct fp_inner *inner, __u32 bytes)
{
    if (inner->version == 6 ? inner->total == FP_IP6_BYTES && inner->protocol == 0
                            : inner->version != 4 || inner->headers < FP_IP4_BYTES)
        return 1;
    return inner->total != bytes || bytes + FP_OUTER6_BYTES > 0xffff || inner->ttl <= 1 || fp_is_martian(inner);
}

/*
 * Ask the kernel for the way to the peer. Fills `next` when the neighbour is known. If not, its family stays 0 and the kernel has
 * to look the way up again: a packet that waits for a neighbour must carry the right route, and it still carries the inner one.
 */
FP_INLINE int fp_find_way(struct fp_run *run, const struct fp_bpf_hop *hop, __u32 outer_bytes, struct bpf_redir_neigh *next)
{
    struct bpf_fib_lookup way = {
        .family = run->six ? FP_AF_INET6 : FP_AF_INET,
        .l4_protocol = FP_UDP,
        .tot_len = (__u16)outer_bytes, /* checked against the path MTU, learnt exceptions included */
        .ifindex = run->header->underlay,
    };
    __u8 family = way.family;
    if (run->six) {
        fp_put_address(way.ipv6_src, &run->header->own);
        fp_put_address(way.ipv6_dst, &hop->address);
    } else {
        way.ipv4_src = FP_BE32(run->header->own.low);
        way.ipv4_dst = FP_BE32(hop->address.low);
    }
    long result = bpf_fib_lookup(run->skb, &way, sizeof way, BPF_FIB_LOOKUP_OUTPUT);
    if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
        return FP_BPF_UP_ANSWER;
    /* Also when the interface's forwarding is switched off: then the kernel looks up no way and no MTU. */
    if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
        return FP_BPF_UP_NEIGHBOUR;
    /* Over IPv6 the best route may leave by another interface, where the next hop is. */
    if (way.ifindex != run->header->underlay)
        return FP_BPF_UP_NEIGHBOUR;
    if (result == BPF_FIB_LKUP_RET_SUCCESS && way.family == family) {
        next->nh_family = family;
        __builtin_memcpy(next->ipv6_nh, way.ipv6_dst, sizeof next->ipv6_nh); /* the same memory as IPv4's */
    }
    return -1;
}

/* Outer headers and the changed start of the inner one, stored by one call. */
struct fp_head {
    struct fp_outer outer;
    __u8 inner[FP_HEAD_BYTES];
};

/* A packet on its way out, all checked. */
struct fp_parcel {
    const struct fp_bpf_hop *hop;
    struct fp_inner inner;
    struct fp_size size;
    __u32 bytes;
    __u32 link; /* of the link header that is there already */
    _Bool flat;
    _Bool probe;
    __u16 word; /* what we say of the peer's superpackets; 0: nothing */
    __u32 label; /* of the outer header, if it is IPv6 */
};

FP_INLINE void fp_fill_ip4(struct fp_ip4 *ip, const struct fp_run *run, const struct fp_parcel *parcel, __u8 tos)
{
    *ip = (struct fp_ip4){.version_ihl = 0x45,
                          .tos = tos,
                          .total_be = FP_BE16(parcel->bytes + FP_OUTER_BYTES),
                          .id = FP_BE16(parcel->word),
                          .fragment_be = FP_BE16(FP_DF),
                          .ttl = 64,
                          .protocol = FP_UDP,
                          .source_be = FP_BE32(run->header->own.low),
                          .destination_be = FP_BE32(parcel->hop->address.low)};
    ip->check = (__u16)~fp_ip4_sum(ip);
}

FP_INLINE void fp_fill_ip6(struct fp_ip6 *ip, const struct fp_run *run, const struct fp_parcel *parcel, __u8 tos)
{
    ip->version_class_label = FP_BE32(6U << 28 | (__u32)tos << 20 | parcel->label);
    ip->payload_be = FP_BE16(parcel->bytes + (__u32)sizeof(struct fp_udp));
    ip->next = FP_UDP;
    ip->hops = 64;
    fp_put_address(ip->source_be, &run->header->own);
    fp_put_address(ip->destination_be, &parcel->hop->address);
}

FP_INLINE void fp_fill(struct fp_head *head, const struct fp_run *run, struct fp_parcel *parcel)
{
    __u8 tos = parcel->hop->flags & FP_BPF_HOP_ECN ? parcel->inner.tos & 3 : 0;
    if (run->six)
        fp_fill_ip6(&head->outer.v6, run, parcel, tos);
    else
        fp_fill_ip4(&head->outer.v4, run, parcel, tos);
    head->outer.udp = (struct fp_udp){.source_be = run->header->port_be,
                                      .destination_be = parcel->hop->port_be,
                                      .length_be = FP_BE16(parcel->bytes + (__u32)sizeof(struct fp_udp))};
    fp_age(&parcel->inner, parcel->inner.tos);
    __builtin_memcpy(head->inner, parcel->inner.bytes, FP_HEAD_BYTES);
}

FP_INLINE long fp_store_head(const struct fp_run *run, const struct fp_head *head)
{
    if (run->six)
        return bpf_skb_store_bytes(run->skb, FP_ETHERNET_BYTES, head, sizeof *head, 0);
    return bpf_skb_store_bytes(run->skb, FP_ETHERNET_BYTES, &head->outer.v4, FP_OUTER_BYTES + FP_HEAD_BYTES, 0);
}

/*
 * Make room for the outer headers behind a link header, or FP_TC_NEXT: nothing has changed.
 *
 * As a tunnel, the kernel knows both packets and can cut and finish them for any device. Flat, it only pushes bytes: the packet
 * arrives as if it had never been in a tunnel, so that no device behind the receiver has to cut it for want of tunnel offloads
 * (a bridge has none); but no device may have to cut it on the way.
 */
FP_INLINE int fp_make_room(struct fp_run *run, const struct fp_parcel *parcel)
{
    if (parcel->flat) {
        if (bpf_skb_change_head(run->skb, FP_ETHERNET_BYTES + run->headers - parcel->link, 0))
            return fp_leave(run, FP_BPF_UP_ENCAPSULATED);
        return 0;
    }
    if (bpf_skb_adjust_room(run->skb, (__s32)run->headers, BPF_ADJ_ROOM_MAC,
                            BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
                                (run->six ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4)))
        return fp_leave(run, FP_BPF_UP_ENCAPSULATED);
    if (!parcel->link && bpf_skb_change_head(run->skb, FP_ETHERNET_BYTES, 0))
        return fp_drop(run, FP_DROP_SEND, parcel->size.packets, parcel->size.bytes);
    return 0;
}

/* Put the headers on. 0, or how the program ends. */
FP_INLINE int fp_wrap(struct fp_run *run, struct fp_parcel *parcel)
{
    struct fp_head head;
    int result = fp_make_room(run, parcel);
    if (result)
        return result;
    fp_fill(&head, run, parcel);
    if (fp_store_head(run, &head))
        return fp_drop(run, FP_DROP_SEND, parcel->size.packets, parcel->size.bytes);
    return 0;
}

FP_INLINE int fp_send(struct fp_run *run, struct fp_parcel *parcel, struct bpf_redir_neigh *next)
{
    int result = fp_wrap(run, parcel);
    struct fp_bpf_peer *peer = parcel->probe || result == FP_TC_NEXT ? (void *)0 : fp_peer(&parcel->hop->address);
    if (result) {
        if (peer)
            peer->dropped_out += parcel->size.packets;
        return result;
    }
    if (peer)
        fp_add(&peer->sent, parcel->size.packets, parcel->size.bytes);
    if (!parcel->probe)
        fp_count(run->counters, FP_ENCAPSULATED, parcel->size.packets, parcel->size.bytes);
    if (parcel->size.headers || parcel->probe)
        run->counters->others[parcel->probe ? FP_BPF_PROBES_OUT : FP_BPF_SUPERPACKETS_OUT]++;
    return fp_redirect(run->header->underlay, next);
}

/*
 * What we say of the peer's superpackets goes where nobody else reads anything (layout.h). Over IPv6 that is a probe's flow label: of
 * other packets it is the same for a whole inner flow, whatever becomes of its packets, for routers choose the way by it (RFC 6437).
 */
FP_INLINE void fp_say(const struct fp_run *run, struct fp_parcel *parcel, __u32 peer)
{
    parcel->word = 0;
    if (run->six) {
        parcel->label = (bpf_get_hash_recalc(run->skb) & FP_BPF_LABEL_BITS) | FP_BPF_LABEL_FLOW;
        if (!parcel->probe)
            return;
    }
    __u32 units = fp_note_units(fp_note(&fp_wholes, peer), peer);
    if (!units && run->header->flags & FP_BPF_TRAINS)
        units = FP_BPF_UNITS_TRAINS;
    if (!units || parcel->size.packets > FP_BPF_ID_SEGMENTS)
        return;
    parcel->word = (__u16)(FP_BPF_ID_WHOLE | units << 8);
    parcel->label = FP_BPF_LABEL_MARK | parcel->word;
}

/*
 * Which form the peer takes best. False: it has to go through userspace, because the underlay hands on whatever it gets and the peer
 * takes only finished packets, or because the peer receives bulk TCP better in trains: flows of large packets go there, those of small
 * ones alone (acknowledgements, questions and answers) do not. Flat needs the peer's word, not older than 0.6 s, that superpackets of
 * this size reach it whole.
 */
FP_INLINE _Bool fp_choose_form(struct fp_run *run, struct fp_parcel *parcel)
{
    __u32 peer = fp_peer_key(&parcel->hop->address), flags = run->header->flags;
    _Bool carries = flags & FP_BPF_CARRIES;
    if (!(parcel->hop->flags & FP_BPF_HOP_SUPERPACKET)) {
        /* Over IPv6 a socket takes no packet without a UDP checksum unless told to (RFC 6935): only peers with programs are. */
        _Bool ours = !carries && !run->six;
        run->counters->others[FP_BPF_UP_PLAIN_PEER] += !ours;
        return ours;
    }
    __be32 ports = 0;
    _Bool known = fp_tcp_ports(run->skb, parcel->link, &parcel->inner, &ports), large = run->skb->gso_size;
    parcel->probe = known && !ports;
    __u32 thanks = fp_note_units(fp_note(&fp_thanks, peer), peer);
    /* A flow stays there for a moment also when the note goes, so that it does not jump to and fro: two peers may share a slot. */
    _Bool trains = thanks == FP_BPF_UNITS_TRAINS;
    if (parcel->inner.protocol == FP_TCP && !parcel->probe &&
        fp_is_train(&parcel->inner, ports, trains && (large || !known || parcel->bytes > parcel->hop->mtu_bytes / 2), trains)) {
        run->counters->others[FP_BPF_UP_TCP_TRAIN]++;
        return 0;
    }
    if (trains)
        thanks = 0;
    /* From 65,536 bytes on, link header included, the kernel cuts for any device. */
    parcel->flat = carries && flags & FP_BPF_WHOLE && !parcel->probe && parcel->inner.version == (run->six ? 6 : 4) &&
                   thanks >= fp_units(parcel->bytes) &&
                   parcel->bytes + run->headers + FP_ETHERNET_BYTES < 0x10000;
    if (carries && (parcel->inner.protocol == FP_UDP || fp_is_fragment(&parcel->inner)) &&
        fp_is_train(&parcel->inner, 0, large && !parcel->flat, 1)) {
        run->counters->others[FP_BPF_UP_UDP_TRAIN]++;
        return 0;
    }
    fp_say(run, parcel, peer);
    return 1;
}

FP_INLINE int fp_encapsulate(struct __sk_buff *skb, __u32 link)
{
    struct fp_run run;
    struct fp_parcel parcel = {.bytes = skb->len - link, .link = link};
    struct bpf_redir_neigh next = {0};
    if ((skb->protocol != FP_BE16(FP_ETHERTYPE_IP) && skb->protocol != FP_BE16(FP_ETHERTYPE_IP6)) || !fp_start(&run, skb))
        return FP_TC_NEXT;
    /* At the bridge nothing is taken once the operator has switched that off, whatever still hangs there. */
    if (link && !(run.header->flags & (FP_BPF_BYPASS | FP_BPF_SELF_TEST)))
        return FP_TC_NEXT;
    if (fp_load(skb, link, &parcel.inner, FP_IP4_BYTES) || !fp_read_inner(skb, link, &parcel.inner))
        return FP_TC_NEXT;
    parcel.hop = fp_hop(run.snapshot, fp_destination_word(&run, &parcel.inner));
    if (!parcel.hop || fp_is_odd(&parcel.inner, parcel.bytes) || fp_measure(skb, link, &parcel.inner, parcel.bytes, &parcel.size) ||
        parcel.size.largest > parcel.hop->mtu_bytes)
        return link ? FP_TC_NEXT : fp_leave(&run, FP_BPF_UP_ANSWER);
    /* The host's forwarding, which is skipped here, drops these; what comes out of it has been checked. */
    if (link && parcel.inner.version == 4 && !fp_checksum_is_right(&run, link, &parcel.inner.v4))
        return FP_TC_NEXT;
    if (!fp_choose_form(&run, &parcel))
        return FP_TC_NEXT;
    if (!(run.header->flags & FP_BPF_SELF_TEST)) {
        int reason = fp_find_way(&run, parcel.hop, parcel.size.largest + run.headers, &next);
        if (reason >= 0)
            return fp_leave(&run, (enum fp_bpf_counter)reason);
    }
    return fp_send(&run, &parcel, &next);
}

#endif
