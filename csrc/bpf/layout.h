/*
 * layout.h: what the BPF programs and their loader (flanpy/datapath/ebpf_layout.py) share: the snapshot and the counters.
 *
 * A snapshot is one BPF array of chunks of 1,024 bytes, filled before anybody sees it and published by one store into the
 * outer map `fp_tables`; so a packet meets one whole state, never a mixture.
 *
 *   chunk 0..255     first level: word [destination >> 24][(destination >> 16) & 255]
 *   chunk 256        struct fp_bpf_header
 *   chunk 257..      hops, 32 in each, sorted by address
 *   then             second level, [(destination >> 8) & 255], and third level, [destination & 255], as many as needed
 *   then             IPv6: levels of one byte of the address each, from header.root6 on
 *
 * A word is FP_BPF_NONE, FP_BPF_LOCAL, FP_BPF_FIRST_HOP + hop, or FP_BPF_POINTER | chunk of the next level. So a lookup is one to
 * three loads, whatever the number of routes; of IPv6 one load for each byte of the prefix behind those that all prefixes share,
 * two or three in a usual cluster. Addresses and ports with _be are in network byte order, all else is native.
 *
 * Any change here needs a new FP_BPF_LAYOUT: a new agent then replaces the pinned maps instead of adopting them.
 */
#ifndef FLANPY_BPF_LAYOUT_H
#define FLANPY_BPF_LAYOUT_H

#include <linux/types.h>

#include "../verdicts.h"

#define FP_BPF_LAYOUT 4u

#define FP_BPF_CHUNK_BYTES 1024u
#define FP_BPF_WORDS 256u
#define FP_BPF_HEADER_CHUNK 256u
#define FP_BPF_HOPS_CHUNK 257u
#define FP_BPF_HOPS_PER_CHUNK 32u

#define FP_BPF_NONE 0u
#define FP_BPF_LOCAL 1u
#define FP_BPF_FIRST_HOP 2u
#define FP_BPF_POINTER 0x80000000u

/* struct fp_bpf_header.flags */
#define FP_BPF_SOURCE_CHECK 1u /* the outer sender must own the inner source */
#define FP_BPF_CARRIES 2u      /* the underlay hands superpackets and unfinished checksums on as they are (veth, bridge) */
#define FP_BPF_BYPASS 4u       /* deliver to `bridge`, skipping the host's forwarding */
#define FP_BPF_INNER_GRO 8u    /* deliver single TCP packets through `gro`, a device that merges them */
#define FP_BPF_SELF_TEST 16u   /* nothing is sent: do not ask for the way to the peer */
#define FP_BPF_WHOLE 32u       /* our own underlay interface cuts neither TCP nor UDP: the flat form may be used */
#define FP_BPF_TRAINS 64u      /* our own underlay interface merges trains of datagrams (GRO): better received by the socket */
#define FP_BPF_SIX 128u        /* the underlay is IPv6: so are our own address and those of all hops */

/* struct fp_bpf_hop.flags */
#define FP_BPF_HOP_ECN 1u         /* the peer combines ECN: copy the mark out */
#define FP_BPF_HOP_SUPERPACKET 2u /* the peer takes superpackets and unfinished checksums as they are */

/* An address of the underlay as a number of 128 bits; IPv4 as ::ffff:a.b.c.d. */
struct fp_address {
    __u64 high;
    __u64 low;
};

struct fp_bpf_header {
    __u32 layout;
    __u32 flags;
    __u64 generation;
    __u32 hops;
    __u32 mtu_bytes;   /* largest inner packet to any peer */
    __u32 device;      /* ifindex of the TUN device */
    __u32 underlay;    /* ifindex of the underlay interface */
    __be16 port_be;    /* source and destination */
    __u16 reserved;
    __u32 bridge; /* ifindex of the pod bridge, for FP_BPF_BYPASS */
    __u32 gro;    /* ifindex of the device for FP_BPF_INNER_GRO */
    __u32 reserved6;
    __u32 root6;  /* chunk of the first level of IPv6 prefixes; 0: there are none */
    __u32 shared6; /* bytes that all IPv6 prefixes have in common, 0..15: the levels begin behind them */
    __u64 prefix6[2]; /* those bytes as a number of 128 bits, upper half first, and a mask of them */
    __u64 mask6[2];
    struct fp_address own; /* ours on the underlay */
};

struct fp_bpf_hop {
    struct fp_address address;
    __be16 port_be;
    __u16 flags;
    __u32 mtu_bytes; /* largest inner packet to this peer */
    __u64 reserved;
};

/* Besides verdicts: what the programs left to userspace, and why. X(SYMBOL, "name", "meaning"); append only. */
#define FP_BPF_COUNTERS(X)                                                                                                    \
    X(UP_ENCAPSULATED, "bpf_up_encapsulated", "sent by userspace: already in a tunnel, or cannot grow")                       \
    X(UP_UDP_TRAIN, "bpf_up_udp_train", "sent by userspace: UDP superpackets of a pod, which the underlay would not cut")     \
    X(UP_PLAIN_PEER, "bpf_up_plain_peer", "sent by userspace: the peer takes finished packets of real size only")             \
    X(UP_ANSWER, "bpf_up_answer", "left to userspace for its verdict or ICMP error (no route, TTL, too big, odd header)")     \
    X(UP_NEIGHBOUR, "bpf_up_neighbour", "sent by userspace: no route or neighbour entry for the peer, or forwarding is off")     \
    X(UP_FRAGMENT, "bpf_up_fragment", "received by userspace: a fragment of the underlay")                                    \
    X(UP_SOCKET, "bpf_up_socket", "received by userspace: sent by a userspace datapath or by flanneld")                       \
    X(SUPERPACKETS_OUT, "bpf_superpackets_out", "superpackets sent as one")                                                   \
    X(SUPERPACKETS_IN, "bpf_superpackets_in", "superpackets received as one")                                                 \
    X(MERGED, "bpf_inner_gro", "packets received through the merging device")                                                 \
    X(BYPASSED, "bpf_bypassed", "packets that skipped the host's forwarding")                                                 \
    X(PROBES_OUT, "bpf_probes_out", "probes sent to learn whether superpackets reach a peer whole")                           \
    X(PROBES_IN, "bpf_probes_in", "probes received, whole or in pieces")                                                     \
    X(UP_TCP_TRAIN, "bpf_up_tcp_train", "sent by userspace: bulk TCP to a peer whose interface merges trains from sockets")

enum fp_bpf_counter {
#define FP_ENUM(symbol, name, meaning) FP_BPF_##symbol,
    FP_BPF_COUNTERS(FP_ENUM)
#undef FP_ENUM
    FP_BPF_COUNTER_COUNT
};

struct fp_bpf_count {
    __u64 packets;
    __u64 bytes;
};

/* One for each CPU; programs of one CPU do not interrupt each other. */
struct fp_bpf_counters {
    struct fp_bpf_count by[32]; /* FP_VERDICT_COUNT used; room to append without a new layout */
    __u64 others[32];           /* FP_BPF_COUNTER_COUNT used */
};

/* What one peer was sent and has sent by these programs, on one CPU. The loader makes and removes these, the programs only add. */
struct fp_bpf_peer {
    struct fp_bpf_count sent;
    struct fp_bpf_count received;
    __u64 dropped_out; /* packets for it that could not be sent */
    __u64 dropped_in;  /* packets from it that were refused */
};
#define FP_BPF_PEERS 16384u /* that are counted; without memory of their own while there are fewer */

/* Slots of the maps of recent times, indexed by a hash. */
#define FP_BPF_SLOTS 4096u

/*
 * Outer IPv4 identification of packets of these programs (they carry DF, so that it means nothing to anybody else; RFC 6864):
 * FP_BPF_ID_WHOLE | units << 8: "superpackets from you reached me whole lately, up to units * 520 bytes". The low byte is
 * left to the kernel, which counts segments in it. Without the mark: 0. 7 bits of such units reach past 65,535.
 *
 * IPv6 has no such field: the same word stands in the outer flow label of probes there, below FP_BPF_LABEL_MARK, for a router may put a
 * label of its own where there is none (RFC 6437, section 3), which the mark and the low byte of zero tell from ours. All other packets
 * have a label by their inner flow, which is odd and so never a word.
 */
#define FP_BPF_ID_WHOLE 0x8000u
#define FP_BPF_ID_SEGMENTS 256u /* of more, the numbers would reach the units */
#define FP_BPF_UNIT_BYTES 520u
#define FP_BPF_LABEL_MARK 0xf0000u
#define FP_BPF_LABEL_BITS 0xfffffu
#define FP_BPF_LABEL_FLOW 1u
#define FP_BPF_UNITS_TRAINS 127u /* instead of a size: "they do not, but I receive trains with a UDP checksum well: send me TCP so" */

_Static_assert(sizeof(struct fp_bpf_header) == 104, "the loader packs it so");
_Static_assert(sizeof(struct fp_bpf_hop) * FP_BPF_HOPS_PER_CHUNK == FP_BPF_CHUNK_BYTES, "hops fill their chunk");
_Static_assert(sizeof(struct fp_bpf_counters) == 768, "the loader reads it so");
_Static_assert(sizeof(struct fp_bpf_peer) == 48, "the loader reads it so");
_Static_assert(FP_VERDICT_COUNT <= 32 && FP_BPF_COUNTER_COUNT <= 32, "counters have room");

#endif
