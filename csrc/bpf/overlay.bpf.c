/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * overlay.bpf.c: flannel's udp wire format inside the kernel: four programs at tc, run for each packet or superpacket.
 *
 *   fp_encap   egress of flannel0        inner packet -> | Ethernet | IPv4 | UDP | inner | -> underlay
 *   fp_decap   ingress of the underlay   the same back -> ingress of flannel0 (or the pod bridge, or the merging device)
 *   fp_bypass  ingress of the pod bridge as fp_encap, for packets whose forwarding by the host is to be skipped
 *   fp_merged  ingress of the merging device's far end -> ingress of flannel0
 *
 * They take what they can handle whole and leave everything else, unchanged, to the stack (FP_TC_NEXT), where the userspace
 * datapath finds it in the TUN device's queue or in its UDP socket and deals with it by its own rules. So a packet that needs
 * an ICMP error, reassembly, cutting or finishing has the same outcome as without BPF. Nothing is changed in a packet
 * before the last check; after that a failure can only drop it (FP_DROP_SEND, FP_DROP_WRITE).
 *
 * Which half takes it must never change the order inside a flow. Outgoing, it depends on the peer and, for UDP, on whether the
 * flow lately had superpackets. Incoming, the sender has decided: a UDP checksum of zero marks packets of these programs, while
 * a socket always fills it, and its packets (also trains of them, UDP GSO and GRO) go to our socket, each after the other.
 *
 * Superpackets: the inner packet stays one, gso_size untouched, and the kernel or the device cuts inner packet and outer headers
 * together where the underlay needs it. Where it does not (veth: FP_BPF_CARRIES) only peers that say so get them whole.
 */
#include "packet.h"
#include "state.h"

#define FP_TRAIN_NS (50 * 1000 * 1000ULL) /* a UDP flow stays with userspace that long after its last superpacket */

/* All that a program knows of its packet; lives on the stack of one run. */
struct fp_run {
    struct __sk_buff *skb;
    struct fp_bpf_counters *counters;
    void *snapshot;
    const struct fp_bpf_header *header;
};

FP_INLINE _Bool fp_start(struct fp_run *run, struct __sk_buff *skb)
{
    run->skb = skb;
    run->counters = fp_counts();
    run->snapshot = fp_snapshot();
    if (!run->counters || !run->snapshot)
        return 0;
    run->header = fp_header(run->snapshot);
    return run->header && run->header->layout == FP_BPF_LAYOUT;
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
FP_INLINE int fp_measure(struct __sk_buff *skb, __u32 offset, const struct fp_ip4 *ip, __u32 bytes, struct fp_size *size)
{
    __u32 gso_bytes = skb->gso_size;
    if (!gso_bytes) {
        *size = (struct fp_size){.headers = 0, .largest = bytes, .packets = 1, .bytes = bytes};
        return 0;
    }
    __u32 headers = (ip->version_ihl & 0x0fU) * 4;
    __u8 data_offset = 0;
    if (ip->protocol == FP_UDP)
        headers += sizeof(struct fp_udp);
    else if (ip->protocol != FP_TCP || bpf_skb_load_bytes(skb, offset + headers + 12, &data_offset, 1))
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
 * A probe: TCP from port 0 to port 0, which nobody speaks. The datapath sends one of full size to each peer now and then, so that both
 * ends know whether superpackets arrive whole without waiting for a flow that shows it. Probes are neither counted nor delivered.
 */
FP_INLINE _Bool fp_is_probe(struct __sk_buff *skb, __u32 offset, const struct fp_ip4 *ip)
{
    __be32 ports = 1;
    return ip->protocol == FP_TCP && ip->version_ihl == 0x45 && !bpf_skb_load_bytes(skb, offset + sizeof *ip, &ports, sizeof ports) &&
           ports == 0;
}

/* ------------------------------------------------------------------------------------------------------------- encap */

/*
 * Whether this UDP packet must go the way of its flow's superpackets, which go to userspace unless they can be sent `whole`. The
 * first slot tells whether any flow had one lately, so that flows are hashed only then.
 */
FP_INLINE _Bool fp_is_train(struct __sk_buff *skb, _Bool whole)
{
    _Bool starts = skb->gso_size && !whole;
    __u64 *any = fp_slot(&fp_trains, 0);
    if (!any || (!*any && !starts))
        return 0;
    __u64 now = bpf_ktime_get_ns();
    if (!starts && now - *any > FP_TRAIN_NS)
        return 0;
    __u64 *flow = fp_slot(&fp_trains, bpf_get_hash_recalc(skb) | 1);
    if (!flow || (!starts && now - *flow > FP_TRAIN_NS))
        return 0;
    if (starts) {
        *flow = now;
        *any = now;
    }
    return 1;
}

/* Fields that this node never forwards, or that only the userspace core judges; 0 when the packet is plain. */
FP_INLINE _Bool fp_is_odd(const struct fp_ip4 *ip, __u32 bytes)
{
    return (ip->version_ihl >> 4) != 4 || (ip->version_ihl & 0x0f) < 5 || FP_BE16(ip->total_be) != bytes ||
           bytes + FP_OUTER_BYTES > 0xffff || ip->ttl <= 1 || fp_martian(FP_BE32(ip->source_be)) ||
           fp_martian(FP_BE32(ip->destination_be));
}

/*
 * Ask the kernel for the way to the peer. Fills `next` when the neighbour is known. If not, its family stays 0 and the kernel has
 * to look the way up again: a packet that waits for a neighbour must carry the right route, and it still carries the inner one.
 */
FP_INLINE int fp_find_way(struct fp_run *run, __be32 peer_be, __u32 outer_bytes, struct bpf_redir_neigh *next)
{
    struct bpf_fib_lookup way = {
        .family = FP_AF_INET,
        .l4_protocol = FP_UDP,
        .tot_len = (__u16)outer_bytes, /* checked against the path MTU, learnt exceptions included */
        .ifindex = run->header->underlay,
        .ipv4_src = run->header->address_be,
        .ipv4_dst = peer_be,
    };
    long result = bpf_fib_lookup(run->skb, &way, sizeof way, BPF_FIB_LOOKUP_OUTPUT);
    if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
        return FP_BPF_UP_ANSWER;
    if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH && result != BPF_FIB_LKUP_RET_FWD_DISABLED)
        return FP_BPF_UP_NEIGHBOUR;
    if (result == BPF_FIB_LKUP_RET_SUCCESS && way.family == FP_AF_INET) {
        next->nh_family = FP_AF_INET;
        next->ipv4_nh = way.ipv4_dst;
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
    struct fp_ip4 ip;
    struct fp_size size;
    __u32 bytes;
    __u32 link; /* of the link header that is there already */
    _Bool flat;
    _Bool probe;
    __u16 id;
};

FP_INLINE void fp_fill(struct fp_head *head, const struct fp_run *run, struct fp_parcel *parcel)
{
    const struct fp_bpf_hop *hop = parcel->hop;
    head->outer = (struct fp_outer){
        .ip = {.version_ihl = 0x45,
               .tos = hop->flags & FP_BPF_HOP_ECN ? parcel->ip.tos & 3 : 0,
               .total_be = FP_BE16(parcel->bytes + FP_OUTER_BYTES),
               .id = FP_BE16(parcel->id),
               .fragment_be = FP_BE16(FP_DF),
               .ttl = 64,
               .protocol = FP_UDP,
               .source_be = run->header->address_be,
               .destination_be = FP_BE32(hop->address)},
        .udp = {.source_be = run->header->port_be,
                .destination_be = hop->port_be,
                .length_be = FP_BE16(parcel->bytes + (__u32)sizeof(struct fp_udp))},
    };
    head->outer.ip.check = (__u16)~fp_ip4_sum(&head->outer.ip);
    fp_decrement_ttl(&parcel->ip);
    __builtin_memcpy(head->inner, &parcel->ip, FP_HEAD_BYTES);
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
        if (bpf_skb_change_head(run->skb, FP_ETHERNET_BYTES + FP_OUTER_BYTES - parcel->link, 0))
            return fp_leave(run, FP_BPF_UP_ENCAPSULATED);
        return 0;
    }
    if (bpf_skb_adjust_room(run->skb, FP_OUTER_BYTES, BPF_ADJ_ROOM_MAC,
                            BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP))
        return fp_leave(run, FP_BPF_UP_ENCAPSULATED);
    if (!parcel->link && bpf_skb_change_head(run->skb, FP_ETHERNET_BYTES, 0))
        return fp_drop(run, FP_DROP_SEND, parcel->size.packets, parcel->size.bytes);
    return 0;
}

/* Put the headers on and send. */
FP_INLINE int fp_send(struct fp_run *run, struct fp_parcel *parcel, struct bpf_redir_neigh *next)
{
    struct fp_head head;
    int result = fp_make_room(run, parcel);
    if (result)
        return result;
    fp_fill(&head, run, parcel);
    if (bpf_skb_store_bytes(run->skb, FP_ETHERNET_BYTES, &head, sizeof head, 0))
        return fp_drop(run, FP_DROP_SEND, parcel->size.packets, parcel->size.bytes);
    if (!parcel->probe)
        fp_count(run->counters, FP_ENCAPSULATED, parcel->size.packets, parcel->size.bytes);
    if (parcel->size.headers)
        run->counters->others[parcel->probe ? FP_BPF_PROBES_OUT : FP_BPF_SUPERPACKETS_OUT]++;
    return fp_redirect(run->header->underlay, next);
}

/*
 * Where the underlay hands on whatever it gets: which form the peer can take. False: it has to go through userspace. Flat needs
 * the peer's word, not older than two seconds, that superpackets of this size reach it whole.
 */
FP_INLINE _Bool fp_choose_form(struct fp_run *run, struct fp_parcel *parcel)
{
    __u32 peer = parcel->hop->address;
    if (!(parcel->hop->flags & FP_BPF_HOP_SUPERPACKET)) {
        run->counters->others[FP_BPF_UP_PLAIN_PEER]++;
        return 0;
    }
    parcel->probe = run->skb->gso_size && fp_is_probe(run->skb, parcel->link, &parcel->ip);
    /* From 65,536 bytes on, link header included, the kernel cuts for any device. */
    parcel->flat = !parcel->probe && parcel->bytes + FP_OUTER_BYTES + FP_ETHERNET_BYTES < 0x10000 &&
                   fp_note_units(fp_note(&fp_thanks, peer), peer) >= fp_units(parcel->bytes);
    if (parcel->ip.protocol == FP_UDP && fp_is_train(run->skb, parcel->flat)) {
        run->counters->others[FP_BPF_UP_UDP_TRAIN]++;
        return 0;
    }
    __u32 units = fp_note_units(fp_note(&fp_wholes, peer), peer);
    parcel->id = units ? (__u16)(FP_BPF_ID_WHOLE | units << 8) : 0;
    return 1;
}

FP_INLINE int fp_encapsulate(struct __sk_buff *skb, __u32 link)
{
    struct fp_run run;
    struct fp_parcel parcel = {.bytes = skb->len - link, .link = link};
    struct bpf_redir_neigh next = {0};
    if (skb->protocol != FP_BE16(FP_ETHERTYPE_IP) || !fp_start(&run, skb))
        return FP_TC_NEXT;
    if (bpf_skb_load_bytes(skb, link, &parcel.ip, sizeof parcel.ip))
        return FP_TC_NEXT;
    parcel.hop = fp_hop(run.snapshot, fp_lookup(run.snapshot, FP_BE32(parcel.ip.destination_be)));
    if (!parcel.hop || fp_is_odd(&parcel.ip, parcel.bytes) || fp_measure(skb, link, &parcel.ip, parcel.bytes, &parcel.size) ||
        parcel.size.largest > run.header->mtu_bytes)
        return link ? FP_TC_NEXT : fp_leave(&run, FP_BPF_UP_ANSWER);
    if (run.header->flags & FP_BPF_CARRIES && !fp_choose_form(&run, &parcel))
        return FP_TC_NEXT;
    if (!(run.header->flags & FP_BPF_SELF_TEST)) {
        int reason = fp_find_way(&run, FP_BE32(parcel.hop->address), parcel.size.largest + FP_OUTER_BYTES, &next);
        if (reason >= 0)
            return fp_leave(&run, (enum fp_bpf_counter)reason);
    }
    return fp_send(&run, &parcel, &next);
}

FP_SECTION("tc/fp_encap") int fp_encap(struct __sk_buff *skb)
{
    return fp_encapsulate(skb, 0);
}

FP_SECTION("tc/fp_bypass") int fp_bypass(struct __sk_buff *skb)
{
    /* Only what was sent to the host as a router; the bridge's own traffic is none of ours. */
    if (skb->pkt_type != FP_PACKET_HOST)
        return FP_TC_NEXT;
    return fp_encapsulate(skb, FP_ETHERNET_BYTES);
}

/* ------------------------------------------------------------------------------------------------------------- decap */

struct fp_tunnel {
    struct fp_outer outer;
    struct fp_ip4 inner;
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

/*
 * Whether the checksum over a header, options included, is right. Its length field has been checked. Options are read word by word:
 * older verifiers do not follow a length that is not constant.
 */
FP_INLINE _Bool fp_checksum_is_right(const struct fp_run *run, const struct fp_ip4 *ip)
{
    __u32 sum = fp_ip4_sum(ip);
    __u32 options = (ip->version_ihl & 0x0fU) - 5;
    for (__u32 i = 0; i < 10 && i < options; i++) {
        __u16 half[2];
        if (bpf_skb_load_bytes(run->skb, FP_ETHERNET_BYTES + FP_OUTER_BYTES + sizeof *ip + i * 4, half, sizeof half))
            return 0;
        sum += (__u32)half[0] + half[1];
    }
    return fp_fold(sum) == 0xffff;
}

/* The verdict over an inner packet; FP_DECAPSULATED: it may pass. The same rules, in the same order, as the userspace core. */
FP_INLINE enum fp_verdict fp_judge(const struct fp_run *run, const struct fp_tunnel *tunnel, __u32 bytes)
{
    const struct fp_ip4 *ip = &tunnel->inner;
    __u32 total = FP_BE16(ip->total_be);
    if ((ip->version_ihl >> 4) != 4 || (ip->version_ihl & 0x0f) < 5 || total < (ip->version_ihl & 0x0fU) * 4)
        return FP_DROP_BAD_HEADER;
    if (total > bytes)
        return FP_DROP_TRUNCATED;
    if (!fp_checksum_is_right(run, ip))
        return FP_DROP_BAD_HEADER;
    __u32 source = FP_BE32(ip->source_be);
    if (fp_martian(source) || fp_martian(FP_BE32(ip->destination_be)))
        return FP_DROP_MARTIAN;
    if (run->header->flags & FP_BPF_SOURCE_CHECK) {
        __u32 sender = FP_BE32(tunnel->outer.ip.source_be);
        const struct fp_bpf_hop *owner = fp_hop(run->snapshot, fp_lookup(run->snapshot, source));
        if (!owner || owner->address != sender)
            return fp_knows(run->snapshot, run->header->hops, sender) ? FP_DROP_SPOOFED : FP_DROP_UNKNOWN_PEER;
    } else if (fp_lookup(run->snapshot, source) == FP_BPF_LOCAL) {
        return FP_DROP_SPOOFED; /* no peer, NATed or not, has one of our own addresses */
    }
    if (fp_lookup(run->snapshot, FP_BE32(ip->destination_be)) != FP_BPF_LOCAL)
        return FP_DROP_NOT_LOCAL;
    if (fp_ecn_combine(ip->tos & 3, tunnel->outer.ip.tos & 3) < 0)
        return FP_DROP_ECN;
    return FP_DECAPSULATED;
}

/*
 * Learn from an accepted packet: that superpackets of its sender reach us whole, and what it says of ours. Returns whether a single
 * TCP packet is worth merging: its sender's superpackets have not come whole for a while.
 */
FP_INLINE _Bool fp_learn(const struct fp_run *run, const struct fp_tunnel *tunnel)
{
    __u32 sender = FP_BE32(tunnel->outer.ip.source_be);
    __u16 id = FP_BE16(tunnel->outer.ip.id);
    __u64 *whole = fp_note(&fp_wholes, sender);
    if (id & FP_BPF_ID_WHOLE)
        fp_note_set(fp_note(&fp_thanks, sender), sender, id >> 8 & 0x7f);
    if (run->skb->gso_size) {
        fp_note_set(whole, sender, fp_units(FP_BE16(tunnel->inner.total_be)));
        return 0;
    }
    return run->header->flags & FP_BPF_INNER_GRO && tunnel->inner.protocol == FP_TCP && !fp_note_units(whole, sender);
}

/* Whether the host would send this inner packet out of the pod bridge; then `next` is the pod or the router behind it. */
FP_INLINE _Bool fp_is_for_bridge(const struct fp_run *run, const struct fp_ip4 *ip, struct bpf_redir_neigh *next)
{
    struct bpf_fib_lookup way = {
        .family = FP_AF_INET,
        .ifindex = run->header->device,
        .tot_len = 0, /* checked against the device's MTU then */
        .ipv4_src = ip->source_be,
        .ipv4_dst = ip->destination_be,
    };
    long result = bpf_fib_lookup(run->skb, &way, sizeof way, 0);
    if ((result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH) || way.ifindex != run->header->bridge ||
        way.family != FP_AF_INET)
        return 0;
    if (result == BPF_FIB_LKUP_RET_SUCCESS) {
        next->nh_family = FP_AF_INET;
        next->ipv4_nh = way.ipv4_dst;
    }
    return 1;
}

/* Hand a decapsulated packet on. */
FP_INLINE int fp_deliver(struct fp_run *run, const struct fp_ip4 *ip, _Bool merge)
{
    struct bpf_redir_neigh next = {0};
    if (merge) {
        run->counters->others[FP_BPF_MERGED]++;
        return (int)bpf_redirect(run->header->gro, 0);
    }
    if (run->header->flags & FP_BPF_BYPASS && fp_is_for_bridge(run, ip, &next)) {
        run->counters->others[FP_BPF_BYPASSED]++;
        return fp_redirect(run->header->bridge, &next);
    }
    return (int)bpf_redirect(run->header->device, BPF_F_INGRESS);
}

FP_SECTION("tc/fp_decap") int fp_decap(struct __sk_buff *skb)
{
    struct fp_run run;
    struct fp_tunnel tunnel;
    struct fp_size size;
    int reason;
    if (skb->protocol != FP_BE16(FP_ETHERTYPE_IP) || bpf_skb_load_bytes(skb, FP_ETHERNET_BYTES, &tunnel, sizeof tunnel))
        return FP_TC_NEXT;
    /* Options in the outer header: the socket can have them. */
    if (tunnel.outer.ip.version_ihl != 0x45 || tunnel.outer.ip.protocol != FP_UDP || !fp_start(&run, skb))
        return FP_TC_NEXT;
    if (!fp_is_ours(&run, &tunnel, &reason))
        return reason < 0 ? FP_TC_NEXT : fp_leave(&run, (enum fp_bpf_counter)reason);

    __u32 total = FP_BE16(tunnel.outer.ip.total_be), length = FP_BE16(tunnel.outer.udp.length_be);
    __u32 inner_bytes = FP_BE16(tunnel.inner.total_be);
    /* Lengths that contradict each other are the stack's to judge; a train of datagrams must not be stripped as one. */
    if (total > skb->len - FP_ETHERNET_BYTES || length + sizeof(struct fp_ip4) != total || length < FP_OUTER_BYTES ||
        (skb->gso_size && inner_bytes + FP_OUTER_BYTES != total))
        return fp_leave(&run, FP_BPF_UP_SOCKET);
    enum fp_verdict verdict = fp_judge(&run, &tunnel, length - (__u32)sizeof(struct fp_udp));
    if (verdict == FP_DECAPSULATED && tunnel.inner.ttl <= 1)
        return fp_leave(&run, FP_BPF_UP_ANSWER);
    if (fp_measure(skb, FP_ETHERNET_BYTES + FP_OUTER_BYTES, &tunnel.inner, inner_bytes, &size))
        return fp_leave(&run, FP_BPF_UP_SOCKET);
    if (verdict != FP_DECAPSULATED)
        return fp_drop(&run, verdict, size.packets, size.bytes);

    _Bool merge = fp_learn(&run, &tunnel);
    if (run.header->flags & FP_BPF_CARRIES && fp_is_probe(skb, FP_ETHERNET_BYTES + FP_OUTER_BYTES, &tunnel.inner)) {
        run.counters->others[FP_BPF_PROBES_IN]++;
        return FP_TC_DROP;
    }
    __u8 ecn = (__u8)fp_ecn_combine(tunnel.inner.tos & 3, tunnel.outer.ip.tos & 3);
    fp_decrement_ttl(&tunnel.inner);
    fp_set_tos(&tunnel.inner, (tunnel.inner.tos & 0xfc) | ecn);
    if (bpf_skb_adjust_room(skb, -(__s32)FP_OUTER_BYTES, BPF_ADJ_ROOM_MAC,
                            BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) ||
        bpf_skb_store_bytes(skb, FP_ETHERNET_BYTES, &tunnel.inner, FP_HEAD_BYTES, 0))
        return fp_drop(&run, FP_DROP_WRITE, size.packets, size.bytes);
    /* The device may have verified the outer checksum (there is none) and the inner one: one level less now. */
    bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
    fp_count(run.counters, FP_DECAPSULATED, size.packets, size.bytes);
    if (size.headers)
        run.counters->others[FP_BPF_SUPERPACKETS_IN]++;
    return fp_deliver(&run, &tunnel.inner, merge);
}

FP_SECTION("tc/fp_merged") int fp_merged(struct __sk_buff *skb)
{
    struct fp_run run;
    struct fp_ip4 ip;
    if (!fp_start(&run, skb) || bpf_skb_load_bytes(skb, FP_ETHERNET_BYTES, &ip, sizeof ip))
        return FP_TC_DROP;
    return fp_deliver(&run, &ip, 0);
}

/* bpf_fib_lookup asks for it. */
FP_SECTION("license") char fp_license[] = "GPL";
