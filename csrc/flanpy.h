/*
 * flanpy.h: public API of the C core and the list of verdicts.
 *
 * Two halves:
 *   pure      ip, ip6, checksum, icmp, icmp6, table, table6, segment, runs, coalesce, encap, decap, peers, names: no system calls, no
 *             globals, no allocation; memory comes from the caller, so that tests and fuzzers call them directly. `nm -u` on their objects proves it.
 *   worker.c  the only file with system calls: TUN, UDP, poll, publish.
 *
 * Conventions: lengths travel with pointers; fields are read by memcpy-style loads; `_be` is network byte order, all else is
 * host order; functions return a verdict, a size, or -errno as documented. Packets are hostile. Inner packets are of either family;
 * where a comment names IPv4's words (TTL, TOS), IPv6's hop limit and traffic class are meant too.
 *
 *   TUN -> UDP   read frame -> fp_encap_frame (check, look up, TTL, cut, pack) -> fp_send[] -> sendmsg with UDP_SEGMENT
 *   UDP -> TUN   recvmsg with UDP_GRO -> fp_decap_train (split, check, verify, merge) -> fp_write[] -> writev
 */
#ifndef FLANPY_H
#define FLANPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* ------------------------------------------------------------------------------------------------------------- limits */

#define FP_VNET_HDR_BYTES 10u          /* struct virtio_net_hdr without num_buffers, in front of each TUN frame */
#define FP_PACKET_BYTES_MAX 65535u     /* an IPv4 packet's total length is 16 bits; an IPv6 packet may be 40 longer and is refused then */
#define FP_FRAME_BYTES_MAX (FP_VNET_HDR_BYTES + FP_PACKET_BYTES_MAX)
#define FP_DATAGRAM_BYTES_MAX 65507u   /* UDP payload over IPv4: 65535 - 20 - 8 (IPv6: 20 more, not used); also bounds one UDP_SEGMENT send */
#define FP_SEGMENTS_MAX 127u           /* UDP_MAX_SEGMENTS from Linux 6.9 on; 63 is safe below */

/* ----------------------------------------------------------------------------------------------------------- verdicts */

#include "verdicts.h" /* FP_VERDICTS and enum fp_verdict; shared with the BPF programs */

struct fp_count {
    uint64_t packets; /* inner packets of real size: a superpacket counts as its segments */
    uint64_t bytes;   /* their inner bytes, IP header included */
};

/* One writer, any number of readers (relaxed 64-bit loads and stores). */
struct fp_verdict_counters {
    struct fp_count by[FP_VERDICT_COUNT];
};

/* -------------------------------------------------------------------------------------------------- table (table.c) */

/* An address of either family; IPv4 as ::ffff:a.b.c.d, so that a hop compares as 16 bytes. */
struct fp_address {
    uint8_t bytes[16];
};

#define FP_HOP_ECN 1u          /* the peer combines ECN at decap: copy the mark out */
#define FP_HOP_NONE UINT32_MAX /* lookup: no route */
#define FP_HOP_LOCAL (UINT32_MAX - 1) /* lookup: one of our own prefixes */

struct fp_hop {
    struct fp_address address;
    uint16_t port; /* host order */
    uint16_t flags;
    uint32_t reserved;
};

struct fp_route4 {
    uint32_t prefix;    /* host order, host bits zero */
    uint32_t prefix_len; /* 0..32 */
    uint32_t hop;       /* index into the hops, or FP_HOP_LOCAL */
};

struct fp_route6 {
    struct fp_address prefix; /* host bits zero */
    uint32_t prefix_len;      /* 0..128 */
    uint32_t hop;             /* as above */
};

/* What a table is built from; each list of routes in the order of fp_routes_sort and fp_routes6_sort. */
struct fp_routes {
    const struct fp_route4 *v4;
    size_t n_v4;
    const struct fp_route6 *v6;
    size_t n_v6;
    const struct fp_hop *hops;
    size_t n_hops;
    uint32_t mtu_bytes; /* largest inner packet, 68 at least; 0: as much as a datagram takes */
};

/*
 * Immutable longest-prefix-match snapshot of both families in one flat blob without pointers (offsets only), so that it can live in a
 * sealed memfd and be mapped by another process. Alignment 64.
 */
struct fp_table;

/* Put routes into the order that fp_table_build wants: ascending by prefix, then by prefix_len. In place. */
void fp_routes_sort(struct fp_route4 *routes, size_t n_routes);
void fp_routes6_sort(struct fp_route6 *routes, size_t n_routes);

/* Bytes that fp_table_build will need for these routes, or 0 when they are invalid (see fp_table_build). */
size_t fp_table_bytes(const struct fp_routes *routes);

/*
 * Build into `memory`. 0, or -EINVAL: prefix_len too long, host bits set, hop index out of range, the same prefix twice, not sorted, too
 * many; -ENOSPC: `bytes` is smaller than fp_table_bytes; -EFAULT: memory not aligned to 64.
 */
int fp_table_build(void *memory, size_t bytes, uint64_t generation, const struct fp_routes *routes);

/* Is this blob one of ours, of this layout, with every offset and index in bounds? 0 or -EINVAL. For mapped memory. */
int fp_table_check(const void *memory, size_t bytes);

/* Hop index, FP_HOP_LOCAL or FP_HOP_NONE. `destination` in host order. */
uint32_t fp_table_lookup4(const struct fp_table *table, uint32_t destination);
/* The same; `destination` is 16 bytes as they stand in a packet. */
uint32_t fp_table_lookup6(const struct fp_table *table, const uint8_t *destination);
const struct fp_hop *fp_table_hop(const struct fp_table *table, uint32_t hop); /* NULL when out of range */
uint64_t fp_table_generation(const struct fp_table *table);
uint32_t fp_table_mtu(const struct fp_table *table); /* largest inner packet */
size_t fp_table_size(const struct fp_table *table); /* bytes of the whole blob, as fp_table_bytes said */
/* Whether any hop has this address: tells "unknown peer" from "spoofed". O(log n). */
bool fp_table_knows_address(const struct fp_table *table, const struct fp_address *address);

/* ------------------------------------------------------------------------------------------- encap (segment, encap) */

#define FP_OPT_SOURCE_CHECK 1u /* decap: the outer sender must own the inner source */
#define FP_OPT_USO 2u          /* the TUN device takes and gives UDP superpackets */
#define FP_OPT_NO_COALESCE 4u  /* write every inner packet by itself */

/* What both directions work by; filled anew by the worker for each batch. */
struct fp_context {
    const struct fp_table *table;
    struct fp_verdict_counters *counters;
    uint32_t mtu_bytes; /* largest inner packet */
    uint32_t options;   /* FP_OPT_* */
    uint32_t tunnel_address; /* host order; source of our ICMP errors; 0: none are sent */
    struct fp_address tunnel_address6; /* the same for ICMPv6; ::, none are sent */
};

/* One sendmsg: `bytes` of payload at `data`, cut by the kernel every `segment_bytes` (the last may be shorter). */
struct fp_send {
    uint8_t *data;
    uint32_t bytes;
    uint16_t segment_bytes;
    uint16_t segments; /* 1: plain send, no UDP_SEGMENT */
    uint32_t hop;
    uint8_t tos;       /* outer TOS byte: DSCP 0, ECN by RFC 6040 */
    uint8_t reserved[3];
};

/* Packs the packets of one batch into runs. Opaque; memory of fp_encap_bytes() aligned to 64 comes from the caller. */
struct fp_encap;
size_t fp_encap_bytes(void);
/* max_segments: 1 (no GSO) .. FP_SEGMENTS_MAX. */
struct fp_encap *fp_encap_init(void *memory, uint32_t max_segments);

/*
 * Take one TUN frame (virtio_net_hdr, then the inner packet; the frame may be modified and is free for reuse on return).
 * FP_ENCAPSULATED: its packets stand in the runs. FP_FULL: nothing happened, send what is there, reset, offer it again.
 * Any other verdict: dropped and counted; fp_icmp_error can answer it (the IP header in the frame is still as it arrived).
 * FP_ENCAPSULATED is counted by the worker when the send went well (FP_DROP_SEND otherwise), everything else here.
 * Packets of one inner flow leave in the order in which they came.
 * A packet larger than mtu_bytes is fragmented (RFC 791) when it may be; with DF, over IPv6, and as a superpacket whose segments are
 * larger, it is FP_DROP_TOO_BIG. More than 2000 packets from one frame (gso_size of a few bytes) are FP_DROP_BAD_OFFLOAD.
 */
enum fp_verdict fp_encap_frame(struct fp_encap *encap, const struct fp_context *context, uint8_t *frame, size_t bytes);
/* What to send, in this order. The runs are finished then: they take nothing more (FP_FULL) until fp_encap_reset. */
size_t fp_encap_sends(struct fp_encap *encap, const struct fp_send **sends);
void fp_encap_reset(struct fp_encap *encap);

/* ----------------------------------------------------------------------------------------- decap (coalesce, decap) */

/* One writev to the TUN device: iov[0] is the vnet_hdr and headers, the rest are payloads in the receive buffers. */
struct fp_write {
    struct iovec *iov;
    uint32_t iov_count;
    uint32_t packets; /* inner packets in it */
    uint32_t bytes;   /* their inner bytes before merging */
    uint32_t reserved;
};

struct fp_decap;
size_t fp_decap_bytes(void);
struct fp_decap *fp_decap_init(void *memory);

/*
 * Take one received train: datagrams of `segment_bytes` each (the last may be shorter), or a single one when segment_bytes is 0
 * or >= bytes. `train` may be modified and must stay untouched until fp_decap_reset, for the writes point into it.
 * Every inner packet meets its verdict; FP_DECAPSULATED is counted by the worker when the write went well, everything else here.
 * Returns the bytes taken: less than `bytes` means no room, flush, reset and offer the rest again.
 * `outer_tos` is the outer TOS byte. TTL: decremented here too, as flannel does; a packet that runs out is answered through
 * `expired` (see fp_decap_expired).
 */
size_t fp_decap_train(struct fp_decap *decap, const struct fp_context *context, const struct fp_address *sender,
                      uint8_t outer_tos, uint8_t *train, size_t bytes, size_t segment_bytes);
size_t fp_decap_writes(struct fp_decap *decap, const struct fp_write **writes);
/* Inner packets that ran out of TTL in this batch and want a Time Exceeded (bounded list; the rest are only counted). */
size_t fp_decap_expired(struct fp_decap *decap, const struct iovec **packets);
void fp_decap_reset(struct fp_decap *decap);
/* Of what the last fp_decap_train has taken: packets that met a verdict other than FP_DECAPSULATED, and the bytes of their datagrams. */
struct fp_count fp_decap_refused(const struct fp_decap *decap);

/* ------------------------------------------------------------------------------------------------------ icmp (icmp.c) */

#define FP_ICMP_BYTES_MAX 1280u /* RFC 4443 2.4 (c); over IPv4 576 (RFC 1812 4.3.2.3) */

/*
 * Build the ICMP error that answers `packet` (inner, as it arrived) for a verdict of DROP_NO_ROUTE, DROP_TTL or DROP_TOO_BIG (with
 * next-hop MTU): IPv4 3/0, 11/0, 3/4; IPv6 1/0, 3/0, 2/0 (the MTU no smaller than 1280). From context's tunnel address of that family: IP
 * header + ICMP + as much of the packet as fits in 576 bytes, IPv6 1280. Bytes written to `out`, or 0 when none may be sent: about an ICMP
 * error, a later fragment (IPv6: of ICMP), a multicast, broadcast, loopback or zero address (RFC 1122 3.2.2, RFC 4443 2.4), without a
 * tunnel address, or for another verdict.
 */
size_t fp_icmp_error(const struct fp_context *context, enum fp_verdict verdict, const uint8_t *packet, size_t bytes,
                     uint32_t next_hop_mtu, uint8_t *out, size_t out_bytes);

/* --------------------------------------------------------------------------------------------- checksum (checksum.c) */

/*
 * Ones' complement sums (RFC 1071) as unfolded 64-bit accumulators of big-endian 16-bit words as loaded on this machine
 * (native order: fold, complement, and store as it is). An odd last byte counts as if followed by a zero.
 */
uint64_t fp_sum(const void *data, size_t bytes, uint64_t sum);
uint64_t fp_copy_sum(void *restrict to, const void *restrict from, size_t bytes, uint64_t sum);
uint16_t fp_fold(uint64_t sum); /* folded to 16 bits, not complemented, native order */
const char *fp_cpu(void);       /* the implementation in use: "scalar" (SSE2 or NEON by the compiler), "avx2", "avx512" */

#endif
